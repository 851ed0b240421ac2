"""Train the resolutions side by side, one per GPU; then `dvc repro` goes on with the rest.

  python -m stages.train_parallel [--at-once N]     or     make train-parallel

DVC runs one stage after the other. Here what the trainings need is run first; then a `dvc repro` of
its own makes each of them, and waits its turn to write dvc.lock. GPUs are those that
CUDA_VISIBLE_DEVICES names, or all; more trainings than GPUs queue up. Killed, it is started again
with the same command, and so is `dvc repro`: what was trained is kept.
"""

import argparse
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo

from stages.harness.paths import clear_errors

GROUP = "train@"
DVC = (sys.executable, "-m", "dvc")
VISIBLE = "CUDA_VISIBLE_DEVICES"


def trainings() -> tuple[list[str], list[str]]:
    """Name the stages that train, and all those that must have run before, in no order."""
    with Repo() as repo:
        graph = repo.index.graph  # edges lead from a stage to those that it needs
        found = [stage for stage in repo.index.stages if stage.addressing.startswith(GROUP)]
        needed: set[Any] = set()
        waiting = list(found)
        while waiting:
            new = set(graph.successors(waiting.pop())) - needed
            needed |= new
            waiting += new
        return [stage.addressing for stage in found], sorted(need.addressing for need in needed)


def gpus() -> list[str]:
    """Name the GPUs to use, as CUDA_VISIBLE_DEVICES does; none on a machine without."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name.strip()]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    lines = listing.stdout.splitlines()
    cards = [line for line in lines if line.startswith("GPU ")]  # below one, its MIG instances
    return [str(number) for number, _ in enumerate(cards)]


def run(lanes: Sequence[Mapping[str, str]]) -> None:
    """Run every training, as many at once as there are lanes.

    Args:
        lanes: what each adds to the environment: its GPU.

    Raises:
        ValueError: if no stage trains, or one fails, after all of them ended; the message names it.
            Or if DVC cannot read the graph.
    """
    try:
        names, needed = trainings()
    except DvcException as error:
        raise ValueError(f"DVC: {error}") from error
    if not names:
        raise ValueError(f"dvc.yaml has no stage {GROUP}…; is the section `train` of params empty?")
    if needed and subprocess.run([*DVC, "repro", *needed], check=False).returncode:
        raise ValueError("a stage that the trainings need has failed, see above")
    free: queue.SimpleQueue[Mapping[str, str]] = queue.SimpleQueue()
    for lane in lanes:
        free.put(lane)
    with ThreadPoolExecutor(len(lanes)) as threads:
        failed = [
            name
            for name, status in zip(
                names, threads.map(lambda n: _train(n, free), names), strict=True
            )
            if status
        ]
    if failed:
        raise ValueError(f"{', '.join(failed)} failed, see above; what was trained is kept")


def _train(name: str, free: "queue.SimpleQueue[Mapping[str, str]]") -> int:
    """Make one training on the lane that is free; its lines carry its name."""
    lane = free.get()
    try:
        return _train_on(name, lane)
    finally:
        free.put(lane)


def _train_on(name: str, lane: Mapping[str, str]) -> int:
    where = f" on GPU {lane[VISIBLE]}" if lane else ""
    _say(name, f"starts{where}")
    command = [*DVC, "--wait-for-lock", "repro", "--single-item", name]
    with subprocess.Popen(
        command,
        env={**os.environ, **lane},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout
        for line in process.stdout:
            _say(name, line.rstrip("\n"))
    return process.returncode


_PRINTING = threading.Lock()


def _say(name: str, line: str) -> None:
    with _PRINTING:
        print(f"[{name}] {line}", flush=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.train_parallel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--at-once",
        type=int,
        metavar="N",
        help="trainings at a time (default: one per GPU; one where there is none)",
    )
    options = parser.parse_args()
    with clear_errors():
        devices = gpus()
        count = max(1, len(devices)) if options.at_once is None else options.at_once
        if count < 1:
            raise ValueError(f"--at-once must be at least 1, got {count}")
        lanes = [{VISIBLE: devices[n % len(devices)]} if devices else {} for n in range(count)]
        run(lanes)
        print("All trainings are done. Next: make run")


if __name__ == "__main__":
    main()
