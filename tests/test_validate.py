"""Checkpoints scored on held-out pictures, at any run's resolution."""

import json
import re
from dataclasses import replace
from math import nan
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from stages.harness.named import named_weights
from stages.validate import main
from tests.test_train import project, stage, write_params
from tests.tiny_training import PARAMS, ROOT, base, one_thread

__all__ = ["base", "one_thread", "project"]  # fixtures are found by their names
pytestmark = pytest.mark.usefixtures("one_thread")


def validate(base: Path, run: str = "64") -> None:
    weights = ["base=" + str(base / "base.safetensors"), "models/64"]
    options = ["--config", str(base / "config"), "--validation", "validation.parquet"]
    main([run, "--weights", *weights, *options, "--out", "scores.json"])


def test_checkpoints_get_the_loss_that_training_measured(base: Path, project: Path) -> None:
    stage(base)
    validate(base)
    scores = json.loads((project / "scores.json").read_text())
    metrics = json.loads((project / "reports/64/metrics.json").read_text())
    found = scores["checkpoints"]
    assert list(found) == ["base", "epoch_002", "epoch_003"]
    assert found["base"]["loss"] == pytest.approx(metrics["start"], rel=1e-5)
    assert found["base"]["change_percent"] == 0
    assert found["epoch_003"]["loss"] == pytest.approx(metrics["minimum"], rel=1e-3)  # float16
    assert found["epoch_003"]["change_percent_high"] < 0
    assert len(found["base"]["by_timestep"]) == PARAMS.validation_timesteps


def test_what_other_code_encoded_is_encoded_anew(
    base: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(base)
    folders = []
    for code in ("of before", "of now", "of now"):
        monkeypatch.setattr("stages.validate.code_hash", lambda module, code=code: code + module)
        validate(base)
        folders.append(len([*Path(".work/encoded").iterdir()]))
    assert folders[0] < folders[1] == folders[2]


def test_a_checkpoint_can_be_scored_at_another_resolution(base: Path, project: Path) -> None:
    stage(base)
    validate(base)
    first = json.loads((project / "scores.json").read_text())
    write_params("train", replace(PARAMS, resolution=24))
    validate(base)
    other = json.loads((project / "scores.json").read_text())
    assert (first["resolution"], other["resolution"]) == (16, 24)
    assert other["checkpoints"]["base"]["loss"] != first["checkpoints"]["base"]["loss"]


def test_the_readmes_command_tells_the_epochs_of_two_runs_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"`python -m stages\.validate \w+ --weights (.+?) --config", readme)
    assert command
    monkeypatch.chdir(tmp_path)
    for run in ("512", "768"):
        Path("models/train", run).mkdir(parents=True)
        Path("models/train", run, "epoch_010.safetensors").touch()
    assert list(named_weights(command[1].split())) == ["512-epoch_010", "768-epoch_010"]


def test_a_missing_checkpoint_is_named(base: Path, project: Path) -> None:
    with pytest.raises(SystemExit, match="models/64"):
        validate(base)


def test_a_checkpoint_without_a_finite_loss_is_named(base: Path, project: Path) -> None:
    tensors = load_file(base / "base.safetensors")
    tensors["model.diffusion_model.out.2.weight"].fill_(nan)
    Path("models/64").mkdir(parents=True)
    save_file(tensors, "models/64/epoch_001.safetensors")
    with pytest.raises(SystemExit, match=r"models/64/epoch_001\.safetensors.*is not finite"):
        validate(base)
    assert not Path("scores.json").exists()
