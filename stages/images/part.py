"""What has come of a picture so far, so that a broken or killed download goes on in its middle."""

import re
from collections.abc import AsyncIterable, Mapping
from pathlib import Path
from urllib.parse import quote, unquote

from stages.images.answer import Again
from stages.images.outcome import Failed

# Bytes of a version as `_code` writes it into a name, which has then at most 143 in all, what
# eCryptfs takes. S3's ETag of an object in parts has 44, a date 45, and a SHA-256 as ETag 70.
LONGEST_CODE = 70
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-\d+/(?:\d+|\*)")


class Part:
    """The beginning of a body, in a file whose name tells the validator of its version.

    A server that names no version (no strong ETag and no Last-Modified) is asked from the start.
    So is one whose version is too long for a name: shortened, it would be another to the server,
    and a date may not stand in for an ETag (RFC 9110, 13.1.5).
    """

    def __init__(self, path: Path) -> None:
        """Look for what is there.

        Args:
            path: of the picture, when it is whole.
        """
        self._picture = path
        # one file and no second with the version: each new one takes a disk a millisecond
        begun = min(path.parent.glob(f"{path.name}.*.partial"), default=None)
        self._version = _named_version(begun) if begun else ""
        self.body = begun or self._file("")

    def range_headers(self) -> dict[str, str]:
        """Ask for the rest, if the server still has the same version (RFC 9110, 13.1.5)."""
        size = self.body.stat().st_size if self.body.exists() else 0
        if not size or not self._version.isprintable() or not self._version:
            return {}
        return {"Range": f"bytes={size}-", "If-Range": self._version}

    async def take(
        self,
        status: int,
        headers: Mapping[str, str],
        length: int,
        pieces: AsyncIterable[bytes],
        max_bytes: int,
    ) -> Failed | Again | None:
        """Write an answer's body down, piece by piece; None: all of it is there.

        Args:
            status: 200, or 206 for the rest of what is there.
            headers: of the answer, in any letter case.
            length: of the body; 0 if the answer does not tell.
            pieces: of the body.
            max_bytes: of the whole picture.
        """
        written = self.begin(status, headers)
        if written is None:
            return Again("server_error")
        if written + length > max_bytes:
            return Failed("too_large")
        with self.body.open("ab", buffering=0) as file:
            async for piece in pieces:
                written += len(piece)
                if written > max_bytes:
                    return Failed("too_large")
                rest = memoryview(piece)
                while rest:  # a disk that is nearly full takes a part
                    rest = rest[file.write(rest) :]
        return None

    def begin(self, status: int, headers: Mapping[str, str]) -> int | None:
        """Make ready for an answer's body: after what is there, or from the start.

        Returns:
            How many bytes are there; None: the answer does not continue them.
        """
        version = _version(headers)
        if status == 206:
            size = self.body.stat().st_size if self.body.exists() else 0
            found = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
            # a server that knows no If-Range may give the rest of another version
            is_other = version and version != self._version
            if found is None or int(found[1]) != size or is_other:
                self.forget()
                return None
            return size
        self.forget()
        self._version, self.body = version, self._file(version)
        return 0

    def forget(self) -> None:
        """Take the file away."""
        self.body.unlink(missing_ok=True)

    def _file(self, version: str) -> Path:
        return self._picture.with_name(f"{self._picture.name}.{_code(version)}.partial")


def _named_version(body: Path) -> str:
    return unquote(body.name.split(".")[-2], errors="surrogateescape")


def _code(version: str) -> str:
    """Write a version as a part of a file's name: letters and digits stand for themselves."""
    return quote(version, safe="", errors="surrogateescape").replace(".", "%2E")


def _version(headers: Mapping[str, str]) -> str:
    """Name the version that an answer gives; "" if it promises no equal bytes, or at length."""
    tag = headers.get("ETag", "")
    version = tag if tag.startswith('"') else headers.get("Last-Modified", "")  # not W/"weak"
    return version if len(_code(version)) <= LONGEST_CODE else ""
