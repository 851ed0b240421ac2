"""Cells: one picture each, named by the hash of everything that determines it."""

import dataclasses
import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from stages.harness.files import link_or_copy, sha256_json, write_json
from stages.harness.params import Params

DRAWING_VERSION = 2  # raise it when stages.diffusion draws other pixels from the same cell
ENGINE = ("torch", "diffusers", "transformers")
MANIFEST = "cells.json"
SIDE_STEP_PX = 8
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetParams(Params):
    """Section `grid.sheet`: how cells are shown; changing it draws none anew."""

    scale: int  # px of the sheet for each px of a cell
    max_side_px: int  # longer side of a page; what does not fit goes on another

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.scale < 1 or self.max_side_px < 1:
            raise ValueError("scale and max_side_px must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class GridParams(Params):
    """Section `grid`: the pictures that every model draws, each prompt at each size and seed."""

    prompts: list[str]
    negative_prompt: str  # "" is the empty caption of training
    seeds: list[int]
    sizes: list[tuple[int, int]]  # (width, height), px
    sampler: str  # ddim, euler, dpmpp_2m or dpmpp_2m_karras
    steps: int
    guidance: float
    dtype: str  # of the weights while drawing
    batch_size: int  # pictures of one model and size drawn at once
    sheet: SheetParams

    def __post_init__(self) -> None:
        """Check what would otherwise fail only after models are loaded."""
        for name in ("prompts", "seeds", "sizes"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} is empty: at least one is needed")
            if repeated := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"{name} holds {repeated[0]!r} twice")
        for size in self.sizes:
            if any(side < 1 or side % SIDE_STEP_PX for side in size):
                raise ValueError(
                    f"size {size[0]} x {size[1]} px: both sides must be multiples of {SIDE_STEP_PX}"
                )
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A picture that is wanted."""

    weights: str  # SHA-256 of the model's file
    config: str  # SHA-256 of its config folder: tokenizer, noise schedule, shapes
    prompt: str
    negative_prompt: str
    seed: int
    width: int  # px
    height: int  # px
    sampler: str
    steps: int
    guidance: float
    dtype: str
    batch_size: int  # for kernels round by it; a batch is always full
    drawing: str  # version of the code that draws

    @property
    def address(self) -> str:
        """Name the picture: 64 hex digits, the same wherever the same picture is wanted."""
        return sha256_json(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True)
class Entry:
    """A cell of a published grid."""

    model: str
    prompt: str
    seed: int
    width: int
    height: int
    address: str
    file: str | None  # below the grid's folder; None if the cell failed
    failed: str | None  # why


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a published grid holds."""

    group: str
    models: dict[str, str]  # name -> SHA-256 of its weights, in the order of the columns
    settings: dict[str, Any]  # what all cells have in common
    entries: list[Entry]  # model by model, as planned


def drawing_version() -> str:
    """Name the code that draws; a new torch may round elsewhere, so it counts as other code."""
    libraries = (f"{name} {version(name).split('+')[0]}" for name in ENGINE)
    return ", ".join([str(DRAWING_VERSION), *libraries])


def planned_cells(params: GridParams, weights: str, config: str) -> list[Cell]:
    """List a model's cells: size by size, prompt by prompt, seed by seed.

    Args:
        params: the section `grid`.
        weights: SHA-256 of the model's file.
        config: SHA-256 of its config folder.
    """
    drawing = drawing_version()
    return [
        Cell(
            weights=weights,
            config=config,
            prompt=prompt,
            negative_prompt=params.negative_prompt,
            seed=seed,
            width=width,
            height=height,
            sampler=params.sampler,
            steps=params.steps,
            guidance=params.guidance,
            dtype=params.dtype,
            batch_size=params.batch_size,
            drawing=drawing,
        )
        for width, height in params.sizes
        for prompt in params.prompts
        for seed in params.seeds
    ]


class CellCache:
    """Pictures that were drawn once, by address; shared by all grids, safe to kill at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, cell: Cell) -> Path | None:
        """Give the picture's file; None if it is still to be drawn."""
        path = self._path(cell)
        return path if path.is_file() else None

    def put(self, cell: Cell, picture: Image.Image) -> Path:
        """Keep a picture: lossless, and its pixels alone, so that equal pixels are equal bytes."""
        path = self._path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The process's own name: two grids may draw one cell at one time, and either may win.
        scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            with scratch.open("wb") as file:
                bare = Image.frombytes(picture.mode, picture.size, picture.tobytes())
                bare.save(file, format="PNG")
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        return path

    def _path(self, cell: Cell) -> Path:
        address = cell.address
        return self.folder / address[:2] / f"{address[2:]}.png"


def publish(folder: Path, manifest: Manifest, cache: CellCache, cells: list[Cell]) -> None:
    """Fill an empty folder with a grid: the pictures, and the manifest that says which is which.

    Args:
        folder: one folder per model comes into it.
        manifest: its entries name files below `folder`.
        cache: holds every picture that did not fail.
        cells: one per entry, in the same order.
    """
    for entry, cell in zip(manifest.entries, cells, strict=True):
        if entry.file:
            source = cache.find(cell)
            assert source, f"{entry.file} was drawn, but is not in the cache"
            link_or_copy(source, folder / entry.file)
    models = [{"name": name, "weights": sha256} for name, sha256 in manifest.models.items()]
    entries = [dataclasses.asdict(entry) for entry in manifest.entries]
    write_json(
        folder / MANIFEST,
        {
            "group": manifest.group,
            "models": models,
            "settings": manifest.settings,
            "cells": entries,
        },
    )


def read_manifest(folder: Path) -> Manifest:
    """Read what `publish` wrote.

    Raises:
        FileNotFoundError: if the folder holds no grid.
        ValueError: if the manifest is damaged.
    """
    path = folder / MANIFEST
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(
            group=written["group"],
            models={model["name"]: model["weights"] for model in written["models"]},
            settings=written["settings"],
            entries=[Entry(**entry) for entry in written["cells"]],
        )
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file. `python -m stages.grid cells` draws a grid"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a grid's manifest: {error!r}. Draw the grid again") from None


def entry_name(model: str, number: int) -> str:
    """Name a published picture; `number` counts a model's cells from 1."""
    return f"{model}/{number:04}.png"
