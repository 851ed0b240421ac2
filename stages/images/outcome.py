"""What became of a picture that a row links to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stages.images.metadata import Piece

Source = Literal["mirror", "link"]

# Each row ends in one of these or is fetched; in the order of the steps that tell.
REASONS = (
    "repeated_id",  # an earlier row of the same id is there already
    "bad_link",  # no http(s) address of a file, or one that climbs out of its folder
    "not_mirrored",  # no mirror has it, and links are not asked
    "expired",  # a signed link that says so itself
    "private_address",  # leads into a private network
    "unreachable",  # no such host, refused or broken connections, to the last try
    "timeout",
    "rate_limited",  # 429 to the last try, or told to wait too long
    "server_error",  # 5xx to the last try
    "redirects",  # in circles, too many, or to nowhere
    "refused",  # 401, 403 and whatever else is no picture's answer
    "gone",  # 404, 410
    "robots",  # X-Robots-Tag asks machines to keep away
    "too_large",  # of more bytes than params allow
    "not_an_image",
    "broken_image",  # begins as a picture and does not decode to its end
    "too_many_pixels",
    "too_small",
)
# Asking again may well help: not remembered when a killed download goes on.
PASSING = frozenset({"unreachable", "timeout", "rate_limited", "server_error"})


@dataclass(frozen=True, slots=True)
class Picture:
    """A file that was verified to its end: a PNG by its checksums, others by decoding."""

    suffix: str  # by its content: ".png", ".jpg", ".webp"
    width: int  # as it is seen, which EXIF may turn
    height: int
    sha256: str  # of the file without its metadata, as it stands in a shard


@dataclass(frozen=True, slots=True)
class Fetched:
    """A picture, and where its bytes lie on this machine."""

    path: Path
    picture: Picture
    source: Source
    kept_as: str = ""  # the link under which the scratch keeps it; empty: it lies in a folder
    at: int = 0  # where in the file it begins
    size: int = -1  # in bytes; -1: to the file's end
    original_size: int = -1  # of the file as it came; -1: not known
    # without metadata; None: to be read
    parts: list[Piece] | None = field(default=None, repr=False, compare=False)

    def read(self) -> bytes:
        """Read the file, or its piece of a pack."""
        with self.path.open("rb") as file:
            file.seek(self.at)
            return file.read(self.size)


@dataclass(frozen=True, slots=True)
class Failed:
    """No picture, and why: one of REASONS."""

    reason: str


Outcome = Fetched | Failed
