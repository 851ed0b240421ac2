"""The part of a file that has come so far, kept so that a kill loses at most a block."""

import hashlib
import re
from pathlib import Path
from typing import Self

BLOCK_BYTES = 1 << 20
STRONG_ETAG = re.compile(r'"[^"]*"')  # W/"..." says that the meaning is equal, not the bytes


class Partial:
    """Bytes of one version of a file, from its beginning on, and their hash."""

    def __init__(self, folder: Path) -> None:
        """Take up what an earlier process left.

        Args:
            folder: of this file alone, held by this process alone.
        """
        self.path = folder / "partial"
        self._etag_path = folder / "etag"
        self._file = self.path.open("a+b", buffering=0)  # each block reaches the system at once
        self._hash = hashlib.sha256()
        self.size = 0
        self._file.seek(0)
        while block := self._file.read(BLOCK_BYTES):
            self._count(block)
        self.etag = self._etag_path.read_text("utf-8") if self._etag_path.is_file() else ""
        self.is_joined = self.size > 0  # of more than one answer, which may not fit together

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        """The hash of the bytes so far; 64 hex digits."""
        return self._hash.hexdigest()

    def append(self, block: bytes) -> None:
        """Write the next bytes down.

        Raises:
            OSError: if the disk is full; what came is kept.
        """
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror} (what came is kept: make room and start again)",
                str(self.path),
            ) from error
        self._count(block)

    def restart(self, etag: str = "") -> None:
        """Drop all bytes; those to come are of the version that `etag` names."""
        self._file.truncate(0)  # first: old bytes must never stand under a new version's name
        self._hash = hashlib.sha256()
        self.size = 0
        self.is_joined = False
        self.etag = etag if STRONG_ETAG.fullmatch(etag) else ""
        self._etag_path.write_text(self.etag, "utf-8")

    def range_headers(self) -> dict[str, str]:
        """Ask for the bytes that are missing, if the version is still the same.

        A server without a strong ETag is asked too: the hash will tell.

        Source: RFC 9110, 13.1.5 and 14.2.
        """
        if not self.size:
            return {}
        same = {"If-Range": self.etag} if self.etag else {}
        return {"Range": f"bytes={self.size}-", **same}

    def _count(self, block: bytes) -> None:
        self._hash.update(block)
        self.size += len(block)
