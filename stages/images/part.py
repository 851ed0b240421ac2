"""What has come of a picture so far, so that a broken or killed download goes on in its middle."""

import re
from collections.abc import AsyncIterable, Mapping
from pathlib import Path

from stages.images.answer import Again
from stages.images.outcome import Failed

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class Part:
    """The beginning of a body, and the validator that says of which version it is.

    A server that names no version (no strong ETag and no Last-Modified) is asked from the start.
    """

    def __init__(self, path: Path) -> None:
        """Name the files.

        Args:
            path: of the picture, when it is whole.
        """
        self.body = path.with_name(path.name + ".partial")
        self._kept = path.with_name(path.name + ".version")

    def range_headers(self) -> dict[str, str]:
        """Ask for the rest, if the server still has the same version (RFC 9110, 13.1.5)."""
        size = self.body.stat().st_size if self.body.exists() else 0
        version = self._kept_version()
        if not size or not version.isprintable() or not version:
            return {}
        return {"Range": f"bytes={size}-", "If-Range": version}

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
            is_other = version and version != self._kept_version()
            if found is None or int(found[1]) != size or is_other:
                self.forget()
                return None
            return size
        self.forget()
        if version:
            self._kept.write_text(version, "utf-8", errors="surrogateescape")
        return 0

    def _kept_version(self) -> str:
        if not self._kept.exists():
            return ""
        return self._kept.read_text("utf-8", errors="surrogateescape")

    def forget(self) -> None:
        """Take the files away."""
        self.body.unlink(missing_ok=True)
        self._kept.unlink(missing_ok=True)


def _version(headers: Mapping[str, str]) -> str:
    """Name the version that an answer gives; "" if it promises no equal bytes."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")  # not W/"weak"
