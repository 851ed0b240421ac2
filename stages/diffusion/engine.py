"""The engine `torch`: cells drawn by this machine's own GPUs or CPU, in batches of one model."""

import gc
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from stages.diffusion.capacity import Capacity
from stages.diffusion.crew import Crew
from stages.diffusion.easel import Easel
from stages.diffusion.model import Models
from stages.diffusion.sample import BrokenPicturesError, SamplingParams, draw
from stages.diffusion.samplers import levels_of
from stages.drawing.cache import CellCache
from stages.drawing.cell import NOISE_SCHEDULE, ZERO_TERMINAL_SNR, Cell
from stages.drawing.collector import Collector
from stages.drawing.column import Column
from stages.harness.compiled import compiled_code

Easels = dict[tuple[object, ...], Easel]  # by dtype and the like
Draw = Callable[[list[Cell]], list[Image.Image]]  # a full batch of one size and setting
Kind = tuple[object, ...]  # of cells that are drawn in one batch
# What one picture may die of: too little memory, a shape that the UNet cannot halve, NaN.
CELL_ERRORS = (RuntimeError, ValueError, ArithmeticError, MemoryError)


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
    fits: dict[Kind, Capacity] = {}
    easels: Easels = {}  # lives as long as the job: models of one kind take each other's place
    with Collector(cache, f"grid {group}", total, ahead) as collector:
        for column in columns:
            if not shares[column.name]:
                continue
            draw_cells = open_model(column.weights, config, easels)
            for batch in shares[column.name]:
                for cell, drawn in draw_batch(draw_cells, batch, fits).items():
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


def _drawn_alike(cell: Cell) -> Kind:
    """Tell what all cells of a batch have in common."""
    shape = (cell.width, cell.height, cell.negative_prompt)
    return (*shape, cell.sampler, cell.steps, cell.guidance, cell.clip_skip)


def draw_batch(
    draw_cells: Draw, batch: list[Cell], fits: dict[Kind, Capacity]
) -> dict[Cell, Image.Image | Exception]:
    """Draw a batch, filled up to its full size.

    Where memory ends, half as many are drawn at once, to pixels that may differ by a level: better
    than none. After another error each picture is drawn alone, so that one does not cost the rest.

    Args:
        draw_cells: draws so many pictures of one kind.
        batch: cells of one kind.
        fits: by kind, how many memory holds at once, as far as that was found out.

    Returns:
        By cell, the picture or what it died of.
    """
    first, waiting, at_once = batch[0], list(batch), len(batch)
    capacity = fits.setdefault(
        _drawn_alike(first), Capacity(first.batch_size, partial(_say_smaller, first))
    )
    drawn: dict[Cell, Image.Image | Exception] = {}
    while waiting:
        outcomes: Sequence[Image.Image | Exception]
        try:
            outcomes = capacity.fill(partial(_whole_or_broken, draw_cells), waiting[:at_once])
        except CELL_ERRORS as error:
            if min(capacity.count, at_once, len(waiting)) > 1:
                at_once = 1
                continue
            outcomes = [error.with_traceback(None)]  # whose frames would hold the batch in memory
        drawn |= dict(zip(waiting, outcomes, strict=False))
        del waiting[: len(outcomes)]
    return drawn


def _whole_or_broken(draw_cells: Draw, cells: list[Cell]) -> Sequence[Image.Image | Exception]:
    """Draw; give an error in the place of each picture that is broken."""
    try:
        return draw_cells(cells)
    except BrokenPicturesError as error:
        return [picture or FloatingPointError(str(error)) for picture in error.pictures]


def _say_smaller(cell: Cell, size: int, smaller: int) -> None:
    print(
        f"out of memory with {size} pictures of {cell.width} x {cell.height} px at once: "
        f"{smaller} from here on; grid.batch_size: {smaller} would have fitted",
        flush=True,
    )


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
                cache=compiled_code(),
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
        try:
            pictures = draw(
                loaded[kind],
                [cell.prompt for cell in cells],
                [cell.seed for cell in cells],
                cell.width,
                cell.height,
                sampling,
                cell.clip_skip,
            )
        except BrokenPicturesError as error:
            _note_schedule(loaded[kind], filter(None, error.pictures))
            raise
        _note_schedule(loaded[kind], pictures)
        return pictures

    return draw_cells


def _note_schedule(models: Models, pictures: Iterable[Image.Image]) -> None:
    """Name a noise schedule that ends in pure noise, without which A1111 draws other pictures."""
    if levels_of(models.noise_scheduler).is_zero_terminal:
        for picture in pictures:
            picture.info[NOISE_SCHEDULE] = ZERO_TERMINAL_SNR
