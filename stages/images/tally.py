"""What became of the rows of a table of pairs: from columns of outcomes to columns and counts."""

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from stages.images.outcome import REASONS, Fetched, Outcome

OUTCOMES = pa.schema(
    [
        ("source", pa.string()),  # of the picture; null: there is none
        ("reason", pa.string()),  # why there is none, one of outcome.REASONS; null: it is there
    ]
)


def outcome_columns(outcomes: Mapping[str, Outcome]) -> tuple[pa.Array, pa.RecordBatch]:
    """Give the links that were asked, and of schema OUTCOMES what came of each."""
    found = outcomes.values()
    sources = [outcome.source if isinstance(outcome, Fetched) else None for outcome in found]
    reasons = [None if isinstance(outcome, Fetched) else outcome.reason for outcome in found]
    columns = [pa.array(sources, pa.string()), pa.array(reasons, pa.string())]
    return pa.array(outcomes, pa.string()), pa.RecordBatch.from_arrays(columns, schema=OUTCOMES)


def row_outcomes(
    ids: pa.Array, asked: pa.Array, links: pa.Array, outcomes: pa.RecordBatch
) -> pa.RecordBatch:
    """Give each row the outcome of its link; a row whose id came before ends as `repeated_id`.

    Args:
        ids: of the rows, sorted.
        asked: of each row, the link that was asked for its picture.
        links: different ones, all of `asked` among them.
        outcomes: of these links, of schema OUTCOMES.

    Returns:
        Of schema OUTCOMES, a row for each id.
    """
    found = outcomes.take(pc.index_in(asked, links))
    is_first = pc.not_equal(ids[1:], ids[:-1])
    is_repeated = pc.invert(pa.concat_arrays([pa.array([True])[: len(ids)], is_first]))
    columns = [
        pc.if_else(is_repeated, None, found["source"]),
        pc.if_else(is_repeated, "repeated_id", found["reason"]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=OUTCOMES)


def count_outcomes(rows: pa.RecordBatch) -> dict[str, object]:
    """Count rows by outcome; every reason is named, so that runs can be compared.

    Args:
        rows: of schema OUTCOMES, at least one.
    """
    sources, failed = _counts(rows["source"]), _counts(rows["reason"])
    fetched = sources.total()
    return {
        "rows": len(rows),
        "fetched": fetched,
        "yield": round(fetched / len(rows), 6),
        "by_source": {source: sources[source] for source in ("mirror", "link")},
        "failed": {reason: failed[reason] for reason in REASONS},
    }


def check_yield(rows: pa.RecordBatch, min_yield: float) -> None:
    """Stop if too few rows have a picture.

    Args:
        rows: of schema OUTCOMES, at least one.
        min_yield: the share that must have one; one row at least must.

    Raises:
        ValueError: with the share, the limit and the most frequent outcomes.
    """
    failed = _counts(rows["reason"])
    fetched = len(rows) - failed.total()
    if fetched < min_yield * len(rows) or not fetched:
        most = ", ".join(f"{reason} {count:,}" for reason, count in failed.most_common(4))
        raise ValueError(
            f"only {fetched:,} of {len(rows):,} pictures ({fetched / len(rows):.1%}) were "
            f"fetched, less than download.min_yield = {min_yield} (failed most: {most}). "
            "Name a mirror, take a newer export, or lower the limit; what was fetched is kept"
        )


def _counts(texts: pa.Array) -> Counter[str]:
    entries = pc.value_counts(texts.drop_null()).to_pylist()
    return Counter({entry["values"]: entry["counts"] for entry in entries})
