"""Keep the messages of an export that are fit to train on, and count why the others are not.

  --export PATH   the messages: a file, a folder of files, or a pattern as 'data/export/*.csv'
  --out FILE      a parquet table with one row per pair of picture and caption
  --report FILE   a JSON file with the number of messages by reason
  --funnel FILE   a CSV file with the number that each reason left, for a plot

Messages come as CSV, CSV.gz, CSV.zst or parquet, in any layout known.

The columns of the table are id, url, caption, prompt, kind, version, aspect, user, timestamp.
`user` is a rank: 1 upscaled most. Nothing else of a user leaves this stage, except what
Midjourney writes into the picture's url.
"""

import csv
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from itertools import accumulate
from operator import sub
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.harness.files import replacing, write_json
from stages.harness.params import load_params
from stages.harness.paths import clear_errors, stage_paths
from stages.harness.progress import Progress
from stages.images.holdout import normalised_caption
from stages.midjourney.engagement import COUNTS, Engagement, noting_curve, top_users
from stages.midjourney.export import Export, export_files
from stages.midjourney.judge import CANDIDATES, PAIRS, judge, without_repeated
from stages.midjourney.reject import REASONS, FilterParams
from stages.midjourney.repeated import SeenIds

ROW_GROUP = 1 << 17  # pairs
Item = TypeVar("Item")
Result = TypeVar("Result")


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
    seen: set[bytes] = set()  # of a million, 0.1 GB
    for batch in candidates:
        places = pc.index_in(batch["user"], users)
        kept = batch.filter(places.is_valid())
        ranks = pc.cast(pc.add(places.drop_null(), 1), pa.int32())
        if params.one_row_per_caption_and_user:
            is_new = []
            for rank, caption in zip(ranks.to_pylist(), kept["caption"].to_pylist(), strict=True):
                key = sha256(f"{rank} {normalised_caption(caption)}".encode()).digest()[:16]
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
        self.seen = SeenIds()

    def file(self, export: Export, params: FilterParams, progress: Progress) -> None:
        """Judge the messages of a file."""
        work = partial(judge, layout=export.layout, params=params)
        done_mb = progress.done
        for alone in in_order(work, export.batches(), os.cpu_count() or 1):
            judged = without_repeated(alone, self.seen.came_before(alone.upscales["id"]))
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


def run(export: Path, out: Path, report: Path, funnel: Path, params: FilterParams) -> None:
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
    write_funnel(read, counts, funnel)
    layouts = ", ".join(dict.fromkeys(file.layout.name for file in files))
    print(f"{export}: {layouts}, {read:,} messages, kept {kept:,} of {len(users)} users")


def write_funnel(read: int, dropped: Mapping[str, int], path: Path) -> None:
    """Write how many messages each reason left, in the order in which reasons are looked for.

    Args:
        read: how many there were.
        dropped: the number by reason, in that order.
        path: of the CSV file; its columns are `after` and `messages`.
    """
    left = accumulate(dropped.values(), sub, initial=read)
    with replacing(path) as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["after", "messages"])
        writer.writerows(zip(["read", *dropped], left, strict=True))


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
    export, out, report, funnel, params = stage_paths(__doc__, "export", "out", "report", "funnel")
    with clear_errors():
        run(export, out, report, funnel, load_params("filter", FilterParams, params))


if __name__ == "__main__":
    main()
