"""New files of weights: whole or absent, hashed on the way, written past the page cache."""

import errno
import hashlib
import mmap
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from stages.harness.files import replacing, scratch_of

BLOCK_BYTES = 1 << 22
BLOCKS = 4  # filled or on their way to the disk
BLOCK_UNIT = 512  # bytes, of `st_blocks` on every system
PAGE_BYTES = 4096  # direct writes begin and end at its multiples
NO_ROOM = "an older file of this name is as it was"


class Output:
    """A file of weights that grows block by block, while one thread hashes and one writes.

    Blocks go straight from memory to the disk where system and file system let them: copying
    gigabytes into the page cache takes longer than merging them, and drives out the inputs.
    """

    def __init__(self, path: Path, header_length: int) -> None:
        """Open a new file.

        Args:
            path: of the file.
            header_length: bytes left free at its beginning, for `write_header` to fill.
        """
        self.path, self.header_length = path, header_length
        self.descriptor, self.is_direct = _opened(path)
        self.hash = hashlib.sha256()
        self.size = 0  # bytes handed to the writing thread
        self.unhashed = header_length  # of these, the header is no tensor
        self.memory = memoryview(mmap.mmap(-1, BLOCK_BYTES * BLOCKS))  # begins at a page
        self.block = 0  # that is being filled; they take turns
        self.filled = 0
        self.hasher, self.writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.waiting: deque[tuple[Future[None], ...]] = deque()  # of blocks handed over
        self.write(bytes(header_length))

    def take(self, limit: int) -> memoryview:
        """Give the next bytes of the file to be filled, before anything else is called.

        Args:
            limit: bytes; where a block ends they are fewer.

        Raises:
            OSError: if an earlier block could not be written.
        """
        if self.filled == BLOCK_BYTES:
            self._hand_over()
        start = self.block * BLOCK_BYTES + self.filled
        count = min(limit, BLOCK_BYTES - self.filled)
        self.filled += count
        return self.memory[start : start + count]

    def write(self, content: memoryview | bytes) -> None:
        """Add bytes; they may change once this returns.

        Raises:
            OSError: if an earlier block could not be written.
        """
        rest = memoryview(content)
        while rest:
            room = self.take(len(rest))
            room[:] = rest[: len(room)]
            rest = rest[len(room) :]

    def finish(self) -> str:
        """Write what is left; give the SHA-256 of all tensors, 64 hex digits.

        Raises:
            OSError: if a block could not be written.
        """
        size = self.size + self.filled
        self._hand_over()
        while self.waiting:
            self._wait()
        os.ftruncate(self.descriptor, size)  # the last page may be no whole one
        return self.hash.hexdigest()

    def write_header(self, header: bytes) -> None:
        """Fill the beginning, of the length that was left free, once all else is written."""
        assert len(header) == self.header_length
        with self.path.open("r+b") as file:
            file.write(header)

    def close(self) -> None:
        """End the threads and close the file."""
        self.hasher.shutdown(cancel_futures=True)
        self.writer.shutdown(cancel_futures=True)
        os.close(self.descriptor)

    def _hand_over(self) -> None:
        """Give the block to both threads, and take the oldest once they are through with it."""
        start, stop = self.block * BLOCK_BYTES, self.block * BLOCK_BYTES + self.filled
        skipped = min(self.unhashed, self.filled)
        self.unhashed -= skipped
        whole = -(-self.filled // PAGE_BYTES) * PAGE_BYTES if self.is_direct else self.filled
        self.waiting.append(
            (
                self.hasher.submit(self.hash.update, self.memory[start + skipped : stop]),
                self.writer.submit(self._write_out, self.memory[start : start + whole]),
            )
        )
        self.size += self.filled
        if len(self.waiting) == BLOCKS:
            self._wait()
        self.block, self.filled = (self.block + 1) % BLOCKS, 0

    def _wait(self) -> None:
        for step in self.waiting.popleft():
            step.result()

    def _write_out(self, content: memoryview) -> None:
        while content:
            try:
                count = os.write(self.descriptor, content)
            except OSError as error:
                if not (self.is_direct and error.errno == errno.EINVAL):
                    raise
                count = 0
            content = content[count:]
            if content and self.is_direct:  # what is left may begin in the middle of a page
                self._through_the_cache()

    def _through_the_cache(self) -> None:
        position = os.lseek(self.descriptor, 0, os.SEEK_CUR)
        os.close(self.descriptor)
        self.descriptor, self.is_direct = os.open(self.path, os.O_WRONLY), False
        os.lseek(self.descriptor, position, os.SEEK_SET)


@contextmanager
def writing(path: Path, header_length: int, size: int) -> Iterator[Output]:
    """Open a file that is whole in the end, or not there; an older one stays till then.

    Args:
        path: of the file to be.
        header_length: bytes left free at its beginning.
        size: that it will have; a disk without that much room is known before the work.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    try:
        with replacing(path) as scratch:
            os.truncate(scratch, 0)  # what a kill left there takes room
            if (free := free_bytes(path)) < size:
                raise OSError(
                    errno.ENOSPC, f"No room for {size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free"
                )
            output = Output(scratch, header_length)
            try:
                yield output
            finally:
                output.close()
    except OSError as error:
        if error.filename is not None:  # of a file that was read
            raise
        raise OSError(
            error.errno, f"{error.strerror} (writing weights; {NO_ROOM})", str(path)
        ) from error


def free_bytes(path: Path) -> int:
    """Tell how much room there is where a file is to be; its folder need not be there yet.

    What a killed writer of the file left counts as room: the next one begins by taking it away.
    """
    folder = next(folder for folder in path.absolute().parents if folder.is_dir())
    scratch = scratch_of(path)
    left = scratch.stat().st_blocks * BLOCK_UNIT if scratch.is_file() else 0
    return shutil.disk_usage(folder).free + left


def _opened(path: Path) -> tuple[int, bool]:
    """Open a new file for direct writing, or, where that does not exist, for writing."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    if hasattr(os, "O_DIRECT"):
        try:
            return os.open(path, flags | os.O_DIRECT, 0o666), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return os.open(path, flags, 0o666), False
