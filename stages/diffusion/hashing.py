"""The inputs of a merge, hashed while it goes on, and large ones once for all merges.

A cocktail's inputs take longer to hash than to merge, and go into many cocktails. So what a large
file's hash was stands in .work/hashes/, by the file's place, inode, size and times of change, as
Git's index and A1111's cache have it.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.diffusion.ancestry import Parent, legacy_hash
from stages.diffusion.merge_source import Source
from stages.harness.files import sha256_bytes, write_json
from stages.harness.scratch import work_dir

CHUNK_BYTES = 1 << 23  # hashed without a word to other threads: 4 ms
WORKERS = 2  # files at once: one core is left to the merge in the end
REMEMBERED_BYTES = 50_000_000  # smaller files are hashed faster than they are looked up
SETTLED_S = 2.0  # a file younger than this may change without its times showing it


@contextmanager
def hashing(sources: Mapping[str, Source]) -> Iterator[Callable[[], dict[str, Parent]]]:
    """Hash each file once in the background, also one that goes by two names.

    Yields:
        A function that waits for the hashes. Whoever leaves the block without it stops the work.
    """
    is_over = threading.Event()
    by_path: dict[Path, Future[str]] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        for source in sources.values():
            if source.path not in by_path:
                by_path[source.path] = pool.submit(_sha256, source.path, is_over)

        def parents() -> dict[str, Parent]:
            return {
                name: Parent(
                    by_path[source.path].result(), legacy_hash(source.path), source.metadata
                )
                for name, source in sources.items()
            }

        try:
            yield parents
        finally:
            is_over.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _sha256(path: Path, is_over: threading.Event) -> str:
    """Hash a file, or remember its hash; what it gives after the end is none."""
    facts = _facts(path)
    if path.stat().st_size < REMEMBERED_BYTES:
        return _read_through(path, is_over)
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
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while (count := file.readinto(buffer)) and not is_over.is_set():
            digest.update(buffer[:count])
    return digest.hexdigest()
