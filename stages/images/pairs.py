"""A table of pairs in the order of its ids, and of each picture the one link that is asked.

Links and captions wait on disk: what is held in memory of each row is a few numbers.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.images.plan import LINKS_AT_ONCE, name_pictures, one_link_per_picture, read_links
from stages.images.spilled import Spilled

COLUMNS = ("id", "url", "caption", "version", "aspect", "user")
BATCH_ROWS = 1 << 12
LINK = pa.schema([("link", pa.string())])


@dataclass(frozen=True, slots=True)
class Links:
    """The link of each picture that is wanted; may be gone through more than once."""

    spilled: Spilled

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Give them in the order of the pictures' numbers, of schema plan.LINKS."""
        for shelf in self.spilled.batches():
            for first in range(0, len(shelf), LINKS_AT_ONCE):
                yield read_links(shelf.slice(first, LINKS_AT_ONCE)["link"])


@dataclass(frozen=True, slots=True)
class Pairs:
    """The rows by id; pictures are numbered as they first come among these."""

    rows: Spilled  # of COLUMNS
    links: Links
    asked: np.ndarray  # of each row, the number of its picture
    is_repeated: np.ndarray  # of each row, whether a row before it has its id
    pictures: int

    def takers(self) -> np.ndarray:
        """Count the rows that will take each picture."""
        return np.bincount(self.asked[~self.is_repeated], minlength=self.pictures)


def count_pairs(path: Path) -> int:
    """Count the rows of a table of pairs.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such table, or has no rows.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such table of pairs. `python -m stages.filter` makes it"
        )
    try:
        header = pq.read_schema(path).names
        rows = int(pq.read_metadata(path).num_rows)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not readable as parquet: {error}") from None
    if missing := sorted(set(COLUMNS) - set(header)):
        raise ValueError(
            f"{path}: no column {missing[0]!r}, only {', '.join(header)}. "
            "Is this the table that `python -m stages.filter` writes?"
        )
    if not rows:
        raise ValueError(f"{path}: the table of pairs has no rows")
    return rows


def read_pairs(path: Path, folder: Path) -> Pairs:
    """Put the rows in the order of their ids; of equal ids the first stays first.

    Args:
        path: parquet, with COLUMNS.
        folder: of scratch; what is there is replaced.

    Raises:
        ValueError: if the file is broken.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        rows = _by_id(path, folder / "rows")
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # this machine's, as when its disk is full
        raise ValueError(f"{path}: not readable as parquet: {error}") from None
    names, ends, repeated = list[pa.Array](), list[pa.Array](), list[np.ndarray]()
    before = None
    for shelf in rows.batches():
        ids = shelf["id"]
        same = pc.equal(ids, pa.concat_arrays([pa.array([before], ids.type), ids[:-1]]))
        repeated.append(np.asarray(pc.fill_null(same, False)))
        before = ids[-1].as_py()
        for first in range(0, len(shelf), LINKS_AT_ONCE):
            links = read_links(shelf.slice(first, LINKS_AT_ONCE)["url"])
            names.append(name_pictures(links))
            ends.append(links["ends_at"])
    asked, chosen = one_link_per_picture(pa.chunked_array(names), pa.chunked_array(ends))
    links = Spilled(folder / "links", LINK, len(chosen))
    is_chosen = np.zeros(len(asked), bool)
    is_chosen[chosen] = True
    for shelf in rows.batches():
        these = slice(shelf["place"][0].as_py(), shelf["place"][-1].as_py() + 1)
        mine = is_chosen[these]
        if mine.any():
            texts = shelf["url"].filter(pa.array(mine))
            links.add(pa.RecordBatch.from_arrays([texts], schema=LINK), asked[these][mine])
    return Pairs(rows, Links(links), asked, np.concatenate(repeated), len(chosen))


def _by_id(path: Path, folder: Path) -> Spilled:
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        ids = [
            batch["id"]
            for batch in file.iter_batches(BATCH_ROWS, columns=["id"], use_threads=False)
        ]
        order = np.asarray(pc.sort_indices(pa.chunked_array(ids)))  # stable
        del ids
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        del order
        schema = pa.schema([file.schema_arrow.field(name) for name in COLUMNS])
        rows, first = Spilled(folder, schema, len(places)), 0
        for batch in file.iter_batches(BATCH_ROWS, columns=list(COLUMNS), use_threads=False):
            rows.add(batch.select(COLUMNS), places[first : first + len(batch)])
            first += len(batch)
    return rows
