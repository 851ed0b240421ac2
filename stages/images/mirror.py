"""Mirrors hold what links point to: the path of the link, below a folder or an address.

An address is the base of a web server, `https://host/base`, or of a bucket, `s3://bucket/base`.
"""

from collections.abc import Sequence, Set
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from stages.images.link import mirror_paths


def is_address(mirror: str) -> bool:
    """Tell a mirror elsewhere from a folder."""
    return "://" in mirror


def check_address(mirror: str) -> None:
    """Refuse what is no base of links.

    Raises:
        ValueError: naming what is wrong.
    """
    try:
        parts = urlsplit(mirror)
        parts.port  # noqa: B018  reading it checks its range
    except ValueError as error:
        raise ValueError(f"{mirror!r} in mirrors is no address: {error}") from None
    if parts.scheme not in ("http", "https", "s3") or not parts.hostname:
        raise ValueError(f"mirrors are folders, https:// or s3:// addresses, got {mirror!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            "an address in mirrors holds a password, a query or a fragment. Params are committed: "
            "leave them out; s3:// takes credentials from AWS_*"
        )


def check_mirrors(mirrors: Sequence[str]) -> None:
    """Stop before the work if a mirror's folder is not there.

    Raises:
        NotADirectoryError: naming the mirror.
    """
    for mirror in mirrors:
        if not is_address(mirror) and not Path(mirror).is_dir():
            raise NotADirectoryError(
                f"{mirror}: no such folder, but download.mirrors names it. A mirror holds "
                "attachments/CHANNEL/ATTACHMENT/NAME for Discord's links; correct the params, "
                "or take it out of the list"
            )


def places(link: str, mirrors: Sequence[str], shared: Set[str] = frozenset()) -> list[str]:
    """List where mirrors may hold a link's picture, in their order: paths and addresses.

    Args:
        link: of the picture.
        mirrors: folders and addresses.
        shared: paths below a mirror that several pictures share: nobody knows whose lies there.
    """
    below = mirror_paths(link)
    if not shared.isdisjoint(below):
        return []
    found: list[str] = []
    for mirror in mirrors:
        if is_address(mirror):
            found += [f"{mirror.rstrip('/')}/{quote(unquote(name))}" for name in below[:1]]
        else:
            found += [str(Path(mirror) / name) for name in below]
    return found
