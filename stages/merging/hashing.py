"""The inputs of a merge, hashed while it goes on, and large ones once for all merges.

A cocktail's inputs take longer to hash than to merge, and go into many cocktails. So large files
are hashed in processes of their own, and what a file's hash was stands in .work/hashes/, by the
file's place, inode, size and times of change, as Git's index and A1111's cache have it.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.harness.files import sha256_bytes, sha256_file, write_json
from stages.harness.scratch import work_dir
from stages.lineage.ancestry import Parent, legacy_hash
from stages.merging import hash_process
from stages.merging.source import Source

WORKERS = min(3, os.cpu_count() or 2)  # files at once, 16 MB each
PATIENCE_S = 0.1  # until it is noticed that nobody wants a hash any more
REMEMBERED_BYTES = 50_000_000  # smaller files are hashed faster than they are looked up
SETTLED_S = 2.0  # a file younger than this may change without its times showing it


@contextmanager
def hashing(sources: Mapping[str, Source]) -> Iterator[Callable[[], dict[str, Parent]]]:
    """Hash each file once in the background, also one that goes by two names.

    Yields:
        A function that waits for the hashes, and raises ValueError if a file changed since the
        block began. Whoever leaves the block without it stops the work.
    """
    is_over = threading.Event()
    before = {source.path: _facts(source.path) for source in sources.values()}
    with ThreadPoolExecutor(WORKERS) as pool:
        by_path = {path: pool.submit(_sha256, path, is_over) for path in before}

        def parents() -> dict[str, Parent]:
            found = {
                name: Parent(
                    by_path[source.path].result(), legacy_hash(source.path), source.metadata
                )
                for name, source in sources.items()
            }
            for path, facts in before.items():
                if _facts(path)[:-1] != facts[:-1]:  # but for the count of its names
                    raise ValueError(f"{path}: changed while it was read. Merge again")
            return found

        try:
            yield parents
        finally:
            is_over.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _sha256(path: Path, is_over: threading.Event) -> str:
    """Hash a file, or remember its hash; what it gives after the end is none."""
    facts = _facts(path)
    if path.stat().st_size < REMEMBERED_BYTES:
        return sha256_file(path)
    place = path.resolve()
    note = work_dir("hashes") / f"{sha256_bytes(os.fsencode(place))}.json"
    if (known := _noted(note, facts)) is not None:
        return known
    sha256 = _read_through(path, is_over)
    is_settled = time.time() - max(facts[-2:]) / 1e9 > SETTLED_S
    if is_settled and _facts(path) == facts and not is_over.is_set():
        with suppress(OSError):  # a folder that cannot be written costs time only
            write_json(note, {"file": str(place), "facts": facts, "sha256": sha256})
    return sha256


def _facts(path: Path) -> list[int]:
    """Tell a file's state apart from any later one, as far as its directory entry does."""
    s = path.stat()
    return [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns]


def _noted(note: Path, facts: list[int]) -> str | None:
    """Give a hash that was noted of a file that has not changed since."""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        return str(content["sha256"]) if content["facts"] == facts else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_through(path: Path, is_over: threading.Event) -> str:
    """Hash a file in a process of its own.

    Raises:
        ValueError: if it cannot be read to the end that it had.
    """
    command = [sys.executable, "-I", "-S", hash_process.__file__, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while True:
            try:
                told, problem = process.communicate(timeout=PATIENCE_S)
                break
            except subprocess.TimeoutExpired:
                if is_over.is_set():
                    process.kill()
    if process.returncode and not is_over.is_set():
        last = problem.strip().rpartition("\n")[2] or f"signal {-process.returncode}"
        raise ValueError(f"{path}: changed or became unreadable while it was hashed ({last})")
    return told.strip()
