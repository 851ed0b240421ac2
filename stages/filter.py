"""Keep the messages of an export that are fit to train on, and count why the others are not.

  --export FILE   the messages, as CSV, CSV.gz or parquet, in any layout known
  --out FILE      a parquet table with one row per pair of picture and caption
  --report FILE   a JSON file with the number of messages by reason

The columns of the table are id, url, caption, prompt, kind, version, aspect, user, timestamp.
`user` is a rank: 1 upscaled most. Nothing else of a user leaves this stage, except what
Midjourney writes into the picture's url.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.harness.files import replacing, write_json
from stages.harness.params import load_params
from stages.harness.paths import clear_errors, stage_paths
from stages.images.holdout import normalised_caption
from stages.midjourney.export import Export
from stages.midjourney.message import UPSCALE
from stages.midjourney.prompt import parse_prompt
from stages.midjourney.reject import (
    DELETED_USER,
    REASONS,
    FilterParams,
    column_reasons,
    prompt_reason,
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
    """What one batch, or all of them so far, came to."""

    candidates: list[pa.RecordBatch] = field(default_factory=list)  # of schema CANDIDATES
    reasons: Counter[str] = field(default_factory=Counter)
    upscales: Counter[str] = field(default_factory=Counter)  # by user, in order of appearance

    def add(self, other: "Judged") -> None:
        """Take in what a later batch came to."""
        self.candidates.extend(other.candidates)
        self.reasons.update(other.reasons)
        self.upscales.update(other.upscales)


def judge(messages: pa.RecordBatch, params: FilterParams) -> Judged:
    """Judge each message of a batch by itself; a pure function, so batches may go anywhere.

    Args:
        messages: of schema `export.MESSAGES`.
        params: the section `filter`.
    """
    judged = Judged()
    reasons = column_reasons(messages, params)
    for entry in pc.value_counts(reasons.drop_null()).to_pylist():
        judged.reasons[entry["values"]] = entry["counts"]
    upscaled = messages["user"].filter(pc.fill_null(pc.equal(messages["kind"], UPSCALE), False))
    for entry in pc.value_counts(upscaled).to_pylist():
        if entry["values"] not in ("", DELETED_USER):
            judged.upscales[entry["values"]] = entry["counts"]
    rows = []
    for message in messages.filter(reasons.is_null()).to_pylist():
        verdict = judge_prompt(message, params)
        if isinstance(verdict, str):
            judged.reasons[verdict] += 1
        else:
            rows.append(verdict)
    if rows:
        judged.candidates.append(pa.RecordBatch.from_pylist(rows, CANDIDATES))
    return judged


def judge_prompt(message: dict[str, Any], params: FilterParams) -> dict[str, str] | str:
    """Make a candidate of a message that its columns let pass, or give the reason against it."""
    prompt = parse_prompt(message["prompt"])
    sent_at: datetime | None = message["timestamp"]
    version = prompt.version(sent_at) or message["version"]
    if reason := prompt_reason(prompt, version, message["side_px"], params):
        return reason
    return {
        "id": message["id"] or id_from_url(message["url"]),
        "url": message["url"],
        "caption": prompt.caption,
        "prompt": prompt.text,
        "kind": message["kind"],
        "version": version or "",
        "aspect": prompt.aspect or "",
        "user": message["user"],
        "timestamp": sent_at.isoformat() if sent_at else "",
    }


def id_from_url(url: str) -> str:
    """Name a picture by Discord's attachment id, or by a hash of its address elsewhere."""
    parts = url.split("?")[0].split("/")
    if len(parts) > 2 and parts[-2].isdecimal():
        return parts[-2]
    return sha256(url.encode()).hexdigest()[:20]


def user_ranks(upscales: Counter[str]) -> dict[str, int]:
    """Rank users by upscales, most first, from 1; of equals, who appeared first."""
    ranked = sorted(upscales, key=lambda user: -upscales[user])
    return {user: rank for rank, user in enumerate(ranked, start=1)}


def choose_pairs(judged: Judged, params: FilterParams) -> tuple[pa.Table, Counter[str]]:
    """Apply the rules that need all messages: engagement, and one row per caption and user.

    Returns:
        The pairs, of schema PAIRS in the export's order, and the reasons against the rest.
    """
    ranks = user_ranks(judged.upscales)
    reasons: Counter[str] = Counter()
    seen: set[tuple[int, str]] = set()
    kept, users = [], []
    candidates = pa.Table.from_batches(judged.candidates, CANDIDATES)
    columns = (candidates["user"].to_pylist(), candidates["caption"].to_pylist())
    for row, (user, caption) in enumerate(zip(*columns, strict=True)):
        rank = ranks[user]
        key = (rank, normalised_caption(caption))
        if judged.upscales[user] < params.min_user_upscales:
            reasons["few_upscales"] += 1
        elif rank > params.top_users:
            reasons["not_a_top_user"] += 1
        elif params.one_row_per_caption_and_user and key in seen:
            reasons["repeated_caption"] += 1
        else:
            seen.add(key)
            kept.append(row)
            users.append(rank)
    pairs = candidates.take(pa.array(kept, pa.int64()))
    at = PAIRS.get_field_index("user")
    return pairs.set_column(at, PAIRS.field(at), pa.array(users, pa.int32())), reasons


def check_malformed(reasons: Counter[str], read: int, params: FilterParams, export: Path) -> None:
    """Stop if so many rows do not parse that the export is not what it seems.

    Raises:
        ValueError: with the share and the limit.
    """
    malformed = reasons["malformed"]
    if malformed > params.max_malformed_fraction * read:
        raise ValueError(
            f"{export}: {malformed:,} of {read:,} messages ({malformed / read:.1%}) are not "
            "what Midjourney's bot writes, more than filter.max_malformed_fraction = "
            f"{params.max_malformed_fraction}. Is this an export of a Midjourney channel? If so, "
            "raise the limit"
        )


def run(export: Path, out: Path, report: Path, params: FilterParams) -> None:
    """Filter one export.

    Raises:
        ValueError: if the layout is unknown, too many rows are malformed, or none is kept.
    """
    source = Export(export)
    judged, read = Judged(), 0
    for messages in source.messages():
        judged.add(judge(messages, params))
        read += len(messages)
    read += source.bad_rows
    judged.reasons["malformed"] += source.bad_rows
    if not read:
        raise ValueError(f"{export}: the export has a header and no rows")
    check_malformed(judged.reasons, read, params, export)
    pairs, reasons = choose_pairs(judged, params)
    reasons.update(judged.reasons)
    if not len(pairs):
        most = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common(4))
        raise ValueError(
            f"{export}: not one of {read:,} messages passed the filter (dropped most: {most}). "
            "Loosen the section filter in the params"
        )
    with replacing(out) as scratch:
        pq.write_table(pairs, scratch)
    counts = {reason: reasons[reason] for reason in REASONS}
    users = len(pc.unique(pairs["user"]))
    write_json(
        report,
        {"read": read, "kept": len(pairs), "users": users, "dropped": counts},
    )
    print(
        f"{export}: {source.layout.name}, {read:,} messages, kept {len(pairs):,} of {users} users"
    )


def main() -> None:
    """Run from the command line."""
    export, out, report, params = stage_paths(__doc__, "export", "out", "report")
    with clear_errors():
        run(export, out, report, load_params("filter", FilterParams, params))


if __name__ == "__main__":
    main()
