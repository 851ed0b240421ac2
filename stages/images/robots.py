"""Does an answer ask machines that learn to keep away?"""

from collections.abc import Iterable

DISALLOWING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
# Directives with a value: the word before their colon names no robot.
VALUED = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")
ROBOT = "cosmopolitan"


def disallows(headers: Iterable[str]) -> bool:
    """Read the values of X-Robots-Tag as img2dataset does, which set the custom.

    >>> disallows(["noai, nofollow"]), disallows(["otherbot: noindex"]), disallows(["nofollow"])
    (True, False, False)

    Source: https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag
    """
    for header in headers:
        robot = "*"
        for part in header.lower().split(","):
            name, colon, rest = (piece.strip() for piece in part.partition(":"))
            if colon and name in VALUED:
                continue
            if colon:
                robot, name = name, rest
            if robot in ("*", ROBOT) and name in DISALLOWING:
                return True
    return False
