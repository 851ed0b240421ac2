"""Drawing the cells of models: once each, whatever the order and however often killed."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stages import grid_cells, grid_score
from stages.choice.scores import read_scores
from stages.diffusion import engine
from stages.diffusion.capacity import Capacity
from stages.diffusion.model import save_single_file
from stages.diffusion.sample import SamplingParams, draw, initial_noise
from stages.diffusion.samplers import SAMPLERS
from stages.drawing.cache import CellCache
from stages.drawing.cell import DRAWING_VERSION, Cell
from stages.drawing.grid_params import GridParams, PromptSet, planned_cells
from stages.drawing.manifest import read_manifest
from stages.harness.named import named_weights
from stages.lineage.noise_schedule import ZERO_TERMINAL_SNR
from stages.sheets.arrange import sheets
from tests.tiny_clip import make_tiny_clip
from tests.tiny_grid import (
    CELLS,
    PARAMS,
    SCORE_PARAMS,
    Zoo,
    draw_grid,
    fake_model,
    make_zoo,
    run_cells,
)
from tests.tiny_sd import make_tiny_sd

PATIENCE = 3  # times the goal: the machine may be at other work
KILLED_AFTER = 11  # cells: in the second model, where a batch ends


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / ".work"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return make_zoo(tmp_path_factory.mktemp("zoo"))


def published(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def cached(scratch: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in scratch.glob("cells/*/*.png")}


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
        patch.setattr(engine, "open_model", lambda *_: pytest.fail("nothing is left to draw"))
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
import os, signal, sys, time
from pathlib import Path
from stages.diffusion import engine
from stages.drawing.cache import CellCache
from stages.harness.named import named_weights
from tests.tiny_grid import draw_grid, fake_model

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

def slow_put(cache, cell, picture, put=CellCache.put):
    time.sleep(pause_s)
    return put(cache, cell, picture)

engine.open_model = open_model
CellCache.put = slow_put
run, config, out = map(Path, sys.argv[1:4])
pause_s = float(sys.argv[4])
draw_grid(named_weights([str(run)]), config, out)
"""


@pytest.mark.parametrize("pause_s", ["0", "0.3"])  # of a disk, before it takes a picture
def test_a_killed_run_goes_on_where_it_was_and_ends_alike(
    zoo: Zoo, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, pause_s: str
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED_RUN, str(zoo.run), str(zoo.config), str(out)]
    command.append(pause_s)
    ended = subprocess.run(command, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    drawn = cached(scratch)
    # of what was drawn, no more than one batch was still on its way to the disk
    assert KILLED_AFTER - PARAMS.batch_size <= len(drawn) <= KILLED_AFTER
    assert not out.exists()
    monkeypatch.setattr(engine, "open_model", fake_model)
    run_cells(zoo, out)
    assert drawn.items() < cached(scratch).items(), "paid for twice"
    shutil.rmtree(scratch)
    run_cells(zoo, tmp_path / "unbroken")
    assert published(out) == published(tmp_path / "unbroken")
    reports = [path.with_suffix(".json").read_bytes() for path in (out, tmp_path / "unbroken")]
    assert reports[0] == reports[1], "it tells what the recipe comes to, not who paid when"


def test_a_cell_that_fails_is_marked_and_drawn_when_it_can_be(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def open_model(weights: Path, config: Path, easels: engine.Easels) -> engine.Draw:
        draw_cells = fake_model(weights, config, easels)

        def fails_once(cells: list[Cell]) -> list[Image.Image]:
            wanted = {(cell.prompt, cell.seed, cell.width) for cell in cells}
            if ("cat", 2, 48) in wanted and "002" in weights.name:
                raise RuntimeError("out of memory")
            return draw_cells(cells)

        return fails_once

    monkeypatch.setattr(engine, "open_model", open_model)
    counts = run_cells(zoo, tmp_path / "out")
    assert counts["failed"] == 1
    assert counts["failed_by_model"] == {"epoch_002": 1}
    said = capsys.readouterr().out
    assert "epoch_002, seed 2, 'cat': out of memory" in said
    assert "1 cell failed, see" in said
    failed = [e for e in read_manifest(tmp_path / "out").entries if e.failed]
    assert [(e.model, e.prompt, e.seed, e.width, e.file) for e in failed] == [
        ("epoch_002", "cat", 2, 48, None)
    ]
    assert failed[0].failed == "RuntimeError: out of memory"
    monkeypatch.setattr(engine, "open_model", fake_model)
    assert run_cells(zoo, tmp_path / "out")["failed"] == 0


def a_batch(count: int, batch_size: int) -> list[Cell]:
    params = dataclasses.replace(
        PARAMS, prompts=["cat"], seeds=list(range(count)), sizes=[(32, 32)], batch_size=batch_size
    )
    return planned_cells(params, "w", "c", "1")


class SmallMemory:
    """Stands for a GPU that holds so many pictures at once, and one seed on no account."""

    def __init__(self, holds: int, too_large: int = -1) -> None:
        self.holds, self.too_large = holds, too_large
        self.asked: list[int] = []

    def draw(self, cells: list[Cell]) -> list[Image.Image]:
        self.asked.append(len(cells))
        if len(cells) > self.holds or self.too_large in {cell.seed for cell in cells}:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [Image.new("RGB", (32, 32), (cell.seed, 0, 0)) for cell in cells]


def test_where_memory_ends_half_as_many_are_drawn_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    memory, fits = SmallMemory(holds=5), dict[engine.Kind, Capacity]()
    cells = a_batch(16, 16)
    drawn = engine.draw_batch(memory.draw, cells, fits)
    assert [c.seed for c, p in drawn.items() if isinstance(p, Image.Image)] == list(range(16))
    assert memory.asked == [16, 8, 4, 4, 4, 4]
    engine.draw_batch(memory.draw, cells[:6], fits)
    assert memory.asked[6:] == [4, 4], "it is remembered, and a batch is full"
    assert "out of memory with 8 pictures of 32 x 32 px at once: 4 from" in capsys.readouterr().out


def test_only_the_picture_that_no_memory_holds_is_marked() -> None:
    memory = SmallMemory(holds=9, too_large=2)
    drawn = engine.draw_batch(memory.draw, a_batch(5, 4), {})
    failed = [cell.seed for cell, outcome in drawn.items() if isinstance(outcome, Exception)]
    assert failed == [2]
    assert memory.asked == [4, 2, 2, 1, 1, 1]


def test_a_picture_that_is_not_finite_costs_no_other_of_its_batch(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    draws = []

    def seen(*words: Any) -> Any:
        draws.append(words[2])
        return draw(*words)

    def noise_of_one(seed: int, *words: Any) -> Tensor:
        return initial_noise(seed, *words) * (float("nan") if seed == 1 else 1)

    monkeypatch.setattr("stages.diffusion.engine.draw", seen)
    monkeypatch.setattr("stages.diffusion.sample.initial_noise", noise_of_one)
    draw_cells = engine.open_model(zoo.run / "epoch_002.safetensors", zoo.config, {})
    drawn = engine.draw_batch(draw_cells, a_batch(3, 3), {})
    kinds = [type(outcome) for outcome in drawn.values()]
    assert kinds == [Image.Image, FloatingPointError, Image.Image]
    assert draws == [[0, 1, 2]], "once"


@pytest.mark.parametrize("one_is_broken", [False, True])
def test_the_text_of_a_picture_names_a_noise_schedule_that_ends_in_pure_noise(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_is_broken: bool
) -> None:
    def noise(seed: int, *words: Any) -> Tensor:
        broken = one_is_broken and seed == PARAMS.seeds[0]
        return initial_noise(seed, *words) * (float("nan") if broken else 1)

    monkeypatch.setattr("stages.diffusion.sample.initial_noise", noise)
    parts, learnt = (zoo.sd.unet, zoo.sd.vae, zoo.sd.text_encoder), ZERO_TERMINAL_SNR
    for name, metadata in (("plain", {}), ("pure", {learnt: "true"})):
        save_single_file(tmp_path / f"{name}.safetensors", *parts, metadata)
    weights = {name: tmp_path / f"{name}.safetensors" for name in ("plain", "pure")}
    draw_grid(weights, zoo.config, tmp_path / "out")
    texts: dict[str, list[str]] = {name: [] for name in weights}
    for entry in read_manifest(tmp_path / "out").entries:
        if entry.file:
            with Image.open(tmp_path / "out" / entry.file) as shown:
                texts[entry.model].append(shown.info["parameters"])
    assert {len(said) for said in texts.values()} == {CELLS // (1 + one_is_broken)}
    assert all("RNG: CPU, Noise Schedule: Zero Terminal SNR, SGM" in t for t in texts["pure"])
    assert not any("Noise Schedule" in text for text in texts["plain"])


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
        draw_grid({"broken": file}, zoo.config, tmp_path / "out", params)


def call(monkeypatch: pytest.MonkeyPatch, params: GridParams, *words: object) -> None:
    """Run the command line with params."""
    monkeypatch.setattr(grid_cells, "load_params", lambda *_: params)
    monkeypatch.setattr("sys.argv", ["grid_cells", *map(str, words)])
    grid_cells.main()


@pytest.mark.parametrize(
    ("broken", "words"), [("nan", "not a finite picture"), ("lacking", "not the architecture that")]
)
def test_weights_that_draw_nothing_end_in_one_message_and_are_read_once(
    zoo: Zoo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: str,
    words: str,
) -> None:
    from safetensors.torch import load_file, save_file

    from stages.diffusion.easel import Easel

    weights = load_file(zoo.run / "epoch_002.safetensors")
    first = "model.diffusion_model.input_blocks.0.0.weight"
    weights[first].fill_(float("nan"))
    if broken == "lacking":
        del weights[first]
    save_file(weights, tmp_path / "bad.safetensors")
    put, reads = Easel.put, []

    def counted(easel: Easel, path: Path) -> Any:
        reads.append(path)
        return put(easel, path)

    monkeypatch.setattr(Easel, "put", counted)
    line: list[object] = [
        f"bad={tmp_path / 'bad.safetensors'}",
        "--group",
        "g",
        "--config",
        zoo.config,
    ]
    line += ["--out", tmp_path / "out", "--report", tmp_path / "r.json"]
    with pytest.raises(SystemExit, match=f"every cell failed; the first: .*{words}") as ended:
        call(monkeypatch, PARAMS, *line)
    assert str(ended.value).count("\n") == 1, "one message, and how to see more"
    assert len(reads) == 1
    assert capsys.readouterr().out.count(words) == 1, "not for each cell"
    assert not (tmp_path / "out").exists()


def test_a_config_that_is_not_there_is_one_message_also_while_networks_are_imported(
    zoo: Zoo, tmp_path: Path
) -> None:
    section = {**dataclasses.asdict(PARAMS), "compile": True}
    (tmp_path / "params.yaml").write_text(json.dumps({"grid": section}))
    command = [sys.executable, "-m", "stages.grid_cells", str(zoo.run), "--group", "g"]
    command += ["--config", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    command += ["--report", str(tmp_path / "r"), "--params", str(tmp_path / "params.yaml")]
    environment = {**os.environ, "DVC_ROOT": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nowhere: no such folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_of_somebody_else_is_not_replaced(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="will not replace it"):
        run_cells(zoo, tmp_path / "out")


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
    assert DRAWING_VERSION == 3
    assert dict(zip(SAMPLERS, latents, strict=True)) == {
        "ddim": pytest.approx([-1.80330, 1.18543, 2.33219], abs=1e-4),
        "dpmpp_2m": pytest.approx([-8.99665, 5.90164, 11.66523], abs=1e-4),
        "dpmpp_2m_karras": pytest.approx([-9.00559, 5.89657, 11.64466], abs=1e-4),
        "euler": pytest.approx([-9.01258, 5.89006, 11.62465], abs=1e-4),
    }


def test_a_cell_may_be_drawn_by_two_at_once(scratch: Path) -> None:
    cell = Cell(
        weights="w", config="c", prompt="p", negative_prompt="", seed=1, width=8, height=8,
        sampler="euler", steps=1, guidance=1.0, clip_skip=1, dtype="float32", batch_size=1,
        compile=False, vae_tile_px=0, engine="torch", drawing="1",
    )  # fmt: skip
    caches = [CellCache(scratch / "cells") for _ in range(2)]
    picture = Image.new("RGB", (8, 8))
    assert caches[0].put(cell, picture) == caches[1].put(cell, picture)


def test_every_axis_draws_other_pictures_and_the_sheet_and_scores_tell_them_apart(
    zoo: Zoo, tmp_path: Path
) -> None:
    axes = dataclasses.replace(
        PARAMS.axes, sampler=["ddim"], guidance=[20.0], clip_skip=[2], replace=[("red", "blue")]
    )
    params = dataclasses.replace(PARAMS, axes=axes, seeds=[1], sizes=[(32, 32)])
    counts = run_cells(zoo, tmp_path / "out", params)
    manifest = read_manifest(tmp_path / "out")
    assert counts["cells"] == len(manifest.entries) == 2 * 3 * 2**3
    first = [e for e in manifest.entries if e.model == "epoch_002"]
    # not all: with a model of noise, a word more or less may move no pixel by a level
    assert len({pixels(tmp_path / "out" / str(e.file)).tobytes() for e in first}) > 2**4
    (sheet,) = sheets(manifest, tmp_path / "out", list(manifest.models))
    assert [row.prompt for row in sheet.rows] == [
        p for p in ("cat", "red apple", "blue apple") for _ in range(8)
    ]
    assert sheet.rows[0].label == ("seed 1", "euler", "guidance 3", "clip skip 1")
    outs = grid_score.ScoreOuts(tmp_path / "s.csv")
    grid_score.run(tmp_path / "out", make_tiny_clip(tmp_path / "clip"), outs, SCORE_PARAMS)
    scores = read_scores(tmp_path / "s.csv")
    assert len({(s.prompt, s.variant) for s in scores}) == 3 * 2**3
    assert {s.prompt for s in scores} == set(PARAMS.prompts), "resampled with their variants"


def test_a_set_s_negative_prompt_is_what_its_cells_are_drawn_with(zoo: Zoo, tmp_path: Path) -> None:
    sets = [
        PromptSet(category="a", negative_prompt="dog", prompts=["cat"]),
        PromptSet(category="b", negative_prompt="", prompts=["cat"]),
    ]
    params = dataclasses.replace(PARAMS, prompts=[*sets], seeds=[1], sizes=[(32, 32)])
    run_cells(zoo, tmp_path / "out", params)
    entries = read_manifest(tmp_path / "out").entries
    assert [(e.category, e.negative_prompt) for e in entries[:2]] == [("a", "dog"), ("b", "")]
    files = {(tmp_path / "out" / str(e.file)).read_bytes() for e in entries}
    assert len(files) == len(entries)


def test_what_was_drawn_and_what_was_there_is_counted(zoo: Zoo, tmp_path: Path) -> None:
    counts = run_cells(zoo, tmp_path / "out")
    assert (counts["drawn"], counts["reused"]) == (2 * CELLS, 0)
    more = dataclasses.replace(PARAMS, seeds=[1, 2, 3])
    counts = run_cells(zoo, tmp_path / "out", more)
    assert (counts["drawn"], counts["reused"]) == (CELLS, 2 * CELLS)


def test_models_of_the_same_weights_draw_once(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "open_model", fake_model)
    put, kept = CellCache.put, []

    def counted(cache: CellCache, cell: Cell, picture: Image.Image) -> Path:
        kept.append(cell)
        return put(cache, cell, picture)

    monkeypatch.setattr(CellCache, "put", counted)
    one, twin, other = (tmp_path / name for name in ("one", "twin", "other"))
    for path in (one, twin, other):
        path.write_text("another's" if path == other else "the same")
    counts = draw_grid({p.name: p for p in (one, twin, other)}, zoo.config, tmp_path / "out")
    assert (counts["cells"], counts["drawn"], counts["reused"]) == (3 * CELLS, 2 * CELLS, 0)
    assert len(kept) == 2 * CELLS
    files = published(tmp_path / "out")
    assert all(files[f"twin/{n:04}.png"] == files[f"one/{n:04}.png"] for n in range(1, CELLS + 1))


def test_a_grid_that_was_pulled_is_extended_and_not_drawn_again(
    zoo: Zoo, tmp_path: Path, scratch: Path
) -> None:
    run_cells(zoo, tmp_path / "out")
    before = published(tmp_path / "out")
    shutil.rmtree(scratch)  # another machine's: only the grid itself is there
    fewer = dataclasses.replace(PARAMS, prompts=["cat", "a tram"])
    counts = run_cells(zoo, tmp_path / "out", fewer)
    assert (counts["drawn"], counts["reused"]) == (CELLS, CELLS)
    after = published(tmp_path / "out")
    assert len(after) == len(before), "what is no longer asked for is gone"
    assert len(set(after.values()) & set(before.values())) == CELLS


def test_two_processes_share_the_cells_and_draw_the_same(zoo: Zoo, tmp_path: Path) -> None:
    """As `torchrun` spreads them over GPUs; here over two processes of one CPU, through gloo."""
    run_cells(zoo, tmp_path / "one")
    section = dataclasses.asdict(PARAMS)
    (tmp_path / "params.yaml").write_text(json.dumps({"grid": section}))
    words = ["--group", "test", "--config", str(zoo.config), "--out", str(tmp_path / "two")]
    words += ["--report", str(tmp_path / "two.json"), "--params", str(tmp_path / "params.yaml")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    stage = ["--nproc-per-node", "2", "-m", "stages.grid_cells", str(zoo.run)]
    environment = {**os.environ, "DVC_ROOT": str(tmp_path / "elsewhere"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, *stage, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("16 to draw") == 1, "said once"
    one, two = (read_manifest(tmp_path / name) for name in ("one", "two"))
    assert one == two
    apart = [  # threads may round the last bit
        np.abs(pixels(tmp_path / "one" / str(e.file)) - pixels(tmp_path / "two" / str(e.file)))
        for e in one.entries
    ]
    assert all(gap.max() <= 1 for gap in apart)
    shares = re.findall(r"grid test: (\d+)/\d+ in", done.stderr)
    assert sorted(map(int, shares)) == [4, 12], "four batches each: a batch may not be full"


def pixels(path: Path) -> "np.ndarray[Any, np.dtype[np.int64]]":
    with Image.open(path) as picture:
        return np.asarray(picture).astype(np.int64)


def test_a_model_put_in_the_place_of_another_draws_as_if_it_were_alone(
    zoo: Zoo, tmp_path: Path
) -> None:
    from stages.diffusion.easel import Easel
    from stages.diffusion.sample import SamplingParams, draw

    files = sorted(zoo.run.iterdir())
    sampling = SamplingParams(sampler="euler", steps=2, guidance=3.0, negative_prompt="")

    def drawn(easel: Easel, file: Path) -> bytes:
        return draw(easel.put(file), ["cat"], [1], 64, 64, sampling)[0].tobytes()

    def new_easel(tile_px: int = 0) -> Easel:
        cache = tmp_path / "compiled"
        return Easel(zoo.config, "float32", compiled=False, tile_px=tile_px, cache=cache)

    shared = new_easel()
    unet = shared.put(files[0]).unet
    in_turn = [drawn(shared, file) for file in (*files, files[0])]
    assert shared.put(files[1]).unet is unet, "code compiled for it would be lost"
    assert in_turn == [drawn(new_easel(), file) for file in (*files, files[0])]
    tiled = np.frombuffer(drawn(new_easel(32), files[0]), np.uint8).astype(int)
    whole = np.frombuffer(in_turn[0], np.uint8).astype(int)
    assert tiled.tobytes() != whole.tobytes()
    assert np.abs(tiled - whole).mean() < 30, "seams apart, the same picture"


def test_weights_of_half_precision_draw_nearly_the_same(zoo: Zoo, tmp_path: Path) -> None:
    full = dataclasses.replace(PARAMS, seeds=[1], sizes=[(32, 32)], guidance=1.0)
    run_cells(zoo, tmp_path / "float32", full)
    run_cells(zoo, tmp_path / "bfloat16", dataclasses.replace(full, dtype="bfloat16"))
    names = [str(e.file) for e in read_manifest(tmp_path / "float32").entries]
    for name in names:
        gap = np.abs(pixels(tmp_path / "float32" / name) - pixels(tmp_path / "bfloat16" / name))
        assert 0 < gap.mean() < 16


def test_code_is_compiled_once_for_a_size_whatever_the_model(zoo: Zoo, tmp_path: Path) -> None:
    """With the compiler's first half alone: the second takes a minute on a CPU."""
    from stages.diffusion.easel import Easel
    from stages.diffusion.sample import SamplingParams, draw

    sampling = SamplingParams(sampler="euler", steps=2, guidance=3.0, negative_prompt="")

    def drawn(easel: Easel, file: Path, side: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
        (picture,) = draw(easel.put(file), ["cat"], [1], side, side, sampling)
        return np.asarray(picture).astype(np.int64)

    def new_easel(*, compiled: bool) -> Easel:
        cache = tmp_path / "compiled"
        return Easel(
            zoo.config,
            "float32",
            compiled=compiled,
            tile_px=0,
            cache=cache,
            backend="eager",
            options={},
        )

    compiled, plain = new_easel(compiled=True), new_easel(compiled=False)
    first, second = sorted(zoo.run.iterdir())
    assert abs(drawn(compiled, first, 32) - drawn(plain, first, 32)).max() <= 1
    codes = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.code")}
    assert len(codes) == 2, "the UNet and the decoder"
    assert abs(drawn(compiled, second, 32) - drawn(plain, second, 32)).max() <= 1
    again = new_easel(compiled=True)  # as another process
    assert abs(drawn(again, second, 32) - drawn(plain, second, 32)).max() <= 1
    assert codes == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.code")}
    drawn(again, second, 64)
    assert len([*tmp_path.rglob("*.code")]) == 4


def test_compiled_code_is_kept_in_the_scratch_not_where_torch_would_put_it(
    zoo: Zoo, tmp_path: Path
) -> None:
    script = (
        "from stages.harness.compiled import compiled_code\n"
        "folder = compiled_code()\n"
        "import torch._dynamo\n"
        "from torch._inductor.runtime.cache_dir_utils import cache_dir\n"
        "print(folder, cache_dir())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    environment["DVC_ROOT"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(tmp_path / ".work/compiled")] * 2


def test_a_clip_skip_of_more_layers_than_there_are_is_a_cell_that_failed(
    zoo: Zoo, tmp_path: Path
) -> None:
    axes = dataclasses.replace(PARAMS.axes, clip_skip=[9])
    params = dataclasses.replace(PARAMS, axes=axes, seeds=[1], sizes=[(32, 32)])
    assert run_cells(zoo, tmp_path / "out", params)["failed"] == 4
    failed = [e for e in read_manifest(tmp_path / "out").entries if e.failed]
    assert "clip_skip 9: the text encoder has 2 layers" in str(failed[0].failed)


def test_a_rerun_of_2184_cells_with_nothing_new_takes_less_than_5_seconds(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[str | PromptSet] = [f"prompt {n}" for n in range(21)]
    sizes = [(8, 8), (16, 8)]
    params = dataclasses.replace(PARAMS, prompts=prompts, seeds=[1, 2, 3, 4], sizes=sizes)
    monkeypatch.setattr(engine, "open_model", fake_model)
    weights = {}
    for number in range(13):
        weights[f"epoch_{number:03}"] = tmp_path / f"{number}.safetensors"
        weights[f"epoch_{number:03}"].write_bytes(b"%d" % number)
    draw_grid(weights, zoo.config, tmp_path / "out", params)
    monkeypatch.setattr(engine, "open_model", lambda *_: pytest.fail("nothing is left to draw"))
    started = time.perf_counter()
    counts = draw_grid(weights, zoo.config, tmp_path / "out", params)
    seconds = time.perf_counter() - started
    assert counts["reused"] == counts["cells"] == 2184
    print(f"{seconds:.2f} s")  # noqa: T201, a figure for `-s`
    assert seconds < 5 * PATIENCE
