"""Who upscaled most: exact counts of any number of users, in bounded memory.

Counts are gathered in a table of bounded length; what does not fit goes to the disk, parted by
the users' names, so that all of one user lies in one part and the parts are summed one by one.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.midjourney.strings import string_buffers

COUNTS = pa.schema(
    [
        ("user", pa.string()),
        ("upscales", pa.int64()),
        ("candidates", pa.int64()),  # of these, fit as far as they tell themselves
        ("first", pa.int64()),  # rises with the order of appearance
    ]
)
ROWS_IN_MEMORY = 1 << 19  # about 50 bytes each
PARTS = 64


def count_users(users: pa.Array, is_candidate: pa.Array, first: int) -> pa.Table:
    """Count the upscales of one batch by user.

    Args:
        users: of each upscale, in the export's order.
        is_candidate: of each upscale.
        first: place of the batch's first row in the export.

    Returns:
        Of schema COUNTS, one row per user.
    """
    encoded = users.dictionary_encode()
    rows, is_one = encoded.indices.to_numpy(), is_candidate.to_numpy(zero_copy_only=False)
    count = len(encoded.dictionary)
    firsts = np.empty(count, np.int64)
    firsts[rows[::-1]] = np.arange(first, first + len(users))[::-1]  # the last one written stays
    counts = [np.bincount(rows, minlength=count), np.bincount(rows[is_one], minlength=count)]
    columns = [encoded.dictionary, *map(pa.array, counts), pa.array(firsts)]
    return pa.Table.from_arrays(columns, schema=COUNTS)


def _summed(counts: pa.Table) -> pa.Table:
    """Bring the rows of each user together."""
    summed = counts.group_by("user", use_threads=False).aggregate(
        [("upscales", "sum"), ("candidates", "sum"), ("first", "min")]
    )
    return summed.rename_columns(COUNTS.names)


class Engagement:
    """Counts of upscales by user; a context, for it may hold files."""

    def __init__(self, folder: Path, rows_in_memory: int = ROWS_IN_MEMORY) -> None:
        """Start with nobody.

        Args:
            folder: where nameless files go if memory does not do.
            rows_in_memory: how many rows are held there at most, or twice as many for a moment.
        """
        self._folder, self._limit = folder, rows_in_memory
        self._held: list[pa.Table] = []
        self._rows = 0
        self._parts: list[pa.RecordBatchStreamWriter] = []
        self._files: list[IO[bytes]] = []
        self._open = ExitStack()

    def __enter__(self) -> Self:
        """Hold nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the files, which have no name and vanish."""
        self._open.close()

    def add(self, counts: pa.Table) -> None:
        """Take in the counts of a batch."""
        self._held.append(counts)
        self._rows += len(counts)
        if self._rows > self._limit:
            summed = _summed(pa.concat_tables(self._held))
            self._held, self._rows = [summed], len(summed)
            if self._rows > self._limit // 2:
                self._spill(summed)

    def _spill(self, counts: pa.Table) -> None:
        if not self._parts:
            for _ in range(PARTS):
                file = self._open.enter_context(tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115
                self._files.append(file)
                self._parts.append(pa.ipc.new_stream(pa.PythonFile(file, "w"), COUNTS))
        for batch in counts.combine_chunks().to_batches():
            part = part_of(batch["user"])
            for number, writer in enumerate(self._parts):
                writer.write_batch(batch.filter(pa.array(part == number)))
        self._held, self._rows = [], 0

    def by_part(self) -> Iterator[pa.Table]:
        """Give all counts, each user once; nothing can be added after."""
        held = pa.concat_tables([COUNTS.empty_table(), *self._held])
        if not self._parts:
            yield _summed(held)
            return
        self._spill(held)
        for writer, file in zip(self._parts, self._files, strict=True):
            writer.close()
            file.seek(0)
            yield _summed(pa.ipc.open_stream(file).read_all())


def part_of(users: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Choose a part for each user, by the last letters: those of an id tell most."""
    offsets, text = string_buffers(users)
    letters = np.append(text, np.zeros(1, np.uint8)).astype(np.int64)
    ends = offsets[1:].astype(np.int64)
    last = [np.where(ends - back >= offsets[:-1], letters[ends - back], 0) for back in (1, 2, 3)]
    return np.asarray((last[0] + 10 * last[1] + 100 * last[2]) % PARTS)


def top_users(parts: Iterator[pa.Table], count: int, min_upscales: int) -> tuple[pa.Table, int]:
    """Rank users by upscales, most first, from 1; of equals, who appeared first.

    Args:
        parts: of schema COUNTS, each user once.
        count: how many ranks are wanted.
        min_upscales: users with fewer are left out.

    Returns:
        The users of these ranks, best first, of schema COUNTS, and how many candidates come
        from users with too few upscales.
    """
    best, few = COUNTS.empty_table(), 0
    for part in parts:
        is_engaged = pc.greater_equal(part["upscales"], min_upscales)
        few += pc.sum(part.filter(pc.invert(is_engaged))["candidates"]).as_py() or 0
        best = pa.concat_tables([best, part.filter(is_engaged)])
        order = pc.sort_indices(best, [("upscales", "descending"), ("first", "ascending")])
        best = best.take(order[:count])
    return best, few


def noting_curve(parts: Iterator[pa.Table], curve: Counter[int]) -> Iterator[pa.Table]:
    """Count users by the power of two that their upscales reach, while parts pass by.

    Args:
        parts: of schema COUNTS, each user once.
        curve: gets the numbers of users, by 1, 2, 4, 8 … upscales at least.
    """
    for part in parts:
        upscales = part.filter(pc.greater(part["upscales"], 0))["upscales"]
        for item in pc.value_counts(upscales).to_pylist():
            curve[1 << (item["values"].bit_length() - 1)] += item["counts"]
        yield part
