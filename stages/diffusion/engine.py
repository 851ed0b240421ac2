"""The engine `torch`: cells drawn by this machine's own GPUs or CPU, in batches of one model."""

import gc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from stages.diffusion.crew import Crew
from stages.diffusion.model import Models
from stages.diffusion.render import Easel
from stages.diffusion.sample import SamplingParams, draw
from stages.drawing.cache import CellCache
from stages.drawing.cell import Cell
from stages.drawing.collector import Collector
from stages.drawing.column import Column
from stages.harness.scratch import work_dir

Easels = dict[tuple[object, ...], Easel]  # by dtype and the like
Draw = Callable[[list[Cell]], list[Image.Image]]  # a full batch of one size and setting
# What one picture may die of: too little memory, a shape that the UNet cannot halve, NaN.
CELL_ERRORS = (RuntimeError, ValueError, ArithmeticError)


def draw_missing(
    group: str,
    columns: Sequence[Column],
    missing: Mapping[str, list[Cell]],
    config: Path,
    cache: CellCache,
    crew: Crew,
) -> dict[str, str]:
    """Draw what the cache does not hold, model by model, this process's share of it.

    Args:
        group: names the grid.
        columns: the models.
        missing: cells to draw, by model.
        config: the diffusers folder that describes the models.
        cache: where pictures go.
        crew: the processes that share the work.

    Returns:
        By address, why a cell failed.
    """
    shares = {
        column.name: list(batches(missing[column.name]))[crew.rank :: crew.size]
        for column in columns
    }
    drawn_here = [batch for share in shares.values() for batch in share]
    total, ahead = sum(map(len, drawn_here)), max(map(len, drawn_here), default=1)
    easels: Easels = {}  # lives as long as the job: models of one kind take each other's place
    with Collector(cache, f"grid {group}", total, ahead) as collector:
        for column in columns:
            if not shares[column.name]:
                continue
            draw_cells = open_model(column.weights, config, easels)
            for batch in shares[column.name]:
                for cell, drawn in draw_batch(draw_cells, batch).items():
                    collector.take(column.name, cell, drawn)
            gc.collect()
    return collector.failures


def batches(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Group cells of one size and setting, in their order, as many as are drawn at once."""
    for _, same in itertools.groupby(cells, key=_drawn_alike):
        alike = list(same)
        size = alike[0].batch_size
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _drawn_alike(cell: Cell) -> tuple[object, ...]:
    """Tell what all cells of a batch have in common."""
    shape = (cell.width, cell.height, cell.negative_prompt)
    return (*shape, cell.sampler, cell.steps, cell.guidance, cell.clip_skip)


def draw_batch(draw_cells: Draw, batch: list[Cell]) -> dict[Cell, Image.Image | Exception]:
    """Draw a batch, filled up to its full size; after an error, each picture of it alone.

    Returns:
        By cell, the picture or what it died of.
    """
    try:
        drawn = draw_cells([*batch, *batch[-1:] * (batch[0].batch_size - len(batch))])
        return dict(zip(batch, drawn, strict=False))
    except CELL_ERRORS as error:
        if len(batch) == 1:
            return {batch[0]: error}
    return {cell: drawn for one in batch for cell, drawn in draw_batch(draw_cells, [one]).items()}


def open_model(weights: Path, config: Path, easels: Easels) -> Draw:
    """Load a model when its first batch is drawn, as that batch wants it.

    Args:
        weights: of the model.
        config: the diffusers folder that describes it.
        easels: hold the last model that was drawn as a kind of batch wants it; its place is taken.
    """
    loaded: dict[tuple[object, ...], Models] = {}
    refused: dict[tuple[object, ...], ValueError] = {}  # read once, not again for every cell

    def draw_cells(cells: list[Cell]) -> list[Image.Image]:
        cell = cells[0]
        kind = (cell.dtype, cell.compile, cell.vae_tile_px)
        if kind not in easels:
            easels[kind] = Easel(
                config,
                cell.dtype,
                compiled=cell.compile,
                tile_px=cell.vae_tile_px,
                cache=work_dir("compiled"),
            )
        if kind in refused:
            raise refused[kind]
        if kind not in loaded:
            try:
                loaded[kind] = easels[kind].put(weights)
            except ValueError as error:
                refused[kind] = error
                raise
        sampling = SamplingParams(
            sampler=cell.sampler,
            steps=cell.steps,
            guidance=cell.guidance,
            negative_prompt=cell.negative_prompt,
        )
        return draw(
            loaded[kind],
            [cell.prompt for cell in cells],
            [cell.seed for cell in cells],
            cell.width,
            cell.height,
            sampling,
            cell.clip_skip,
        )

    return draw_cells
