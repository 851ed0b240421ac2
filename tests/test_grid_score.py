"""Scoring a grid: each picture once, by any CLIP, and a model that draws nothing as the worst."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stages import grid_score
from stages.choice import judge
from stages.choice.scores import read_scores, score_table
from stages.diffusion.model import save_single_file
from stages.diffusion.scorer import Scorer
from tests.tiny_clip import make_tiny_clip
from tests.tiny_grid import CELLS, PARAMS, SCORE_PARAMS, Zoo, draw_grid, make_zoo, run_cells
from tests.tiny_sd import make_tiny_sd


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return make_zoo(tmp_path_factory.mktemp("zoo"))


def test_a_device_that_gives_up_ends_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(grid_score, "run", too_large)
    monkeypatch.setattr(grid_score, "load_params", lambda *_: SCORE_PARAMS)
    words = ["--cells", tmp_path, "--clip", tmp_path, "--out", tmp_path / "s.csv"]
    monkeypatch.setattr("sys.argv", ["grid_score", *map(str, words)])
    with pytest.raises(SystemExit, match="the device gave up: CUDA out of memory") as ended:
        grid_score.main()
    assert "Traceback" not in str(ended.value)


def test_scores_follow_the_pictures_and_are_paid_for_once(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_tiny_clip(tmp_path / "clip")
    run_cells(zoo, tmp_path / "out")
    grid_score.run(
        tmp_path / "out", clip, grid_score.ScoreOuts(tmp_path / "scores.csv"), SCORE_PARAMS
    )
    scores = read_scores(tmp_path / "scores.csv")
    assert len(scores) == 2 * CELLS
    assert len({score.score for score in scores}) > CELLS
    written = (tmp_path / "scores.csv").read_bytes()
    with (next((tmp_path / ".work/scores").iterdir())).open("a") as book:
        book.write('\n["cut sho')
    monkeypatch.setattr(judge, "_load_scorer", lambda *_: pytest.fail("all are scored"))
    grid_score.run(
        tmp_path / "out", clip, grid_score.ScoreOuts(tmp_path / "scores.csv"), SCORE_PARAMS
    )
    assert (tmp_path / "scores.csv").read_bytes() == written


def test_a_score_is_the_clips_own_logit(tmp_path: Path) -> None:
    from transformers import CLIPModel

    scorer = Scorer(make_tiny_clip(tmp_path / "clip"))
    picture = Image.radial_gradient("L").convert("RGB").resize((20, 16))
    clip = CLIPModel.from_pretrained(tmp_path / "clip")
    tokens = scorer.tokenizer(["cat"], return_tensors="pt")
    pixel_values = scorer.processor(picture, return_tensors="pt").pixel_values
    logit = clip(**tokens, pixel_values=pixel_values).logits_per_image.item()
    assert scorer.score(picture, "cat") == pytest.approx(logit, abs=1e-4)
    assert scorer.score(picture, "cat") != scorer.score(picture, "dog")


def test_a_scorer_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        Scorer(tmp_path)
    folder = make_tiny_clip(tmp_path / "clip")
    (folder / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ValueError, match="not a CLIPModel but model_type 'blip'"):
        Scorer(folder)


def test_a_scorer_that_lacks_weights_or_holds_broken_ones_is_refused(
    zoo: Zoo, tmp_path: Path
) -> None:
    folder = make_tiny_clip(tmp_path / "clip")
    file = folder / "model.safetensors"
    whole = load_file(file)
    half = {key: tensor for key, tensor in whole.items() if key.startswith("vision")}
    wide = {key: torch.cat([tensor.flatten()] * 2) for key, tensor in whole.items()}
    for tensors, words in ((half, "logit_scale is missing, one of 23"), (wide, "Fetch it again")):
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(ValueError, match=words):
            Scorer(folder)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="Fetch it again"):
        Scorer(folder)
    save_file({key: tensor * math.nan for key, tensor in whole.items()}, file, {"format": "pt"})
    run_cells(zoo, tmp_path / "out")
    outs = grid_score.ScoreOuts(tmp_path / "scores.csv")
    with pytest.raises(ValueError, match="as nan; are its weights broken"):
        grid_score.run(tmp_path / "out", folder, outs, SCORE_PARAMS)


def test_a_model_of_nan_is_named_and_scored_as_the_worst(zoo: Zoo, tmp_path: Path) -> None:
    broken = make_tiny_sd(tmp_path / "config").unet
    broken.load_state_dict(zoo.sd.unet.state_dict())
    broken.conv_norm_out.weight.data.fill_(60_000)  # as large as float16 holds, twice
    broken.conv_out.weight.data.fill_(60_000)
    save_single_file(tmp_path / "nan.safetensors", broken, zoo.sd.vae, zoo.sd.text_encoder, {})
    weights = {"good": zoo.run / "epoch_010.safetensors", "nan": tmp_path / "nan.safetensors"}
    params = dataclasses.replace(PARAMS, guidance=3e20)
    counts = draw_grid(weights, zoo.config, tmp_path / "o", params)
    assert counts["failed_by_model"] == {"nan": CELLS}
    outs = grid_score.ScoreOuts(tmp_path / "s.csv", tmp_path / "s.json")
    grid_score.run(tmp_path / "o", make_tiny_clip(tmp_path / "clip"), outs, SCORE_PARAMS)
    table = score_table(read_scores(tmp_path / "s.csv"), ["good", "nan"], "s.csv")
    assert table.failed == {"nan": CELLS}
    assert (table.means[1] < table.means[0]).all()
    assert "cmmd" not in json.loads((tmp_path / "s.json").read_text())["scores"]["nan"]
