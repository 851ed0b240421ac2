"""Hashes of large files that were read before and have not changed since."""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from stages.harness.files import sha256_file

MOST_AT_ONCE = 8  # files being hashed; a disk that is slower than the cores gains nothing from more


class KnownHashes:
    """A file that grows by a line per file hashed; a file is known by place, size and time."""

    def __init__(self, path: Path) -> None:
        """Open the book, and read what it holds."""
        self.path = path
        self._lock = Lock()  # of the book
        self._known: dict[str, str] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    key, sha256 = json.loads(line)
                except ValueError:
                    continue  # blank, or cut short
                self._known[key] = sha256

    def knows(self, path: Path) -> bool:
        """Tell whether a file need not be read."""
        return _key(path) in self._known

    def sha256(self, path: Path) -> str:
        """Hash a file, or recall its hash."""
        key = _key(path)
        if key not in self._known:
            sha256 = sha256_file(path)
            with self._lock:
                self._known[key] = sha256
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    # the line break first: a line that a kill cut short must not spoil this one
                    file.write("\n" + json.dumps([key, sha256]))
        return self._known[key]

    def sha256_of_all(self, paths: Iterable[Path]) -> list[str]:
        """Hash several files at once, or recall their hashes; in their order."""
        with ThreadPoolExecutor(min(MOST_AT_ONCE, os.cpu_count() or 1)) as threads:
            return list(threads.map(self.sha256, paths))


def _key(path: Path) -> str:
    status = path.stat()
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
