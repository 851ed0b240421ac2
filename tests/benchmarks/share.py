"""Time how a finished recipe travels: pushed to an S3 server on loopback, pulled by a fresh clone.

  python -m tests.benchmarks.share --recipe DIR --folder DIR

The first DIR holds the recipe, run and committed, as `tests.benchmarks.graph` leaves it; its own
config is not touched. The second, empty or new, comes to hold the server's files and the clones.
What is pulled must be up to date for DVC, and its report must be there. Prints Markdown.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bucket_server import s3_server

DVC = [sys.executable, "-m", "dvc"]
SHARE = [sys.executable, "-m", "stages.share"]


def clone(source: Path, folder: Path) -> Path:
    """Clone what Git has, with the bucket as its remote."""
    subprocess.run(["git", "clone", "--quiet", source, folder], check=True)
    remote = ["remote", "add", "--local", "--default", "storage", "s3://bucket/recipe"]
    call([*DVC, *remote], folder)
    return folder


def call(command: list[str], folder: Path) -> str:
    """Run a command that must succeed; give what it prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def timed(command: list[str], folder: Path, what: str, goal: str = "") -> str:
    """Run a command and print a row with its time; give what it prints."""
    began = time.perf_counter()
    said = call(command, folder)
    print(f"| {what} | {goal} | {time.perf_counter() - began:.1f} s |", flush=True)
    return said


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, required=True, metavar="DIR")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    recipe, folder = options.recipe.resolve(), options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print("| | goal | found |\n|---|---|---|")
    with pytest.MonkeyPatch.context() as patch, s3_server(folder / "s3", patch) as bucket:
        ours = clone(recipe, folder / "ours")
        call([*DVC, "cache", "dir", "--local", str(recipe / ".dvc/cache")], ours)
        timed([*SHARE, "push"], ours, "push into an empty bucket")
        store = bucket / "recipe/files"  # not the records of runs, nor what is the server's own
        files = [path.stat().st_size for path in store.rglob("*") if path.is_file()]
        print(f"| objects in the bucket | | {len(files):,}, {sum(files) / 1e6:,.0f} MB |")
        theirs = clone(recipe, folder / "theirs")
        timed([*SHARE, "pull"], theirs, "pull into a fresh clone, each object hashed", "60 s")
        if "up to date" not in timed([*DVC, "status"], theirs, "`dvc status` there"):
            sys.exit("the pulled recipe is not up to date")
        if "Running stage" in timed([*DVC, "repro"], theirs, "`dvc repro` there: nothing to do"):
            sys.exit("the pulled recipe ran a stage again")
        if not (theirs / "reports/site/index.html").is_file():
            sys.exit("the pulled recipe has no report")
        timed([*SHARE, "push"], ours, "push with nothing new")


if __name__ == "__main__":
    main()
