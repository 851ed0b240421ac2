"""Params files: what is wrong in one is named, with what to write instead."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from dvc.utils.serialize import modify_yaml

from stages.harness.files import replacing
from stages.harness.params import Params, load_params


@dataclass(frozen=True, slots=True, kw_only=True)
class Section(Params):
    """A section with two keys."""

    learning_rate: float
    steps: int


def load(folder: Path, text: str) -> Section:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return load_params("train", Section, path)


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path) -> None:
    text = "train:\n  steps: 1\n  learning_rate: 1.0\n  steps: 2\n"
    with pytest.raises(ValueError, match="'steps' stands twice, again in line 4"):
        load(tmp_path, text)


def test_an_anchor_may_be_overridden(tmp_path: Path) -> None:
    text = "base: &base\n  steps: 1\n  learning_rate: 1.0\ntrain:\n  <<: *base\n  steps: 2\n"
    assert load(tmp_path, text) == Section(learning_rate=1.0, steps=2)


@pytest.mark.parametrize("written", ["1e-4", "5e-05", "2.5e5", "1E3", "-1.e+2", "1.0e-6"])
def test_a_float_may_be_written_without_a_dot_or_sign(tmp_path: Path, written: str) -> None:
    section = load(tmp_path, f"train: {{steps: 1, learning_rate: {written}}}")
    assert section.learning_rate == float(written)


def test_what_dvc_writes_for_an_experiment_is_read_as_it_was_meant(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train: {steps: 1, learning_rate: 1.0}\n", encoding="utf-8")
    with modify_yaml(path) as params:
        params["train"]["learning_rate"] = 1e-6
    assert "1e-06" in path.read_text("utf-8")
    assert load_params("train", Section, path).learning_rate == 1e-6


@pytest.mark.parametrize("written", ["'1e-6'", "1e", "e5", "1e-6x"])
def test_a_word_is_no_number(tmp_path: Path, written: str) -> None:
    with pytest.raises(ValueError, match="learning_rate: Input should be a valid number"):
        load(tmp_path, f"train: {{steps: 1, learning_rate: {written}}}")


def test_missing_and_unknown_keys_are_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="learning_rat") as refusal:
        load(tmp_path, "train: {steps: 1, learning_rat: 1.0}")
    assert "did you mean 'learning_rate'?" in str(refusal.value)
    with pytest.raises(ValueError, match="missing section 'train'; did you mean 'trian'"):
        load(tmp_path, "trian: {steps: 1}")


def test_what_is_no_file_is_never_replaced_by_one(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(FileExistsError, match="is no file"), replacing(path) as scratch:
            scratch.write_text("", encoding="utf-8")
    assert Path("/dev/null").is_char_device()
