"""Kill the download and the trainer at random moments, many times, and compare what comes out.

  python -m tests.benchmarks.faults [--kills 200] [--seed 1]

Half of the kills go to each stage. For each, the stage starts with nothing, gets SIGKILL at a
moment drawn evenly from the time that it takes unbroken, and runs again with the same command: it
must then end well, with the hashes of the unbroken run, and leave no half-written file. Pictures
come from a server on loopback, networks are tiny and random. The stages run in forks of a process
that has imported them already, so that no kill is spent on Python's start.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
import yaml

from stages import download, split, train
from stages.diffusion.model import save_single_file
from stages.harness.files import sha256_file, sha256_json
from tests.image_server import ImageServer, serving
from tests.test_download import PARAMS as DOWNLOAD
from tests.test_download import write_pairs
from tests.tiny_sd import make_tiny_sd
from tests.tiny_training import PARAMS as TRAIN

PICTURES = 48
DELAY_S = 0.02  # of the server's answers
PRELOADED = ["stages.download", "stages.train", "stages.training.loop"]
TOLD_EVERY = 20
LIMIT_S = 300.0  # for one run, on a machine however busy
# In one thread: the bits of a sum depend on their number.
context = get_context("forkserver")


@dataclass(frozen=True, slots=True)
class Job:
    """A stage's command line, and what it makes."""

    name: str
    main: Callable[[list[str]], None]
    arguments: tuple[str, ...]
    made: tuple[str, ...]  # files and folders, from where it runs


def download_main(arguments: list[str]) -> None:
    """Call the stage's entry point, which reads the process's own arguments."""
    sys.argv = ["stages.download", *arguments]
    download.main()


DOWNLOAD_JOB = Job(
    "download",
    download_main,
    (
        *("--pairs", "pairs.parquet", "--out", "images"),
        *("--report", "download.json", "--outcomes", "outcomes.parquet"),
    ),
    ("images", "download.json", "outcomes.parquet"),
)
TRAIN_JOB = Job(
    "train",
    train.main,
    (
        *("16", "--base", "base.safetensors", "--config", "config"),
        *("--train", "train.parquet", "--validation", "validation.parquet"),
        *("--out", "weights", "--report", "losses"),
    ),
    ("weights", "losses"),
)


def work(job: Job, folder: Path) -> None:
    """Run a stage in this process, in a folder."""
    os.chdir(folder)
    torch.set_num_threads(1)
    with Path("log").open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        job.main(list(job.arguments))


def run_for(job: Job, folder: Path, seconds: float) -> int | None:
    """Start a stage and kill it after a time.

    Returns:
        Its exit status; None if it had to be killed.
    """
    process = context.Process(target=work, args=(job, folder))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    return None if process.exitcode == -9 else process.exitcode


def finish(job: Job, folder: Path, what: str) -> None:
    """Run a stage to its end."""
    status = run_for(job, folder, LIMIT_S)
    if status != 0:
        log = (folder / "log").read_text()[-2000:]
        sys.exit(f"{job.name}, {what}: ended with {status}\n{log}\nin {folder}")


def made(job: Job, folder: Path) -> str:
    """Hash all that a stage makes, by name and bytes."""
    files = [file for name in job.made for file in sorted((folder / name).rglob("*"))]
    files += [folder / name for name in job.made]
    return sha256_json(
        {str(f.relative_to(folder)): sha256_file(f) for f in files if f.is_file()},
    )


def begin(source: Path, folder: Path) -> None:
    """Make a folder with a stage's inputs; nothing of an earlier round is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)


def rounds(job: Job, source: Path, folder: Path, kills: int, moments: random.Random) -> None:
    """Kill a stage and let it recover, so many times; stop at the first difference."""
    for _ in range(2):  # the first one starts the process that the others are forks of
        begin(source, folder)
        started = time.monotonic()
        finish(job, folder, "unbroken")
        took_s = time.monotonic() - started
    wanted = made(job, folder)
    done, late, had_published = 0, 0, 0
    began = time.monotonic()
    while done < kills:
        begin(source, folder)
        moment_s = moments.uniform(0.0, took_s)
        if run_for(job, folder, moment_s) is not None:
            late += 1  # it was quicker than the unbroken run: no kill
            continue
        had_published += (folder / job.made[0]).exists()
        finish(job, folder, f"kill {done} after {moment_s:.3f} s")
        if made(job, folder) != wanted:
            sys.exit(f"{job.name}, kill {done} after {moment_s:.3f} s: other bytes, in {folder}")
        if halves := sorted(folder.rglob("*.partial")):
            sys.exit(f"{job.name}, kill {done} after {moment_s:.3f} s: left {halves[0]}")
        done += 1
        if done % TOLD_EVERY == 0:
            print(f"{job.name}: {done} kills, all alike", flush=True)
    print(
        f"{job.name}: {took_s:.2f} s unbroken; {done} kills, {done} recoveries with equal hashes, "
        f"{had_published} after it had published, {late} ended before their moment; "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )


def make_inputs(folder: Path, server: ImageServer) -> None:
    """Write what both stages read: pairs, params, and a tiny base."""
    links = {f"picture{i:03}": server.link(f"part-{i:03}") for i in range(PICTURES)}
    write_pairs(folder / "pairs.parquet", links)
    fetching = replace(DOWNLOAD, timeout_s=10.0, shard_size=16)
    params = {
        "download": {**asdict(fetching), "mirrors": []},
        "split": {"validation_fraction": 0.15, "seed": 1},
        "train": {"16": asdict(TRAIN)},
    }
    params["train"]["16"]["samples"]["prompts"] = []
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    tiny = make_tiny_sd(folder / "config")
    save_single_file(
        folder / "base.safetensors", tiny.unet, tiny.vae, tiny.text_encoder, {"name": "tiny"}
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200, help="of both stages (default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: 1)")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    context.set_forkserver_preload(PRELOADED)
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as scratch,
        serving(ImageServer(DELAY_S)) as server,
    ):
        inputs, folder = Path(scratch, "inputs").resolve(), Path(scratch, "round").resolve()
        inputs.mkdir()
        make_inputs(inputs, server)
        half = options.kills // 2
        rounds(DOWNLOAD_JOB, inputs, folder, half, moments)
        shutil.copytree(folder / "images", inputs / "images")
        os.chdir(inputs)
        sys.argv = ["stages.split", "--images", "images", "--train", "train.parquet"]
        sys.argv += ["--validation", "validation.parquet"]
        split.main()
        rounds(TRAIN_JOB, inputs, folder, options.kills - half, moments)


if __name__ == "__main__":
    main()
