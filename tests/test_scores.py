"""Scores: means that resample prompts, CMMD against real pictures, the aesthetic head."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stages import grid_score, split
from stages.choice import judge
from stages.choice.cmmd import SCALE, SIGMA, Floats, cmmd, kernel_sums
from stages.choice.score_params import ScoreParams
from stages.choice.scores import Score, read_scores, write_scores
from stages.diffusion.aesthetic import LAYERS, WIDTHS, AestheticHead
from stages.drawing.manifest import Entry, entry_name
from stages.harness.files import sha256_file
from stages.images.metadata import without_metadata
from stages.images.outcome import Fetched, Picture
from stages.images.shards import Sample, write_shards
from tests.tiny_clip import make_tiny_clip
from tests.tiny_grid import SCORE_PARAMS
from tests.tiny_sd import write_json

MODELS = ("near", "far")
PROMPTS = ("red apple", "cat", "dog", "tram")
CLIP_WIDTH = 8


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def picture(seed: int, *, flat: bool = False) -> Image.Image:
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 30, (4, 4, 3)) if flat else rng.integers(0, 255, (4, 4, 3))
    return Image.fromarray(levels.astype(np.uint8)).resize((32, 32))


def make_grid(folder: Path, *, failed: int = 0) -> Path:
    """Publish a grid: `near` draws what the real pictures look like, `far` nearly black ones.

    The first `failed` cells of `far` have failed.
    """
    entries = []
    for model in MODELS:
        for number, prompt in enumerate(PROMPTS * 2, start=1):
            file = entry_name(model, number)
            (folder / model).mkdir(parents=True, exist_ok=True)
            seed = number + 100 * (model == "far")
            picture(seed, flat=model == "far").save(folder / file)
            seed, address = number // 5, f"{model}{number}"
            wrong = "NaN" if model == "far" and number <= failed else None
            shown = None if wrong else file
            entries.append(Entry(model, prompt, seed, 32, 32, address, shown, wrong))
    cells = [{name: getattr(e, name) for name in Entry.__slots__} for e in entries]
    models = [{"name": name, "weights": name} for name in MODELS]
    manifest = {"group": "g", "models": models, "settings": {}, "cells": cells}
    write_json(folder / "cells.json", manifest)
    return folder


def make_validation(folder: Path, *, on_its_side: bool = False) -> Path:
    folder.mkdir()
    samples = []
    for number in range(40):
        path = folder / f"{number}.png"
        picture(500 + number).save(path)
        if on_its_side:
            save_on_its_side(picture(500 + number), path)
        fetched = Fetched(path, Picture(".png", 32, 32, sha256_file(path)), "mirror")
        samples.append(Sample(str(number), f"caption {number}", fetched, {"user": 1}))
    (folder / "images").mkdir()
    write_shards(samples, folder / "images", 100)
    params = split.SplitParams(validation_fraction=0.9, seed=1)
    split.run(folder / "images", folder / "train.parquet", folder / "validation.parquet", params)
    return folder / "validation.parquet"


def save_on_its_side(seen: Image.Image, path: Path) -> None:
    """Save a picture as a camera does that was held upright: EXIF says to turn it clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    seen.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    path.write_bytes(without_metadata(path.read_bytes()))


def make_head(path: Path, width: int = CLIP_WIDTH) -> Path:
    widths = (width, *WIDTHS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = {}
        for place, wide, narrow in zip(LAYERS, widths[:-1], widths[1:], strict=True):
            tensors[f"layers.{place}.weight"] = torch.randn(narrow, wide) / wide**0.5
            tensors[f"layers.{place}.bias"] = torch.randn(narrow)
    save_file(tensors, path)
    return path


def params_with(clip: Path, head: Path) -> ScoreParams:
    return ScoreParams(
        more=[("other", str(clip))],
        aesthetic_clip=str(clip),
        aesthetic_head=str(head),
        resamples=200,
        confidence=0.95,
        seed=1,
    )


def test_means_of_every_measure_come_with_intervals_and_as_a_plot(tmp_path: Path) -> None:
    cells, clip = make_grid(tmp_path / "cells"), make_tiny_clip(tmp_path / "clip")
    validation = make_validation(tmp_path / "real")
    params = params_with(clip, make_head(tmp_path / "head.safetensors"))
    outs = grid_score.ScoreOuts(tmp_path / "s.csv", tmp_path / "s.json", tmp_path / "means.csv")
    grid_score.run(cells, clip, outs, params, validation)
    written = json.loads((tmp_path / "s.json").read_text())
    assert (written["prompts"], list(written["scores"])) == (4, ["far", "near"])
    for figures in written["scores"].values():
        assert figures.keys() == {
            f"{measure}{end}"
            for measure in ("score", "other", "aesthetic", "cmmd")
            for end in ("", "_low", "_high")
        }
        for measure in ("score", "other", "aesthetic", "cmmd"):
            assert figures[f"{measure}_low"] <= figures[f"{measure}_high"]
        assert figures["other"] == figures["score"], "the same CLIP, under another name"
    assert written["scores"]["far"]["cmmd_low"] > written["scores"]["near"]["cmmd_high"]
    rows = list(csv.DictReader((tmp_path / "means.csv").read_text().splitlines()))
    assert len(rows) == 8
    mean = np.mean([s.score for s in read_scores(tmp_path / "s.csv") if s.model == "near"])
    shown = next(r for r in rows if (r["model"], r["measure"]) == ("near", "score"))
    assert float(shown["mean"]) == pytest.approx(mean, abs=1e-3)


def test_a_prompt_with_and_without_a_negative_one_is_one_of_those_that_are_resampled(
    tmp_path: Path,
) -> None:
    cells = make_grid(tmp_path / "cells")
    written = json.loads((cells / "cells.json").read_text("utf-8"))
    prompts = list(dict.fromkeys(cell["prompt"] for cell in written["cells"]))
    for cell in written["cells"]:
        number = prompts.index(cell["prompt"])
        cell |= {"prompt": prompts[number // 2], "negative_prompt": "blurry" * (number % 2)}
    write_json(cells / "cells.json", written)
    outs = grid_score.ScoreOuts(tmp_path / "s.csv", tmp_path / "s.json")
    grid_score.run(cells, make_tiny_clip(tmp_path / "clip"), outs, SCORE_PARAMS)
    said = json.loads((tmp_path / "s.json").read_text())
    assert said["prompts"] == 2
    assert all(figures.keys() == {"score"} for figures in said["scores"].values()), "no interval"


def test_a_real_picture_that_lies_on_its_side_is_compared_as_it_is_seen(tmp_path: Path) -> None:
    look = judge.Judge(make_tiny_clip(tmp_path / "clip"))
    upright = look.real(make_validation(tmp_path / "upright"))
    turned = look.real(make_validation(tmp_path / "turned", on_its_side=True))
    np.testing.assert_array_equal(turned, upright)


def test_pictures_that_failed_are_told_beside_the_distance_that_lacks_them(tmp_path: Path) -> None:
    clip = make_tiny_clip(tmp_path / "clip")
    validation = make_validation(tmp_path / "real")
    outs = grid_score.ScoreOuts(tmp_path / "s.csv", tmp_path / "s.json")
    for failed in (0, 5):  # the scores of the first time are known, and not to be taken
        cells = make_grid(tmp_path / f"cells{failed}", failed=failed)
        grid_score.run(cells, clip, outs, SCORE_PARAMS, validation)
    scores = json.loads((tmp_path / "s.json").read_text())["scores"]
    assert scores["far"]["cmmd_left_out"] == 5
    assert "cmmd_left_out" not in scores["near"]
    assert [s.score is None for s in read_scores(tmp_path / "s.csv") if s.model == "far"] == [
        True, True, True, True, True, False, False, False,
    ]  # fmt: skip


def test_nothing_is_looked_at_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, clip = make_grid(tmp_path / "cells"), make_tiny_clip(tmp_path / "clip")
    validation = make_validation(tmp_path / "real")
    outs = grid_score.ScoreOuts(tmp_path / "s.csv", tmp_path / "s.json")
    grid_score.run(cells, clip, outs, SCORE_PARAMS, validation)
    before = (tmp_path / "s.json").read_bytes()
    with next((tmp_path / ".work/scores").glob("*.vectors.jsonl")).open("a") as book:
        book.write('\n["cut", "sho')
    monkeypatch.setattr(judge, "_load_scorer", lambda *_: pytest.fail("all was seen"))
    grid_score.run(cells, clip, outs, SCORE_PARAMS, validation)
    assert (tmp_path / "s.json").read_bytes() == before


def unit(rng: np.random.Generator, count: int, shift: float = 0.0) -> Floats:
    vectors: Floats = rng.normal(size=(count, 6))
    vectors[:, 0] += shift
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def test_cmmd_is_the_sum_over_all_pairs_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    drawn, real = unit(rng, 7), unit(rng, 5, shift=2)

    def k(x: Floats, y: Floats) -> float:
        return float(np.exp(-((x - y) ** 2).sum() / (2 * SIGMA**2)))

    own = sum(k(x, y) for i, x in enumerate(drawn) for j, y in enumerate(drawn) if i != j) / 42
    other = sum(k(x, y) for i, x in enumerate(real) for j, y in enumerate(real) if i != j) / 20
    across = sum(k(x, y) for x in drawn for y in real) / 35
    value, resampled = cmmd(drawn, list("aabbccc"), real, 50, seed=1)
    assert value == pytest.approx(SCALE * (own + other - 2 * across), abs=1e-6)
    assert resampled.shape == (50,)
    assert np.isfinite(resampled).all()


def test_a_resampled_set_of_one_picture_says_nothing_of_cmmd() -> None:
    """It would stand for a CMMD of about -1,000, and the interval would hold anything."""
    rng = np.random.default_rng(0)
    value, resampled = cmmd(unit(rng, 3), ["a", "b", "c"], unit(rng, 9), 900, seed=1)
    assert 700 < len(resampled) < 900  # one in nine took one prompt three times
    assert np.abs(resampled - value).max() < 50


def test_cmmd_of_pictures_of_the_same_kind_is_zero_on_average() -> None:
    rng = np.random.default_rng(0)
    same = [cmmd(unit(rng, 12), list("abcabcabcabc"), unit(rng, 20), 1, 1)[0] for _ in range(300)]
    apart = cmmd(unit(rng, 12, 2.0), list("abcabcabcabc"), unit(rng, 20), 1, 1)[0]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(300)
    assert apart > 5 * np.std(same)


def test_a_prompt_drawn_twice_is_not_compared_with_itself() -> None:
    """Else every resampled set would seem poorer than the set itself."""
    rng = np.random.default_rng(0)
    drawn = np.repeat(unit(rng, 20), 2, axis=0)  # two equal pictures of each prompt
    prompts = [f"p{number // 2}" for number in range(40)]
    value, resampled = cmmd(drawn, prompts, unit(rng, 50), 400, seed=1)
    assert resampled.mean() == pytest.approx(value, abs=0.25 * resampled.std())
    only = kernel_sums(drawn, prompts, unit(rng, 5)).cmmd(np.eye(20))
    assert np.isfinite(only).all()


def test_the_aesthetic_head_is_the_perceptron_of_its_file(tmp_path: Path) -> None:
    path = make_head(tmp_path / "head.safetensors")
    tensors = load_file(path)
    embedding = torch.nn.functional.normalize(torch.arange(8.0)[None])
    value = embedding
    for place in LAYERS:
        value = value @ tensors[f"layers.{place}.weight"].T + tensors[f"layers.{place}.bias"]
    assert AestheticHead(path, CLIP_WIDTH).score(embedding) == pytest.approx(value.item(), rel=1e-4)


def test_a_head_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such weights of an aesthetic head"):
        AestheticHead(tmp_path / "no.safetensors", CLIP_WIDTH)
    (tmp_path / "pickle.pth").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="not a safetensors file"):
        AestheticHead(tmp_path / "pickle.pth", CLIP_WIDTH)
    with pytest.raises(ValueError, match=r"'layers\.0\.weight' has shape \(1024, 8\), wanted"):
        AestheticHead(make_head(tmp_path / "h.safetensors"), 768)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aesthetic_head": "x"}, "go together"),
        ({"more": [("a", "x"), ("a", "y")]}, "names must differ"),
        ({"more": [("cmmd", "x")]}, "names must differ, and not be score"),
        ({"resamples": 0}, "resamples must be at least 1"),
        ({"confidence": 1.0}, "confidence must lie between 0 and 1"),
    ],
)
def test_params_of_scores_that_cannot_be_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SCORE_PARAMS, **changes)  # type: ignore[arg-type]


def test_cells_that_differ_by_a_setting_are_scored_apart(tmp_path: Path) -> None:
    rows = [Score("a", "p", 1, 64, 64, float(n), f"{n} steps") for n in (10, 20)]
    write_scores(tmp_path / "s.csv", rows)
    assert read_scores(tmp_path / "s.csv") == rows
