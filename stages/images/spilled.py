"""Rows on disk that are read in another order than that in which they came."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

SHELF_ROWS = 1 << 12  # read and put in order at once
MOST_SHELVES = 1 << 9  # each addition opens those that it fills


class Spilled:
    """Takes rows in any order, each with its place, and gives them in the order of the places.

    Rows whose places are near each other lie in one file, a shelf, that fits in memory.
    """

    def __init__(self, folder: Path, schema: pa.Schema, count: int) -> None:
        """Make the folder.

        Args:
            folder: not there yet, or empty.
            schema: of the rows, without dictionaries.
            count: places there are; each is to be filled once.
        """
        self.schema = schema.append(pa.field("place", pa.int64()))
        self.folder = folder
        self._shelf_rows = max(SHELF_ROWS, -(-count // MOST_SHELVES))
        self._shelves = -(-count // self._shelf_rows)
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, rows: pa.RecordBatch, places: np.ndarray) -> None:
        """Write rows down.

        Args:
            rows: of the schema.
            places: of each, from 0 on.
        """
        columns = [*rows.columns, pa.array(places, pa.int64())]
        placed = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        shelves = places // self._shelf_rows
        by_shelf = np.argsort(shelves, kind="stable")
        numbers, starts = np.unique(shelves[by_shelf], return_index=True)
        for number, mine in zip(numbers, np.split(by_shelf, starts[1:]), strict=True):
            with self._shelf(number).open("ab") as file:
                file.write(placed.take(pa.array(mine)).serialize())

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Give all rows, in the order of their places, with the column `place`."""
        for number in range(self._shelves):
            batches = []
            with pa.OSFile(str(self._shelf(number))) as file:
                size = file.size()
                while file.tell() < size:
                    batches.append(pa.ipc.read_record_batch(pa.ipc.read_message(file), self.schema))
            yield pa.concat_batches(batches).sort_by("place")

    def _shelf(self, number: int) -> Path:
        return self.folder / f"{number:03}"
