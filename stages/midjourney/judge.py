"""From a batch of an export to the messages in it that may be pairs, and why the others not."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.midjourney.columns import has_link, ids, iso_dates
from stages.midjourney.engagement import count_users
from stages.midjourney.layout import Layout
from stages.midjourney.prompt import parse_prompts, versions
from stages.midjourney.reject import (
    DELETED_USER,
    FilterParams,
    kind_reason,
    prompt_reasons,
    upscale_reasons,
)
from stages.midjourney.repeated import id_numbers

PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("prompt", pa.string()),
        ("kind", pa.string()),
        ("version", pa.string()),
        ("aspect", pa.string()),  # width:height, as asked for
        ("user", pa.int32()),  # rank by number of upscales, from 1
        ("timestamp", pa.string()),  # ISO 8601, UTC; empty if the export does not tell
    ]
)
CANDIDATES = PAIRS.set(PAIRS.get_field_index("user"), pa.field("user", pa.string()))
UPSCALES = pa.schema(
    [
        ("id", pa.uint64()),  # of the message; null if the export does not tell, or nobody counts
        ("user", pa.string()),
        ("reason", pa.string()),  # null: a candidate
    ]
)


@dataclass(frozen=True, slots=True)
class Judged:
    """What one batch came to."""

    read: int
    reasons: Counter[str]
    candidates: pa.RecordBatch  # of schema CANDIDATES
    counts: pa.Table  # of schema COUNTS; places are counted from the batch's start
    upscales: pa.RecordBatch  # of schema UPSCALES


def judge(columns: pa.RecordBatch, layout: Layout, params: FilterParams) -> Judged:
    """Judge each message of a batch by itself; a pure function, so batches may go anywhere.

    What costs most is done for the rows that are left: of a hundred messages, thirty are
    upscales, and four of these raw.

    Args:
        columns: of the layout.
        layout: of the export.
        params: the section `filter`.
    """
    posts = layout.posts(columns)
    reasons: Counter[str] = Counter()
    for kind, count in posts.kinds.items():
        if count and (reason := kind_reason(kind)):
            reasons[reason] += count
    upscales, rows = posts.messages, pa.array(posts.rows)
    by_column = upscale_reasons(upscales, has_link(columns[layout.link]).take(rows), params)
    left = pc.indices_nonzero(by_column.is_null())
    raws, facts = upscales.take(left), layout.facts(columns.take(rows.take(left)))
    prompts = parse_prompts(raws["prompt"])
    version = versions(
        prompts["version"], prompts["is_version_told"], facts["timestamp"], facts["version"]
    )
    by_prompt = prompt_reasons(prompts, version, facts["side_px"], params)
    found = pc.replace_with_mask(by_column, by_column.is_null(), by_prompt)
    reasons.update(_by_reason(found))
    fit = pc.indices_nonzero(by_prompt.is_null())
    raws, facts, prompts = (batch.take(fit) for batch in (raws, facts, prompts))
    candidates = pa.RecordBatch.from_arrays(
        [
            ids(facts["id"], facts["url"]),
            facts["url"],
            prompts["caption"],
            raws["prompt"],
            raws["kind"],
            pc.fill_null(version.take(fit), ""),
            pc.fill_null(prompts["aspect"], ""),
            raws["user"],
            iso_dates(facts["timestamp"]),
        ],
        schema=CANDIDATES,
    )
    counted = pa.RecordBatch.from_arrays(
        [_message_ids(columns, layout, rows, upscales["user"]), upscales["user"], found],
        schema=UPSCALES,
    )
    return Judged(len(columns), reasons, candidates, _count(counted), counted)


def without_repeated(judged: Judged, is_repeated: np.ndarray) -> Judged:
    """Drop upscales whose message came before: whatever else they are, they count once.

    Args:
        judged: a batch.
        is_repeated: a truth for each of its upscales.
    """
    if not is_repeated.any():
        return judged
    was_candidate = judged.upscales["reason"].is_null().to_numpy(zero_copy_only=False)
    dropped = judged.upscales.filter(pa.array(is_repeated))
    upscales = judged.upscales.filter(pa.array(~is_repeated))
    reasons = judged.reasons.copy()
    reasons.subtract(_by_reason(dropped["reason"]))
    reasons["repeated_message"] += len(dropped)
    candidates = judged.candidates.filter(pa.array(~is_repeated[was_candidate]))
    return Judged(judged.read, reasons, candidates, _count(upscales), upscales)


def _by_reason(reasons: pa.Array) -> dict[str, int]:
    entries = pc.value_counts(reasons.drop_null()).to_pylist()
    return {entry["values"]: entry["counts"] for entry in entries}


def _message_ids(
    columns: pa.RecordBatch, layout: Layout, rows: pa.Array, users: pa.Array
) -> pa.Array:
    if layout.message_id is None:
        return pa.nulls(len(rows), pa.uint64())
    ids = id_numbers(columns[layout.message_id].take(rows))
    return pc.if_else(_is_known(users), ids, None)


def _is_known(users: pa.Array) -> pa.Array:
    """Tell who is somebody; a deleted user is many people, and nobody."""
    return pc.invert(pc.is_in(users, pa.array(["", DELETED_USER])))


def _count(upscales: pa.RecordBatch) -> pa.Table:
    """Count upscales by user, where one is known."""
    known = upscales.filter(_is_known(upscales["user"]))
    return count_users(known["user"], known["reason"].is_null(), 0)
