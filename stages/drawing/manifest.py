"""A published grid: a folder of pictures for each model, and the manifest that names them."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.drawing.cache import CellCache
from stages.drawing.cell import Cell
from stages.harness.files import write_json

MANIFEST = "cells.json"


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
    negative_prompt: str = ""
    category: str = ""  # of the prompt
    setting: str = ""  # what else varies within the grid, in words
    written: str = ""  # the prompt before search and replace; "" in grids that do not tell it
    replaced: str = ""  # what those did to it, in words

    @property
    def place(self) -> tuple[str, str, int, int, int, str]:
        """Tell which of a model's pictures this is; those of other models have the same place."""
        return (
            self.prompt,
            self.negative_prompt,
            self.seed,
            self.width,
            self.height,
            self.setting,
        )

    @property
    def as_written(self) -> str:
        """Give the prompt before search and replace: what those make of it is a variant of it."""
        return self.written or self.prompt

    @property
    def variant(self) -> str:
        """Say what tells it from cells of the same written prompt, seed and size; "": nothing."""
        avoided = f"not: {self.negative_prompt}" if self.negative_prompt else ""
        return ", ".join(filter(None, [self.replaced, self.setting, avoided]))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a published grid holds."""

    group: str
    models: dict[str, str]  # name -> SHA-256 of its weights, in the order of the columns
    settings: dict[str, Any]  # what all cells have in common
    entries: list[Entry]  # model by model, as planned


def publish(folder: Path, manifest: Manifest, cache: CellCache, cells: list[Cell]) -> None:
    """Fill an empty folder with a grid: the pictures, and the manifest that says which is which.

    Args:
        folder: one folder per model comes into it.
        manifest: its entries name files below `folder`.
        cache: holds every picture that did not fail.
        cells: one per entry, in the same order.
    """
    for name in manifest.models:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for entry, cell in zip(manifest.entries, cells, strict=True):
        if entry.file:
            source = cache.find(cell)
            assert source, f"{entry.file} was drawn, but is not in the cache"
            try:  # the folder is new, and comes into its place as a whole
                (folder / entry.file).hardlink_to(source)
            except OSError:
                shutil.copyfile(source, folder / entry.file)
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
            f"{path}: no such file. `python -m stages.grid_cells` draws a grid"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a grid's manifest: {error!r}. Draw the grid again") from None


def entry_name(model: str, number: int) -> str:
    """Name a published picture; `number` counts a model's cells from 1."""
    return f"{model}/{number:04}.png"
