"""What became of the rows of a table of pairs: from columns of outcomes to columns and counts.

An outcome is here the number that `ends.outcome_code` gives: a byte for each of many rows.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.harness.files import replacing
from stages.images.ends import ENDS, SOURCES, outcome_code
from stages.images.outcome import REASONS, Failed

OUTCOMES = pa.schema([("id", pa.string()), ("outcome", pa.string())])
# A code's name, as a table tells it to a person.
_NAMES = pa.array([*(f"fetched_{source}" for source in SOURCES), *REASONS], pa.string())
REPEATED = pa.scalar(outcome_code(Failed("repeated_id")), pa.int8())


def row_outcomes(is_repeated: pa.Array, asked: pa.Array, outcomes: pa.Array) -> pa.Array:
    """Give each row the outcome of its picture; a row whose id came before ends as `repeated_id`.

    Args:
        is_repeated: of each row, whether its id came before.
        asked: of each row, the number of its picture.
        outcomes: of the pictures.
    """
    return pc.if_else(is_repeated, REPEATED, outcomes.take(asked))


def write_outcomes(rows: Iterable[pa.RecordBatch], outcomes: pa.Array, path: Path) -> None:
    """Write down what became of each row, for those who want to help the failed ones.

    Args:
        rows: with the columns `id` and `place`, in the order of their places.
        outcomes: of all rows, in that order.
        path: of the parquet file, of schema OUTCOMES; the same outcomes give the same bytes.
    """
    with replacing(path) as scratch, pq.ParquetWriter(scratch, OUTCOMES) as writer:
        for batch in rows:
            codes = outcomes.slice(batch["place"][0].as_py(), len(batch))
            names = _NAMES.take(pc.subtract(codes, pa.scalar(1, pa.int8())))
            columns = [batch["id"].cast(pa.string()), names]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=OUTCOMES))


def count_outcomes(rows: pa.Array) -> dict[str, object]:
    """Count rows by outcome; every reason is named, so that runs can be compared.

    Args:
        rows: their outcomes, at least one.
    """
    counts = _counts(rows)
    fetched = sum(counts[source] for source in SOURCES)
    return {
        "rows": len(rows),
        "fetched": fetched,
        "yield": round(fetched / len(rows), 6),
        "by_source": {source: counts[source] for source in SOURCES},
        "failed": {reason: counts[reason] for reason in REASONS},
    }


def check_yield(rows: pa.Array, min_yield: float) -> None:
    """Stop if too few rows have a picture.

    Args:
        rows: their outcomes, at least one.
        min_yield: the share that must have one; one row at least must.

    Raises:
        ValueError: with the share, the limit and the most frequent outcomes.
    """
    counts = _counts(rows)
    failed = Counter({reason: counts[reason] for reason in REASONS if counts[reason]})
    fetched = len(rows) - failed.total()
    if fetched < min_yield * len(rows) or not fetched:
        most = ", ".join(f"{reason} {count:,}" for reason, count in failed.most_common(4))
        raise ValueError(
            f"only {fetched:,} of {len(rows):,} pictures ({fetched / len(rows):.1%}) were "
            f"fetched, less than download.min_yield = {min_yield} (failed most: {most}). "
            "Name a mirror, take a newer export, or lower the limit; what was fetched is kept"
        )


def _counts(rows: pa.Array) -> Counter[str]:
    entries = pc.value_counts(rows).to_pylist()
    return Counter({ENDS[entry["values"] - 1]: entry["counts"] for entry in entries})
