"""Keep the messages of an export that are fit to train on, and count why the others are not.

  --export PATH   the messages: a file, a folder of files, or a pattern as 'data/export/*.csv'
  --out FILE      a parquet table with one row per pair of picture and caption
  --report FILE   a JSON file with the number of messages by reason

Messages come as CSV, CSV.gz, CSV.zst or parquet, in any layout known.

The columns of the table are id, url, caption, prompt, kind, version, aspect, user, timestamp.
`user` is a rank: 1 upscaled most. Nothing else of a user leaves this stage, except what
Midjourney writes into the picture's url.
"""

import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.harness.files import replacing, write_json
from stages.harness.params import load_params
from stages.harness.paths import clear_errors, stage_paths
from stages.harness.progress import Progress
from stages.images.holdout import normalised_caption
from stages.midjourney.engagement import COUNTS, Engagement, count_users, noting_curve, top_users
from stages.midjourney.export import Export, Layout, export_files, has_link
from stages.midjourney.message import slices, string_buffers
from stages.midjourney.prompt import parse_prompts, versions
from stages.midjourney.reject import (
    DELETED_USER,
    REASONS,
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
ROW_GROUP = 1 << 17  # pairs
Item = TypeVar("Item")
Result = TypeVar("Result")


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
    by_column = upscale_reasons(upscales, has_link(columns[layout.link].take(rows)), params)
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


def iso_dates(timestamps: pa.Array) -> pa.Array:
    """Write dates as ISO 8601; empty if there is none."""
    written = pc.cast(pc.cast(timestamps, pa.timestamp("s")), pa.string())
    dashed = pc.replace_substring(written, " ", "T", max_replacements=1)
    return pc.fill_null(pc.binary_join_element_wise(dashed, "+00:00", ""), "")


def ids(message_ids: pa.Array, urls: pa.Array) -> pa.Array:
    """Name pictures by their message, else by Discord's attachment id, else by their address."""
    known = pc.if_else(pc.equal(message_ids, ""), attachment_ids(urls), message_ids)
    unknown = known.is_null()
    hashed = [sha256(url.encode()).hexdigest()[:20] for url in urls.filter(unknown).to_pylist()]
    return pc.replace_with_mask(known, unknown, pa.array(hashed, pa.string()))


def attachment_ids(urls: pa.Array) -> pa.Array:
    """Read the number before the file's name; null if there is none."""
    at = pc.find_substring_regex(urls, r"/\d+/[^/?]*(?:\?|\z)").to_numpy()
    query_at = pc.find_substring(urls, "?").to_numpy()
    offsets, _ = string_buffers(urls)
    starts, ends = offsets[:-1], offsets[1:]
    found = (at >= 0) & ((query_at < 0) | (query_at > at))
    named = slices(urls, np.where(found, starts + at + 1, ends), ends)
    offsets, _ = string_buffers(named)
    lengths = np.maximum(pc.find_substring(named, "/").to_numpy(), 0)
    number = slices(named, offsets[:-1], offsets[:-1] + lengths)
    return pc.if_else(pa.array(found), number, None)


def choose_pairs(
    candidates: Iterable[pa.RecordBatch], best: pa.Table, params: FilterParams, tally: Counter[str]
) -> Iterator[pa.RecordBatch]:
    """Apply the rules that need all messages: engagement, and one row per caption and user.

    Args:
        candidates: in the export's order.
        best: the users to keep, first of rank 1.
        params: the section `filter`.
        tally: repeated captions are counted there.

    Yields:
        The pairs, of schema PAIRS in the export's order.
    """
    users = best["user"].combine_chunks()
    seen: set[tuple[int, bytes]] = set()
    for batch in candidates:
        places = pc.index_in(batch["user"], users)
        kept = batch.filter(places.is_valid())
        ranks = pc.cast(pc.add(places.drop_null(), 1), pa.int32())
        if params.one_row_per_caption_and_user:
            is_new = []
            for rank, caption in zip(ranks.to_pylist(), kept["caption"].to_pylist(), strict=True):
                key = rank, sha256(normalised_caption(caption).encode()).digest()[:16]
                is_new.append(key not in seen)
                seen.add(key)
            tally["repeated_caption"] += is_new.count(False)
            mask = pa.array(is_new, pa.bool_())
            kept, ranks = kept.filter(mask), ranks.filter(mask)
        columns = [ranks if name == "user" else kept[name] for name in PAIRS.names]
        yield pa.RecordBatch.from_arrays(columns, schema=PAIRS)


def write_pairs(pairs: Iterable[pa.RecordBatch], path: Path) -> int:
    """Write pairs in large row groups; the same pairs give the same bytes.

    Returns:
        How many there are.
    """
    count, held = 0, PAIRS.empty_table()
    with replacing(path) as scratch, pq.ParquetWriter(scratch, PAIRS) as writer:
        for batch in pairs:
            held = pa.concat_tables([held, pa.Table.from_batches([batch])])
            while len(held) >= ROW_GROUP:
                writer.write_table(held[:ROW_GROUP].combine_chunks())
                count, held = count + ROW_GROUP, held[ROW_GROUP:]
        if len(held) or not count:
            writer.write_table(held.combine_chunks())
    return count + len(held)


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Map in threads, a few items ahead; results come in the order of the items."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        try:
            for item in items:
                waiting.append(threads.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


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


class Scan:
    """One pass over all files: candidates go to a nameless file, counts to `engagement`."""

    def __init__(self, engagement: Engagement, spool: pa.NativeFile) -> None:
        """Start at nothing read."""
        self.engagement = engagement
        self.candidates = pa.ipc.new_stream(spool, CANDIDATES)
        self.read = 0
        self.reasons: Counter[str] = Counter()

    def file(self, export: Export, params: FilterParams, progress: Progress) -> None:
        """Judge the messages of a file."""
        work = partial(judge, layout=export.layout, params=params)
        done_mb = progress.done
        for judged in in_order(work, export.batches(), os.cpu_count() or 1):
            first = pa.scalar(self.read, pa.int64())
            places = pc.add(judged.counts["first"], first)
            self.engagement.add(judged.counts.set_column(3, COUNTS.field(3), places))
            if len(judged.candidates):
                self.candidates.write_batch(judged.candidates)
            self.reasons.update(judged.reasons)
            self.read += judged.read
            progress.advance(done_mb + export.read_mb - progress.done)
        self.read += export.bad_rows
        self.reasons["malformed"] += export.bad_rows


def run(export: Path, out: Path, report: Path, params: FilterParams) -> None:
    """Filter one export.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the layout is unknown, too many rows are malformed, or none is kept.
    """
    files = [Export(path) for path in export_files(export)]
    total_mb = sum(file.total_mb for file in files)
    print(f"{export}: {len(files)} file(s) to read, {total_mb:,} MB", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress("filter, MB", total_mb)
    with tempfile.TemporaryFile(dir=out.parent) as spool, Engagement(out.parent) as engagement:
        scan = Scan(engagement, pa.PythonFile(spool, "w"))
        for file in files:
            scan.file(file, params, progress)
        progress.close()
        scan.candidates.close()
        reasons, read = scan.reasons, scan.read
        if not read:
            raise ValueError(f"{export}: the export has a header and no rows")
        check_malformed(reasons, read, params, export)
        curve: Counter[int] = Counter()
        parts = noting_curve(engagement.by_part(), curve)
        best, few = top_users(parts, params.top_users, params.min_user_upscales)
        spool.seek(0)
        candidates = pa.ipc.open_stream(spool)
        found = read - reasons.total()
        pairs = choose_pairs(candidates, best, params, reasons)
        first = next((batch for batch in pairs if len(batch)), None)
        reasons["few_upscales"] = few
        reasons["not_a_top_user"] = found - few - (pc.sum(best["candidates"]).as_py() or 0)
        if first is None:
            most = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common(4))
            raise ValueError(
                f"{export}: not one of {read:,} messages passed the filter (dropped most: {most}). "
                "Loosen the section filter in the params"
            )
        users: set[int] = set()
        kept = write_pairs(_noting_users(_chain(first, pairs), users), out)
    counts = {reason: reasons[reason] for reason in REASONS}
    summary = {"read": read, "kept": kept, "users": len(users), "dropped": counts}
    write_json(report, summary | {"users_by_upscales": _span_names(curve)})
    layouts = ", ".join(dict.fromkeys(file.layout.name for file in files))
    print(f"{export}: {layouts}, {read:,} messages, kept {kept:,} of {len(users)} users")


def _span_names(curve: Counter[int]) -> dict[str, int]:
    """Write powers of two as the spans that they begin."""
    return {f"{n} to {2 * n - 1}" if n > 1 else "1": curve[n] for n in sorted(curve)}


def _chain(first: pa.RecordBatch, others: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from others


def _noting_users(pairs: Iterable[pa.RecordBatch], users: set[int]) -> Iterator[pa.RecordBatch]:
    for batch in pairs:
        users.update(pc.unique(batch["user"]).to_pylist())
        yield batch


def main() -> None:
    """Run from the command line."""
    export, out, report, params = stage_paths(__doc__, "export", "out", "report")
    with clear_errors():
        run(export, out, report, load_params("filter", FilterParams, params))


if __name__ == "__main__":
    main()
