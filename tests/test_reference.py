"""The committed reference run: what `make run` gives, in the figures that a clone compares with."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.imports import ROOT

REPORTS = ROOT / "reports"


def report(name: str) -> Any:
    return json.loads((REPORTS / name).read_text("utf-8"))


@pytest.mark.parametrize("run", ["64", "96"])
def test_fine_tuning_surely_beats_the_base(run: str) -> None:
    with (REPORTS / f"train/{run}/loss.csv").open(encoding="utf-8") as file:
        base, *epochs = csv.DictReader(file)
    best = min(epochs, key=lambda epoch: float(epoch["val_loss"]))
    assert float(best["high"]) < float(base["val_loss"]), "the change's interval lies below zero"
    assert report("metrics.json")[f"loss_{run}"] == round(float(best["val_loss"]), 5)


def test_the_headline_tells_the_release_and_its_winner() -> None:
    figures = report("metrics.json")
    assert figures["release"] == report("release.json")["auto_v2"]
    assert figures["winner"] == report("select/final.json")["choice"]


def test_the_release_is_what_the_measured_scores_chose() -> None:
    final = report("select/final.json")
    scores = {name: figures["score"] for name, figures in final["candidates"].items()}
    assert final["by"] == "score"
    assert final["choice"] == max(scores, key=scores.__getitem__)
    assert len(set(scores.values())) == len(scores)


def test_the_lock_is_of_the_params_and_the_code_that_are_committed() -> None:
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text("utf-8"))["stages"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    for name, stage in lock.items():
        for dep in stage["deps"]:
            if dep["path"].endswith(".py"):
                code = (ROOT / dep["path"]).read_bytes()
                assert hashlib.md5(code).hexdigest() == dep["md5"], (
                    f"{name}: {dep['path']}; run `dvc repro`, commit dvc.lock"
                )
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            assert _look_up(params, key) == value, (
                f"{name}: {key}; run `dvc repro`, commit dvc.lock"
            )


def test_every_stage_of_the_mini_profile_is_in_the_lock() -> None:
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text("utf-8"))["stages"]
    assert len(lock) == 58


def test_the_picture_of_the_readme_is_there() -> None:
    assert (REPORTS / "final.png").read_bytes().startswith(b"\x89PNG")


def _look_up(params: Any, key: str) -> Any:
    for part in Path(key.replace(".", "/")).parts:
        params = params[part]
    return params
