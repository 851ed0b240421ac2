"""Several processes train one model together, to the same losses as one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
import torch

from stages.harness.files import sha256_file
from stages.train import PROCESSES, main
from stages.training.ranks import Ranks
from tests.test_train import project, stage_words
from tests.tiny_training import (
    EXAMPLES,
    HELD_OUT,
    PARAMS,
    ROOT,
    base,
    command,
    hashes,
    one_thread,
    start,
    wait_for,
)

__all__ = ["base", "one_thread", "project"]  # fixtures are found by their names
pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TOGETHER = replace(PARAMS, text_encoder_learning_rate=1e-3, max_epochs=2)


def torchrun(processes: int, *more: str, port: int | None = None) -> list[str]:
    return [
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        "--master-addr=127.0.0.1",
        f"--master-port={port or free_port()}",
        *more,
    ]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_are_fair_and_lose_no_row(count: int) -> None:
    step = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    shares = [Ranks(rank, count, CPU).share(step) for rank in range(count)]
    assert sorted(row for share in shares for rows in share for row in rows) == [*range(1, 11)]
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= 2
    largest = max(len(rows) for share in shares for rows in share)
    assert largest <= Ranks(0, count, CPU).largest_share(4, 3)


def test_two_processes_reach_the_losses_of_one(base: Path, tmp_path: Path) -> None:
    """And a run that two began may go on with one."""
    alone = start(base, tmp_path / "alone", TOGETHER)
    words = command(base, tmp_path / "together", TOGETHER, *torchrun(2))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("base: validation loss") == 1  # the first process alone speaks
    together = start(base, tmp_path / "together", TOGETHER)
    assert together.history.errors[0] == pytest.approx(alone.history.errors[0], rel=1e-6)
    assert together.history.means == pytest.approx(alone.history.means, rel=1e-5)
    assert together.history.train_losses == pytest.approx(alone.history.train_losses, rel=1e-5)
    assert sorted(together.weights) == sorted(alone.weights)
    longer = replace(TOGETHER, max_epochs=3)
    assert start(base, tmp_path / "together", longer).history.means == pytest.approx(
        start(base, tmp_path / "alone", longer).history.means, rel=1e-5
    )


def test_two_machines_reach_the_losses_of_one(base: Path, tmp_path: Path) -> None:
    """Each has a torchrun of its own; they share the disk."""
    port, scratch = free_port(), tmp_path / "together"
    nodes = [
        command(base, scratch, TOGETHER, *torchrun(1, "--nnodes=2", f"--node-rank={i}", port=port))
        for i in range(2)
    ]
    with (
        subprocess.Popen(nodes[1], cwd=ROOT, stdout=PIPE, stderr=STDOUT, text=True) as other,
        subprocess.Popen(nodes[0], cwd=ROOT, stdout=PIPE, stderr=STDOUT, text=True) as first,
    ):
        said = [process.communicate(timeout=120)[0] for process in (first, other)]
    assert (first.returncode, other.returncode) == (0, 0), said
    assert "weights to train on 2 x cpu" in said[0]
    assert "weights to train" not in said[1]
    together = start(base, scratch, TOGETHER)
    alone = start(base, tmp_path / "alone", TOGETHER)
    assert together.history.means == pytest.approx(alone.history.means, rel=1e-5)


def test_the_stage_trains_in_as_many_processes_as_the_environment_says(
    base: Path, project: Path
) -> None:
    words = [sys.executable, "-m", "stages.train", *stage_words(base)]
    environment = {**os.environ, PROCESSES: "2", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights to train on 2 x cpu") == 1
    assert done.stdout.count("2 checkpoints in models/64") == 1
    assert sorted(path.name for path in (project / "models/64").iterdir()) == [
        "epoch_002.safetensors",
        "epoch_003.safetensors",
    ]
    assert (project / "reports/64/metrics.json").is_file()


@pytest.mark.parametrize("written", ["0", "-1", "two", "1.5"])
def test_a_number_of_processes_that_is_none_is_named(
    base: Path, project: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setenv(PROCESSES, written)
    monkeypatch.setattr("os.execv", lambda *words: pytest.fail(f"it started {words}"))
    with pytest.raises(SystemExit, match=f"{PROCESSES} must be .* at least 1, got '{written}'"):
        main(stage_words(base))


def test_each_process_reads_only_its_share(base: Path, tmp_path: Path) -> None:
    """Of the pictures, which are encoded once, and of what they are encoded to, epoch by epoch."""
    scratch = tmp_path / "together"
    words = command(base, scratch, TOGETHER, *torchrun(2), program="tests.noted_reads")
    subprocess.run(words, cwd=ROOT, capture_output=True, check=True)
    notes = [json.loads((scratch / f"read_{rank}.json").read_text()) for rank in range(2)]
    learnt, measured = ({example.id for example in side} for side in (EXAMPLES, HELD_OUT))

    pictures = [Counter(note["pictures"]) for note in notes]
    assert pictures[0] + pictures[1] == dict.fromkeys(learnt | measured, 1)
    assert all(len(ids) > len(learnt | measured) // 3 for ids in pictures)

    steps, validations = (
        [Counter(id_ for id_ in note["encoded"] if id_ in side) for note in notes]
        for side in (learnt, measured)
    )
    epochs = TOGETHER.max_epochs
    assert steps[0] + steps[1] == dict.fromkeys(learnt, epochs)
    assert all(ids.total() > epochs * len(learnt) // 3 for ids in steps)
    times = (1 + epochs) * TOGETHER.validation_timesteps
    assert validations[0] + validations[1] == dict.fromkeys(measured, times)
    assert not validations[0].keys() & validations[1].keys()


def test_two_processes_stop_together_and_go_on(base: Path, tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    subprocess.run(
        command(base, unbroken, TOGETHER, *torchrun(2)), cwd=ROOT, capture_output=True, check=True
    )
    words = command(base, broken, TOGETHER, *torchrun(2))
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        wait_for(broken / "checkpoints" / "step_000000002.safetensors", process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert b"stopped by SIGTERM" in output
    again = subprocess.run(
        command(base, broken, TOGETHER, *torchrun(2)), cwd=ROOT, capture_output=True, check=True
    )
    assert b"going on in epoch" in again.stdout
    ours, theirs = (
        {path.name: sha256_file(path) for path in (folder / "weights").iterdir()}
        for folder in (broken, unbroken)
    )
    assert ours == theirs == {**ours}
    assert hashes(start(base, broken, TOGETHER))


def test_processes_that_see_different_scratch_say_so(base: Path, tmp_path: Path) -> None:
    """As machines do whose project lies on disks of their own."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    start(base, ours, replace(TOGETHER, max_epochs=1))
    shutil.copytree(ours, theirs)
    shutil.rmtree(theirs / "checkpoints")
    words = command(base, tmp_path / "rank{rank}", TOGETHER, *torchrun(2))
    ours.rename(tmp_path / "rank0")
    theirs.rename(tmp_path / "rank1")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "another process another one or none" in done.stdout + done.stderr
