"""Fetch the picture of each pair, verify it, and write WebDataset shards.

  --pairs FILE     the table that stages.filter wrote
  --out DIR        becomes a folder of shards 00000.tar ... (picture, .txt caption, .json facts)
  --report FILE    a JSON file with the number of rows by outcome
  --outcomes FILE  a parquet table of each row's id and outcome: fetched_… or why it failed

Mirrors (folders or addresses that hold the path of a link) are asked first, then, if the params
say so and acknowledge the terms, the link itself. Shards are written while pictures come. What
the network gave is kept in .work/download, so that a download that was killed goes on where it
was; start it again with the same command.
"""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.harness.counted import counted
from stages.harness.files import sha256_json, write_json
from stages.harness.params import load_params
from stages.harness.paths import clear_errors, stage_paths
from stages.harness.progress import Progress
from stages.harness.scratch import exclusive, replacing_folder, work_dir
from stages.images.arrivals import Arrivals
from stages.images.download_params import DownloadParams
from stages.images.fetch import fetch_all
from stages.images.kept import Kept, Packed
from stages.images.mirror import check_mirrors
from stages.images.outcome import Fetched
from stages.images.pairs import Pairs, count_pairs, read_pairs
from stages.images.shards import Sample, write_shards
from stages.images.tally import check_yield, count_outcomes, row_outcomes, write_outcomes

SHARED_FACTS = ("user", "version", "aspect")  # no url: it holds its user's name
OBJECTS_AT_ONCE = 1024  # rows as objects of Python, each far larger than its bytes


def samples(pairs: Pairs, arrivals: Arrivals, kept: Kept) -> Iterator[Sample]:
    """Join rows and pictures, in the order of the rows, as soon as the pictures come.

    Args:
        pairs: in the order of their ids.
        arrivals: the outcomes of the pictures that they ask for.
        kept: what earlier rows packed.
    """
    for shelf in pairs.rows.batches():
        for pair in _objects(shelf):
            if pairs.is_repeated[pair["place"]]:
                continue
            outcome = arrivals.take(pairs.asked[pair["place"]])
            if isinstance(outcome, Fetched):
                # of two rows with one picture, the first took it into its shard
                if outcome.parts is None and (packed := kept.packed(outcome.kept_as)):
                    path = kept.packs / packed.pack
                    outcome = replace(outcome, path=path, at=packed.at, size=packed.size)
                facts = {name: pair[name] for name in SHARED_FACTS}
                yield Sample(pair["id"], pair["caption"], outcome, facts)


def _objects(rows: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    for first in range(0, len(rows), OBJECTS_AT_ONCE):
        yield from rows.slice(first, OBJECTS_AT_ONCE).to_pylist()


def pack(pairs: Pairs, arrivals: Arrivals, kept: Kept, shard_size: int) -> Path:
    """Write shards while pictures come; each is kept in its shard from then on.

    Returns:
        The folder of shards, in the scratch.
    """
    try:
        folder = kept.begin_packs()

        def written(sample: Sample, shard: Path, at: int, size: int) -> None:
            fetched = sample.fetched
            before = kept.packed(fetched.kept_as)
            is_here = before and before.pack.startswith(f"{folder.name}/")
            if fetched.kept_as and not is_here:
                name = f"{folder.name}/{shard.name}"
                packed = Packed(name, at, size, fetched.original_size, fetched.picture)
                kept.pack(fetched.kept_as, packed)

        write_shards(samples(pairs, arrivals, kept), folder, shard_size, written)
    except BaseException as error:
        arrivals.stop(error)
        raise
    return folder


def publish(packs: Path, folder: Path) -> int:
    """Give the shards their place, as second names where the disk allows it.

    Returns:
        The number of shards.
    """
    shards = sorted(packs.iterdir())
    for shard in shards:
        try:
            (folder / shard.name).hardlink_to(shard)
        except OSError:
            shutil.copyfile(shard, folder / shard.name)
    return len(shards)


def run(
    pairs: Path,
    out: Path,
    report: Path,
    outcomes: Path,
    params: DownloadParams,
    work: Path | None = None,
) -> None:
    """Download the pictures of one table of pairs.

    Args:
        pairs: parquet, with pairs.COLUMNS.
        out: a folder of shards of an earlier run is replaced.
        report: JSON.
        outcomes: parquet, by the order of the ids.
        params: the section `download`.
        work: scratch that outlives the process; by default `.work/download`.

    Raises:
        ValueError: if the table is not one of pairs, or too few pictures are fetched.
        OSError: if a mirror is missing, another process is at the same work, or the disk is full.
    """
    rows = count_pairs(pairs)
    check_mirrors(params.mirrors)
    work = work or work_dir("download")
    network = [f"their links, {params.connections} at once"] if params.use_links else []
    sources = ", then ".join([*params.mirrors, *network])
    print(f"{pairs}: {rows:,} pictures wanted, from {sources}", flush=True)
    with exclusive(work), replacing_folder(out, "*.tar") as shards:
        kept = Kept(work, pass_name(params))
        table = read_pairs(pairs, work / "rows")
        progress = Progress("download", table.pictures)
        arrivals = Arrivals(table.takers())
        with ThreadPoolExecutor(1) as thread:
            packing = thread.submit(pack, table, arrivals, kept, params.shard_size)
            try:
                fetch_all(table.links, kept, params, progress.advance, arrivals)
            except BaseException as error:
                arrivals.stop(error)
                raise
            packs = packing.result()
        progress.close()
        columns = (table.is_repeated, table.asked, arrivals.codes)
        ends = row_outcomes(*map(pa.array, columns))
        # these two also if the yield is too low, and a person looks why and tries again
        write_outcomes(table.rows.batches(), ends, outcomes)
        kept.end_pass()
        shutil.rmtree(work / "rows")
        check_yield(ends, params.min_yield)
        count = publish(packs, shards)
        kept.drop_dead_packs()
    counts = count_outcomes(ends)
    size = sum(shard.stat().st_size for shard in out.iterdir())
    write_json(report, counts | {"shards": count, "bytes": size})
    packed = counted(count, "shard")
    print(f"{out}: {counts['fetched']:,} pictures in {packed}, {size / 1e6:,.1f} MB")


def pass_name(params: DownloadParams) -> str:
    """Name a pass by the params that decide whether a link fails for good."""
    limits = (params.max_bytes, params.max_pixels, params.min_side_px)
    return sha256_json([*limits, params.allow_private_addresses])[:16]


def main() -> None:
    """Run from the command line."""
    # Arrow's own allocator keeps for each thread what that thread gave back: 50 MB in all
    pa.set_memory_pool(pa.system_memory_pool())
    names = "pairs", "out", "report", "outcomes"
    pairs, out, report, outcomes, params = stage_paths(__doc__, *names)
    with clear_errors():
        run(pairs, out, report, outcomes, load_params("download", DownloadParams, params))


if __name__ == "__main__":
    main()
