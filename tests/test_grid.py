"""Drawing and scoring a group of models: once each, whatever the order and however often killed."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from stages import grid
from stages.choice.scores import read_scores
from stages.diffusion.model import save_single_file
from stages.diffusion.sample import SAMPLERS, SamplingParams, draw
from stages.harness.named import named_weights
from stages.images.cells import (
    DRAWING_VERSION,
    AxesParams,
    Cell,
    CellCache,
    ComfyParams,
    GridParams,
    ScoreParams,
    SheetParams,
    read_manifest,
)
from tests.tiny_clip import make_tiny_clip
from tests.tiny_sd import TinySD, make_tiny_sd

SCORE_PARAMS = ScoreParams(
    more=[], aesthetic_clip="", aesthetic_head="", resamples=200, confidence=0.95, seed=1
)
PARAMS = GridParams(
    prompts=["cat", "red apple"],
    negative_prompt="",
    seeds=[1, 2],
    sizes=[(32, 32), (48, 32)],
    sampler="euler",
    steps=2,
    guidance=3.0,
    clip_skip=1,
    dtype="float32",
    batch_size=3,
    compile=False,
    vae_tile_px=0,
    engine="torch",
    axes=AxesParams(replace=[], sampler=[], steps=[], guidance=[], clip_skip=[]),
    comfyui=ComfyParams(servers=[], workflow="", timeout_s=10),
    score=SCORE_PARAMS,
    sheet=SheetParams(scale=1, max_side_px=4000, format="png", quality=90),
)
CELLS = 8  # of each model
KILLED_AFTER = 11  # cells: in the second model, where a batch ends


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / ".work"


@dataclasses.dataclass
class Zoo:
    """Two models of one architecture."""

    config: Path
    run: Path
    sd: TinySD


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    folder = tmp_path_factory.mktemp("zoo")
    sd = make_tiny_sd(folder / "config")
    for epoch in (2, 10):
        sd.unet.conv_out.bias.data.add_(0.125)
        file = folder / "run" / f"epoch_{epoch:03}.safetensors"
        save_single_file(file, sd.unet, sd.vae, sd.text_encoder, {})
    return Zoo(folder / "config", folder / "run", sd)


def run_cells(zoo: Zoo, out: Path, params: GridParams = PARAMS) -> dict[str, Any]:
    report = out.with_suffix(".json")
    grid.run_cells("test", named_weights([str(zoo.run)]), zoo.config, out, report, params)
    counts: dict[str, Any] = json.loads(report.read_text())
    return counts


def published(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def cached(scratch: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in scratch.glob("cells/*/*.png")}


def fake_model(weights: Path, config: Path, easels: grid.Easels) -> grid.Draw:
    def draw_cells(cells: list[Cell]) -> list[Image.Image]:
        assert len(cells) == PARAMS.batch_size, "kernels round by the size of a batch"
        return [Image.new("RGB", (c.width, c.height), (c.seed, len(c.prompt), 0)) for c in cells]

    return draw_cells


def test_cells_do_not_depend_on_what_else_is_drawn(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_cells(zoo, tmp_path / "one")["cells"] == 2 * CELLS
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "elsewhere"))
    reversed_params = dataclasses.replace(
        PARAMS, prompts=["a new one", *PARAMS.prompts[::-1]], seeds=[2, 1], sizes=PARAMS.sizes[::-1]
    )
    run_cells(zoo, tmp_path / "other", reversed_params)
    pictures = {}
    for name in ("one", "other"):
        manifest = read_manifest(tmp_path / name)
        pictures[name] = {
            e.address: (tmp_path / name / str(e.file)).read_bytes() for e in manifest.entries
        }
    assert len(set(pictures["one"].values())) == 2 * CELLS
    assert pictures["one"].items() < pictures["other"].items()


def test_a_second_run_draws_nothing_and_a_new_prompt_only_its_own_cells(
    zoo: Zoo, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_cells(zoo, tmp_path / "out")
    before, drawn = published(tmp_path / "out"), cached(scratch)
    with monkeypatch.context() as patch:
        patch.setattr(grid, "open_model", lambda *_: pytest.fail("nothing is left to draw"))
        run_cells(zoo, tmp_path / "out")
    assert published(tmp_path / "out") == before
    more = dataclasses.replace(PARAMS, prompts=["first", *PARAMS.prompts])
    run_cells(zoo, tmp_path / "out", more)
    after = cached(scratch)
    assert drawn.items() < after.items(), "old cells were drawn again"
    assert len(after) - len(drawn) == 2 * CELLS / 2


def test_the_manifest_says_where_each_cell_is(zoo: Zoo, tmp_path: Path) -> None:
    run_cells(zoo, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert list(manifest.models) == ["epoch_002", "epoch_010"]
    for entry in manifest.entries:
        with Image.open(tmp_path / "out" / str(entry.file)) as picture:
            assert picture.size == (entry.width, entry.height)
    files = {entry.file for entry in manifest.entries} | {"cells.json"}
    assert set(published(tmp_path / "out")) == files


KILLED_RUN = f"""
import os, signal, sys
from pathlib import Path
from stages import grid
from stages.harness.named import named_weights
from tests.test_grid import PARAMS, fake_model

left = {KILLED_AFTER}
def open_model(weights, config, easels):
    draw = fake_model(weights, config, easels)
    def draw_cells(cells):
        global left
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= len(set(cells))
        return draw(cells)
    return draw_cells

grid.open_model = open_model
run, config, out = map(Path, sys.argv[1:])
grid.run_cells("test", named_weights([str(run)]), config, out, out.with_suffix(".json"), PARAMS)
"""


def test_a_killed_run_goes_on_where_it_was_and_ends_alike(
    zoo: Zoo, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED_RUN, str(zoo.run), str(zoo.config), str(out)]
    ended = subprocess.run(command, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    drawn = cached(scratch)
    # of what was drawn, the last batch may still have been on its way to the disk
    assert KILLED_AFTER - PARAMS.batch_size <= len(drawn) <= KILLED_AFTER
    assert not out.exists()
    monkeypatch.setattr(grid, "open_model", fake_model)
    run_cells(zoo, out)
    assert drawn.items() < cached(scratch).items(), "paid for twice"
    shutil.rmtree(scratch)
    run_cells(zoo, tmp_path / "unbroken")
    assert published(out) == published(tmp_path / "unbroken")


def test_a_cell_that_fails_is_marked_and_drawn_when_it_can_be(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def open_model(weights: Path, config: Path, easels: grid.Easels) -> grid.Draw:
        draw_cells = fake_model(weights, config, easels)

        def fails_once(cells: list[Cell]) -> list[Image.Image]:
            wanted = {(cell.prompt, cell.seed, cell.width) for cell in cells}
            if ("cat", 2, 48) in wanted and "002" in weights.name:
                raise RuntimeError("out of memory")
            return draw_cells(cells)

        return fails_once

    monkeypatch.setattr(grid, "open_model", open_model)
    counts = run_cells(zoo, tmp_path / "out")
    assert counts["failed"] == 1
    assert counts["failed_by_model"] == {"epoch_002": 1}
    assert "epoch_002, seed 2, 'cat': out of memory" in capsys.readouterr().out
    failed = [e for e in read_manifest(tmp_path / "out").entries if e.failed]
    assert [(e.model, e.prompt, e.seed, e.width, e.file) for e in failed] == [
        ("epoch_002", "cat", 2, 48, None)
    ]
    assert failed[0].failed == "RuntimeError: out of memory"
    monkeypatch.setattr(grid, "open_model", fake_model)
    assert run_cells(zoo, tmp_path / "out")["failed"] == 0


def test_a_model_of_broken_weights_is_marked_and_a_grid_of_nothing_else_fails(
    zoo: Zoo, tmp_path: Path
) -> None:
    broken = make_tiny_sd(tmp_path / "config").unet
    broken.load_state_dict(zoo.sd.unet.state_dict())
    broken.conv_out.weight.data.mul_(1000)
    file = tmp_path / "broken.safetensors"
    save_single_file(file, broken, zoo.sd.vae, zoo.sd.text_encoder, {})
    params = dataclasses.replace(PARAMS, guidance=1e38)  # times 1000 is infinite in float32
    with pytest.raises(ValueError, match=r"every cell failed.*not a finite picture"):
        grid.run_cells(
            "bad", {"broken": file}, zoo.config, tmp_path / "out", tmp_path / "r.json", params
        )


def test_a_folder_of_somebody_else_is_not_replaced(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="will not replace it"):
        run_cells(zoo, tmp_path / "out")


def test_scores_follow_the_pictures_and_are_paid_for_once(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_tiny_clip(tmp_path / "clip")
    run_cells(zoo, tmp_path / "out")
    grid.run_score(tmp_path / "out", clip, grid.ScoreOuts(tmp_path / "scores.csv"), SCORE_PARAMS)
    scores = read_scores(tmp_path / "scores.csv")
    assert len(scores) == 2 * CELLS
    assert len({score.score for score in scores}) > CELLS
    written = (tmp_path / "scores.csv").read_bytes()
    with (next((tmp_path / ".work/scores").iterdir())).open("a") as book:
        book.write('\n["cut sho')
    monkeypatch.setattr(grid, "_load_scorer", lambda *_: pytest.fail("all are scored"))
    grid.run_score(tmp_path / "out", clip, grid.ScoreOuts(tmp_path / "scores.csv"), SCORE_PARAMS)
    assert (tmp_path / "scores.csv").read_bytes() == written


def test_a_score_is_the_clips_own_logit(tmp_path: Path) -> None:
    from transformers import CLIPModel

    from stages.diffusion.scorer import Scorer

    scorer = Scorer(make_tiny_clip(tmp_path / "clip"))
    picture = Image.radial_gradient("L").convert("RGB").resize((20, 16))
    clip = CLIPModel.from_pretrained(tmp_path / "clip")
    tokens = scorer.tokenizer(["cat"], return_tensors="pt")
    pixel_values = scorer.processor(picture, return_tensors="pt").pixel_values
    logit = clip(**tokens, pixel_values=pixel_values).logits_per_image.item()
    assert scorer.score(picture, "cat") == pytest.approx(logit, abs=1e-4)
    assert scorer.score(picture, "cat") != scorer.score(picture, "dog")


def test_a_scorer_that_is_none_is_refused(tmp_path: Path) -> None:
    from stages.diffusion.scorer import Scorer

    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        Scorer(tmp_path)
    folder = make_tiny_clip(tmp_path / "clip")
    (folder / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ValueError, match="not a CLIPModel but model_type 'blip'"):
        Scorer(folder)


def test_names_come_from_the_files_or_from_the_person(zoo: Zoo, tmp_path: Path) -> None:
    file = zoo.run / "epoch_010.safetensors"
    assert list(named_weights([str(zoo.run)])) == ["epoch_002", "epoch_010"]
    assert list(named_weights([f"last={file}", f"b={zoo.run}"])) == [
        "last",
        "b-epoch_002",
        "b-epoch_010",
    ]
    with pytest.raises(ValueError, match="two models are named 'epoch_010'"):
        named_weights([str(zoo.run), str(file)])
    with pytest.raises(ValueError, match="cannot name a model"):
        named_weights([f"../up={file}"])
    with pytest.raises(FileNotFoundError, match="no such weights"):
        named_weights(["a=nowhere.safetensors"])
    with pytest.raises(FileNotFoundError, match="Did the training run"):
        named_weights([str(tmp_path)])


def test_the_drawing_code_draws_what_its_version_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If pictures changed on purpose, raise DRAWING_VERSION and write the new latents here."""
    from stages.diffusion.render import open_models

    sd = make_tiny_sd(tmp_path / "config")
    save_single_file(tmp_path / "sd.safetensors", sd.unet, sd.vae, sd.text_encoder, {})
    models = open_models(tmp_path / "sd.safetensors", tmp_path / "config", "float32")
    decode, latents = models.vae.decode, []

    def decode_seen(scaled: Tensor) -> Any:
        latents.append((scaled * models.vae.config.scaling_factor).flatten()[:3].tolist())
        return decode(scaled)

    monkeypatch.setattr(models.vae, "decode", decode_seen)
    for sampler in SAMPLERS:
        params = SamplingParams(sampler=sampler, steps=3, guidance=2.0, negative_prompt="dog")
        draw(models, ["cat"], [7], 32, 32, params)
    assert DRAWING_VERSION == 2
    assert dict(zip(SAMPLERS, latents, strict=True)) == {
        "ddim": pytest.approx([-1.94021, 1.25323, 2.48474], abs=1e-4),
        "dpmpp_2m": pytest.approx([-8.98610, 5.90383, 11.66985], abs=1e-4),
        "dpmpp_2m_karras": pytest.approx([-9.00559, 5.89657, 11.64466], abs=1e-4),
        "euler": pytest.approx([-8.98560, 5.87607, 11.59379], abs=1e-4),
    }


def test_a_cell_may_be_drawn_by_two_at_once(scratch: Path) -> None:
    cell = Cell(
        weights="w", config="c", prompt="p", negative_prompt="", seed=1, width=8, height=8,
        sampler="euler", steps=1, guidance=1.0, clip_skip=1, dtype="float32", batch_size=1,
        compile=False, vae_tile_px=0, drawing="1",
    )  # fmt: skip
    caches = [CellCache(scratch / "cells") for _ in range(2)]
    picture = Image.new("RGB", (8, 8))
    assert caches[0].put(cell, picture) == caches[1].put(cell, picture)
