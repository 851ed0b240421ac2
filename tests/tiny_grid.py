"""Two tiny models, and a grid that they draw in a second."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from stages import grid_cells
from stages.choice.score_params import ScoreParams
from stages.diffusion.engine import Draw, Easels
from stages.diffusion.model import save_single_file
from stages.drawing.cell import Cell
from stages.drawing.grid_params import AxesParams, ComfyParams, GridParams
from stages.harness.named import named_weights
from stages.sheets.sheet_params import SheetParams
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


@dataclass(frozen=True)
class Zoo:
    """Two models of one architecture."""

    config: Path
    run: Path
    sd: TinySD


def make_zoo(folder: Path) -> Zoo:
    """Write two models, as a training run of two epochs leaves them."""
    sd = make_tiny_sd(folder / "config")
    for epoch in (2, 10):
        sd.unet.conv_out.bias.data.add_(0.125)
        file = folder / "run" / f"epoch_{epoch:03}.safetensors"
        save_single_file(file, sd.unet, sd.vae, sd.text_encoder, {})
    return Zoo(folder / "config", folder / "run", sd)


def run_cells(zoo: Zoo, out: Path, params: GridParams = PARAMS) -> dict[str, Any]:
    """Draw their grid, and give its counts."""
    return draw_grid(named_weights([str(zoo.run)]), zoo.config, out, params)


def draw_grid(
    weights: dict[str, Path], config: Path, out: Path, params: GridParams = PARAMS
) -> dict[str, Any]:
    """Draw a grid, and give the report's counts and those of the work done."""
    outs = grid_cells.CellsOuts(out, out.with_suffix(".json"), out.with_suffix(".drawn.json"))
    grid_cells.run("test", weights, config, outs, params)
    assert outs.drawn
    return {**json.loads(outs.report.read_text()), **json.loads(outs.drawn.read_text())}


def fake_model(weights: Path, config: Path, easels: Easels) -> Draw:
    """Stand for a model that draws one colour at once."""

    def draw_cells(cells: list[Cell]) -> list[Image.Image]:
        assert len(cells) == cells[0].batch_size, "kernels round by the size of a batch"
        return [Image.new("RGB", (c.width, c.height), (c.seed, len(c.prompt), 0)) for c in cells]

    return draw_cells
