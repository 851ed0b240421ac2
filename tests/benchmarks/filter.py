"""Time the filter on an export of real size: ours, and plain queries of other engines.

  python -m tests.benchmarks.filter --folder DIR [--python PYTHON] [--messages N] [--repeats N]

Writes a seeded export into DIR once, then runs whole processes one after another in this call, for
absolute times drift; look at the ratios. PYTHON is that of an environment with duckdb, polars,
pandas and pyarrow; without it only ours is timed. Ours reads the full grammar and counts every
reason; the others answer the question alone (filter_engines.py says what they leave out), and
their rows are compared with ours.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from tests.benchmarks.export_writer import write_export
from tests.benchmarks.timing import Run, timed

ENGINES = ("duckdb", "duckdb_by_date", "polars", "pyarrow", "pandas")
PACKAGES = ("duckdb", "polars", "pyarrow", "pandas")
QUERIES = Path(__file__).with_name("filter_engines.py")
PROFILE = Path("profiles/sd15.yaml")
COLUMNS = ["id", "user", "caption"]


def median(runs: list[Run]) -> Run:
    """Take the median time, and the largest peak."""
    return Run(
        statistics.median(r.seconds for r in runs),
        max(r.peak_mb for r in runs),
        statistics.median(r.cpu_seconds for r in runs),
    )


def versions(python: str) -> str:
    """Name the engines' versions."""
    code = "import importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in %r), sep=', ')"
    done = subprocess.run(
        [python, "-c", code % (PACKAGES,)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR")
    parser.add_argument("--python", metavar="PYTHON")
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--messages", type=int, default=3_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    export = folder / f"{options.messages}.csv"
    if not export.is_file():
        write_export(export, options.messages)
    print(
        f"{export.stat().st_size / 1e9:.2f} GB, {options.messages:,} messages; "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"pyarrow {importlib.metadata.version('pyarrow')}"
    )
    out, report = folder / "pairs.parquet", folder / "report.json"
    stage: list[str | Path] = [
        sys.executable,
        "-m",
        "stages.filter",
        "--export",
        export,
        "--out",
        out,
    ]
    commands: dict[str, list[str | Path]] = {
        "ours": [*stage, "--report", report, "--funnel", folder / "funnel.csv", "--params", PROFILE]
    }
    if options.python:
        print(f"theirs: {versions(options.python)}")
        for engine in options.engines:
            theirs: list[str | Path] = [
                options.python,
                QUERIES,
                engine,
                export,
                folder / f"{engine}.parquet",
            ]
            commands[engine] = theirs
    with export.open("rb", buffering=0) as file:
        while file.read(1 << 22):  # into the cache, if it fits there
            pass
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(options.repeats):
        for name, command in commands.items():
            runs[name].append(timed(command))
    ours = median(runs["ours"])
    wanted = pq.read_table(out, columns=COLUMNS).to_pylist()
    for name in commands:
        run = median(runs[name])
        line = f"{name}: {run.seconds:.2f} s, {run.cpu_seconds:.2f} s of CPU, {run.peak_mb:.0f} MB"
        if name != "ours":
            rows = pq.read_table(folder / f"{name}.parquet", columns=COLUMNS).to_pylist()
            line += f"; ours takes {ours.seconds / run.seconds:.2f} x its time"
            line += f" and {ours.cpu_seconds / run.cpu_seconds:.2f} x its CPU time"
            line += f"; the same {len(rows):,} rows: {rows == wanted}"
        print(f"{line} ({', '.join(f'{r.seconds:.2f}' for r in runs[name])})", flush=True)


if __name__ == "__main__":
    main()
