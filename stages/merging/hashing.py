"""The inputs of a merge, hashed while it goes on, and large ones once for all merges.

A cocktail's inputs take longer to hash than to merge, and go into many cocktails. So large files
are hashed in processes of their own, and what a file's hash was stands in .work/hashes/, by the
file's place, inode, size and times of change, as Git's index and A1111's cache have it. Of a file
that holds a recipe of ours the tensors are hashed as well, which tells whether it is its own.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.harness.files import sha256_bytes, sha256_file, write_json
from stages.harness.scratch import work_dir
from stages.lineage.ancestry import RECIPE, Parent
from stages.lineage.digests import digest_file, legacy_hash, tensors_start
from stages.merging import hash_process
from stages.merging.source import Source

WORKERS = min(3, os.cpu_count() or 2)  # files at once, 16 MB each
PATIENCE_S = 0.1  # until it is noticed that nobody wants a hash any more
REMEMBERED_BYTES = 50_000_000  # smaller files are hashed faster than they are looked up
SETTLED_S = 2.0  # a file younger than this may change without its times showing it

Hashes = tuple[str, str | None]  # SHA-256 of a file, and of its tensors where these are looked at


@contextmanager
def hashing(sources: Mapping[str, Source]) -> Iterator[Callable[[], dict[str, Parent]]]:
    """Hash each file once in the background, also one that goes by two names.

    Yields:
        A function that waits for the hashes, and raises ValueError if a file changed since the
        block began. Whoever leaves the block without it stops the work.
    """
    is_over = threading.Event()
    by_name = {source.path: source for source in sources.values()}
    before = {path: _facts(path) for path in by_name}
    with ThreadPoolExecutor(WORKERS) as pool:
        by_path = {path: pool.submit(_hashes, by_name[path], is_over) for path in before}

        def parents() -> dict[str, Parent]:
            found = {
                name: _parent(source, by_path[source.path].result())
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


def _parent(source: Source, hashes: Hashes) -> Parent:
    sha256, tensors_sha256 = hashes
    return Parent(sha256, legacy_hash(source.path), source.metadata, tensors_sha256)


def _hashes(source: Source, is_over: threading.Event) -> Hashes:
    """Hash a file, or remember its hashes; what it gives after the end is none."""
    path, is_told = source.path, RECIPE in source.metadata
    facts = _facts(path)
    if path.stat().st_size < REMEMBERED_BYTES:
        if not is_told:
            return sha256_file(path), None
        digests = digest_file(path)
        return digests.sha256, digests.tensors_sha256
    place = path.resolve()
    note = work_dir("hashes") / f"{sha256_bytes(os.fsencode(place))}.json"
    known = _noted(note, facts)
    if known is not None and not (is_told and known[1] is None):
        return known
    sha256, *rest = _read_through(path, is_over, [0, tensors_start(path)] if is_told else [0])
    tensors_sha256 = rest[0] if rest else None
    is_settled = time.time() - max(facts[-2:]) / 1e9 > SETTLED_S
    if is_settled and _facts(path) == facts and not is_over.is_set():
        with suppress(OSError):  # a folder that cannot be written costs time only
            content = {"file": str(place), "facts": facts, "sha256": sha256}
            write_json(note, {**content, "tensors_sha256": tensors_sha256})
    return sha256, tensors_sha256


def _facts(path: Path) -> list[int]:
    """Tell a file's state apart from any later one, as far as its directory entry does."""
    s = path.stat()
    return [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns]


def _noted(note: Path, facts: list[int]) -> Hashes | None:
    """Give the hashes that were noted of a file that has not changed since."""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        hashes = str(content["sha256"]), content.get("tensors_sha256")
        return hashes if content["facts"] == facts else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_through(path: Path, is_over: threading.Event, starts: Sequence[int]) -> list[str]:
    """Hash a file from each of some bytes on, in a process of its own.

    Raises:
        ValueError: if it cannot be read to the end that it had.
    """
    numbers = map(str, starts)
    command = [sys.executable, "-I", "-S", hash_process.__file__, str(path), *numbers]
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
    return told.split() or [""] * len(starts)
