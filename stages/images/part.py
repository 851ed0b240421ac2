"""What has come of a picture so far, so that a broken or killed download goes on in its middle."""

import re
from collections.abc import Mapping
from pathlib import Path

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
        self._version = path.with_name(path.name + ".version")

    def range_headers(self) -> dict[str, str]:
        """Ask for the rest, if the server still has the same version (RFC 9110, 13.1.5)."""
        try:
            size, version = self.body.stat().st_size, self._version.read_text("latin-1")
        except FileNotFoundError:
            return {}
        if not size or not version.isprintable() or not version:
            return {}
        return {"Range": f"bytes={size}-", "If-Range": version}

    def begin(self, status: int, headers: Mapping[str, str]) -> int | None:
        """Make ready for an answer's body: after what is there, or from the start.

        Returns:
            How many bytes are there; None: the answer does not continue them.
        """
        if status == 206:
            size = self.body.stat().st_size if self.body.exists() else 0
            found = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
            if found is None or int(found[1]) != size:
                self.forget()
                return None
            return size
        self.forget()
        version = headers.get("ETag", "")
        if not version.startswith('"'):  # a weak one promises no equal bytes
            version = headers.get("Last-Modified", "")
        if version:
            self._version.write_text(version, "latin-1")
        return 0

    def forget(self) -> None:
        """Take the files away."""
        self.body.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)
