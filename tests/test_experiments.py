"""Trainings beside each other: the resolutions by one command, learning rates by DVC's queue."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from stages.train_parallel import gpus
from tests.tiny_recipe import TinyRecipe

RATES = ("0.002", "5.0e-5")  # DVC writes the latter as 5e-05
QUEUE_S = 600.0  # for both, on a busy machine
DID_AN_EPOCH = re.compile(r"^epoch \d+: validation loss", re.MULTILINE)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> TinyRecipe:
    """Make a recipe that ends with the trainings: DVC applies whole graphs alone."""
    made = TinyRecipe(tmp_path_factory.mktemp("recipe"))
    path = made.folder / "dvc.yaml"
    stages = yaml.safe_load(path.read_text("utf-8"))["stages"]
    kept = {name: stages[name] for name in ("filter", "download", "split", "train")}
    path.write_text(yaml.safe_dump({"stages": kept}, sort_keys=False), "utf-8")
    return made


@pytest.fixture(scope="module")
def parallel(recipe: TinyRecipe) -> str:
    """Train both resolutions at once; give what was said."""
    return recipe.call("python", "-m", "stages.train_parallel", "--at-once", "2")


@pytest.fixture(scope="module")
def queued(recipe: TinyRecipe, parallel: str) -> Iterator[TinyRecipe]:
    """Let DVC's queue try two learning rates at once."""
    git = ("git", "-c", "user.name=A", "-c", "user.email=a@example.org")
    recipe.call(*git, "add", "--all")
    recipe.call(*git, "commit", "--quiet", "--message", "Trained")
    for rate in RATES:
        change = f"train.64.learning_rate={rate}"
        recipe.call("dvc", "exp", "run", "--queue", "--name", f"r{rate[-1]}", "-S", change)
    recipe.call("dvc", "queue", "start", "--jobs", "2")
    deadline = time.monotonic() + QUEUE_S
    while re.search("Queued|Running", status := recipe.call("dvc", "queue", "status")):
        assert time.monotonic() < deadline, status
        time.sleep(2)
    yield recipe
    recipe.call("dvc", "queue", "stop", "--kill")


def scratches(recipe: TinyRecipe) -> set[Path]:
    return {path.parent for path in (recipe.folder / ".work/train/64").glob("*/run")}


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)", ["0", "1"]),
        (
            "GPU 0: NVIDIA H200 (UUID: GPU-1)\n"
            "  MIG 1g.18gb     Device  0: (UUID: MIG-1)\n"
            "  MIG 1g.18gb     Device  1: (UUID: MIG-2)",
            ["0"],
        ),
        ("No devices found.", []),
    ],
    ids=["two", "parts_of_one", "none"],
)
def test_the_gpus_are_the_cards_that_the_driver_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, wanted: list[str]
) -> None:
    """A training that is given a card that is not there would run on the CPU."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{said}'\n", "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == wanted


@pytest.mark.parametrize(("named", "wanted"), [("", []), ("1,3", ["1", "3"])])
def test_the_gpus_are_those_that_one_names(
    monkeypatch: pytest.MonkeyPatch, named: str, wanted: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpus() == wanted


def test_resolutions_train_side_by_side_and_repro_finds_them_done(
    recipe: TinyRecipe, parallel: str
) -> None:
    speakers = re.findall(r"^\[train@(64|96)\] epoch", parallel, re.MULTILINE)
    first = {name: speakers.index(name) for name in ("64", "96")}
    last = {name: len(speakers) - 1 - speakers[::-1].index(name) for name in ("64", "96")}
    assert first["64"] < last["96"]
    assert first["96"] < last["64"]
    assert recipe.repro() == set()


def test_queued_experiments_keep_their_trainings_in_the_repository_s_scratch(
    queued: TinyRecipe,
) -> None:
    status = queued.call("dvc", "queue", "status")
    assert status.count("Success") == len(RATES), status
    assert len(scratches(queued)) == 1 + len(RATES)
    shown = json.loads(queued.call("dvc", "exp", "show", "--json"))
    found = {exp["name"]: exp["revs"][0]["data"]["params"] for exp in shown[1]["experiments"]}
    rates = {
        name: p["params.yaml"]["data"]["train"]["64"]["learning_rate"] for name, p in found.items()
    }
    assert rates == {"r2": 0.002, "r5": 5e-05}


def test_a_page_compares_an_experiment_with_the_commit_that_it_began_at(
    queued: TinyRecipe,
) -> None:
    said = queued.call("python", "-m", "stages.compare", "HEAD", "r5", "--out", "compared")
    assert "train.64.learning_rate: 0.001 -> 5e-05\n" in said
    assert "differs: params 1, metrics 0, curves 1, cells 0\n" in said


def test_an_experiment_that_is_applied_trains_nothing(queued: TinyRecipe) -> None:
    queued.call("dvc", "exp", "apply", "r5")
    assert queued.repro() == set()
    assert "learning_rate: 5e-05" in (queued.folder / "params.yaml").read_text("utf-8")


def test_what_one_experiment_trained_another_takes_from_scratch(queued: TinyRecipe) -> None:
    command = ("dvc", "exp", "run", "--temp", "--force", "--name", "again")
    output = queued.call(*command, "-S", "train.64.learning_rate=0.002")
    assert "Running stage 'train@64'" in output
    assert not DID_AN_EPOCH.search(output)
    assert len(scratches(queued)) == 1 + len(RATES)
