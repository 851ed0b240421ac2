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


@dataclass(frozen=True, slots=True)
class Judged:
    """What one batch came to."""

    read: int
    reasons: Counter[str]
    candidates: pa.RecordBatch  # of schema CANDIDATES
    counts: pa.Table  # of schema COUNTS; places are counted from the batch's start


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
    for found in (by_column, by_prompt):
        for entry in pc.value_counts(found.drop_null()).to_pylist():
            reasons[entry["values"]] += entry["counts"]
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
    return Judged(len(columns), reasons, candidates, _count(upscales["user"], left.take(fit)))


def _count(users: pa.Array, candidates: pa.Array) -> pa.Table:
    """Count upscales by user; a deleted user is many people, and nobody."""
    is_candidate = np.zeros(len(users), np.bool_)
    is_candidate[candidates.to_numpy()] = True
    is_known = pc.invert(pc.is_in(users, pa.array(["", DELETED_USER])))
    return count_users(users.filter(is_known), pa.array(is_candidate).filter(is_known), 0)
