"""Hashes of large files that were read before and have not changed since."""

import json
from pathlib import Path

from stages.harness.files import sha256_file


class KnownHashes:
    """A file that grows by a line per file hashed; a file is known by place, size and time."""

    def __init__(self, path: Path) -> None:
        """Open the book, and read what it holds."""
        self.path = path
        self._known: dict[str, str] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    key, sha256 = json.loads(line)
                except ValueError:
                    continue  # blank, or cut short
                self._known[key] = sha256

    def sha256(self, path: Path) -> str:
        """Hash a file, or recall its hash."""
        status = path.stat()
        key = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = sha256_file(path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                # the line break first: a line that a kill cut short must not spoil this one
                file.write("\n" + json.dumps([key, self._known[key]]))
        return self._known[key]
