"""Cells: one picture each, named by the hash of everything that determines it."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stages.harness.files import link_or_copy, sha256_json, write_json
from stages.harness.params import Params

DRAWING_VERSION = 2  # raise it when stages.diffusion draws other pixels from the same cell
ENGINE = ("torch", "diffusers", "transformers")
MANIFEST = "cells.json"
SIDE_STEP_PX = 8
TILE_STEP_PX = 32  # tiles overlap by a quarter, which must be whole latents
PNG_LEVEL = 1  # of zlib: 3 times as quick as its own choice of 6, files a sixth larger
DTYPES = ("float32", "float16", "bfloat16")
ENGINES = ("torch", "comfyui")
FORMATS = ("png", "jpeg", "webp")
SAMPLER_NAMES = {  # as A1111 calls them: sampler, schedule
    "ddim": ("DDIM", None),
    "dpmpp_2m": ("DPM++ 2M", None),
    "dpmpp_2m_karras": ("DPM++ 2M", "Karras"),
    "euler": ("Euler", None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetParams(Params):
    """Section `grid.sheet`: how cells are shown; changing it draws none anew."""

    scale: int  # px of the sheet for each px of a cell
    max_side_px: int  # longer side of a page; what does not fit goes on another
    format: str  # png, jpeg or webp
    quality: int  # of JPEG and WebP, 1 to 100; 100 in WebP is lossless

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.scale < 1 or self.max_side_px < 1:
            raise ValueError("scale and max_side_px must be at least 1")
        if self.format not in FORMATS:
            raise ValueError(f"unknown format {self.format!r}; known: {', '.join(FORMATS)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must lie between 1 and 100, got {self.quality}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet(Params):
    """Prompts of one kind, which may have a negative prompt of their own."""

    category: str  # a filter of the viewer
    negative_prompt: str
    prompts: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AxesParams(Params):
    """Section `grid.axes`: values to draw every prompt with, besides those of `grid`."""

    replace: list[tuple[str, str]]  # search, replacement: also draw what a prompt then says
    sampler: list[str]
    steps: list[int]
    guidance: list[float]
    clip_skip: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyParams(Params):
    """Section `grid.comfyui`: the servers that draw where the engine is comfyui."""

    servers: list[str]  # addresses, as http://127.0.0.1:8188
    workflow: str  # a JSON file in ComfyUI's API format; {{words}} in it are filled in
    timeout_s: float  # for one picture, from asking to its last byte

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be above 0, got {self.timeout_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreParams(Params):
    """Section `grid.score`: who judges besides the scorer, and how intervals are made."""

    more: list[tuple[str, str]]  # name and folder of other CLIPModels, reported beside
    aesthetic_clip: str  # folder of CLIP ViT-L/14; "": no aesthetic score
    aesthetic_head: str  # its perceptron, a safetensors file
    resamples: int  # of the prompts
    confidence: float  # of the intervals: 0.95
    seed: int  # of the resampling

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.resamples < 1:
            raise ValueError(f"resamples must be at least 1, got {self.resamples}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")
        if bool(self.aesthetic_clip) != bool(self.aesthetic_head):
            raise ValueError("aesthetic_clip and aesthetic_head go together: give both or none")
        names = [name for name, _ in self.more]
        if len(set(names)) < len(names) or {"score", "aesthetic", "cmmd"} & set(names):
            raise ValueError(
                f"more: names must differ, and not be score, aesthetic or cmmd: {names}"
            )


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a picture is to show, and what not."""

    text: str
    negative: str
    category: str


@dataclass(frozen=True, slots=True)
class Setting:
    """How a picture is drawn, whatever it shows."""

    sampler: str
    steps: int
    guidance: float
    clip_skip: int

    def check(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            ValueError: naming the value.
        """
        if self.sampler not in SAMPLER_NAMES:
            known = ", ".join(SAMPLER_NAMES)
            raise ValueError(f"unknown sampler {self.sampler!r}; known: {known}")
        for name in ("steps", "clip_skip"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GridParams(Params):
    """Section `grid`: the pictures that every model draws, each prompt at each size and seed."""

    prompts: list[str | PromptSet]
    negative_prompt: str  # of a prompt in no set; "" is the empty caption of training
    seeds: list[int]
    sizes: list[tuple[int, int]]  # (width, height), px
    sampler: str  # ddim, euler, dpmpp_2m or dpmpp_2m_karras
    steps: int
    guidance: float
    clip_skip: int  # layers of the text encoder from the end; 1: the last one
    dtype: str  # of the weights while drawing
    batch_size: int  # pictures of one model and size drawn at once
    compile: bool  # with torch.compile, minutes once for each size
    vae_tile_px: int  # decode in tiles of this side, to save memory; 0: whole
    engine: str  # torch: here; comfyui: on servers
    axes: AxesParams
    comfyui: ComfyParams
    score: ScoreParams
    sheet: SheetParams

    def __post_init__(self) -> None:
        """Check what would otherwise fail only after models are loaded."""
        for name in ("prompts", "seeds", "sizes"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} is empty: at least one is needed")
            if repeated := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"{name} holds {repeated[0]!r} twice")
        self._check_prompts()
        for size in self.sizes:
            if any(side < 1 or side % SIDE_STEP_PX for side in size):
                raise ValueError(
                    f"size {size[0]} x {size[1]} px: both sides must be multiples of {SIDE_STEP_PX}"
                )
        for setting in self.settings():
            setting.check()
        self._check_drawing()

    def _check_drawing(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.vae_tile_px < 0 or self.vae_tile_px % TILE_STEP_PX:
            raise ValueError(f"vae_tile_px must be 0 or a multiple of {TILE_STEP_PX}")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")
        if self.engine not in ENGINES:
            raise ValueError(f"unknown engine {self.engine!r}; known: {', '.join(ENGINES)}")
        if self.engine == "comfyui" and not self.comfyui.servers:
            raise ValueError("comfyui.servers is empty: the engine comfyui needs at least one")

    def _check_prompts(self) -> None:
        written = [(prompt.text, prompt.negative) for prompt in self._written_prompts()]
        if not written:
            raise ValueError("prompts holds sets without a prompt: at least one is needed")
        if repeated := [text for text, negative in written if written.count((text, negative)) > 1]:
            raise ValueError(f"prompts holds {repeated[0]!r} twice")
        for search, _ in self.axes.replace:
            if not search or not any(search in text for text, _ in written):
                raise ValueError(f"axes.replace: no prompt says {search!r}")

    def _written_prompts(self) -> Iterator[Prompt]:
        for entry in self.prompts:
            if isinstance(entry, str):
                yield Prompt(entry, self.negative_prompt, "")
            else:
                for text in entry.prompts:
                    yield Prompt(text, entry.negative_prompt, entry.category)

    def all_prompts(self) -> list[Prompt]:
        """List the prompts, each followed by what search and replace make of it."""
        prompts: dict[tuple[str, str], Prompt] = {}
        for prompt in self._written_prompts():
            for search, replacement in [("", ""), *self.axes.replace]:
                text = prompt.text.replace(search, replacement) if search else prompt.text
                variant = dataclasses.replace(prompt, text=text)
                prompts.setdefault((variant.text, variant.negative), variant)
        return list(prompts.values())

    def settings(self) -> list[Setting]:
        """List every combination of the axes, that of the section itself first."""
        axes = self.axes
        return [
            Setting(sampler, steps, guidance, clip_skip)
            for sampler in dict.fromkeys([self.sampler, *axes.sampler])
            for steps in dict.fromkeys([self.steps, *axes.steps])
            for guidance in dict.fromkeys([self.guidance, *axes.guidance])
            for clip_skip in dict.fromkeys([self.clip_skip, *axes.clip_skip])
        ]

    def label(self, cell: "Cell") -> str:
        """Say in words by which settings a cell differs from others of the grid; "" if by none."""
        axes = self.axes
        words = [
            (axes.sampler, cell.sampler),
            (axes.steps, f"{cell.steps} steps"),
            (axes.guidance, f"guidance {cell.guidance:g}"),
            (axes.clip_skip, f"clip skip {cell.clip_skip}"),
        ]
        return ", ".join(text for varied, text in words if varied)


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
    clip_skip: int
    dtype: str
    batch_size: int  # for kernels round by it; a batch is always full
    compile: bool  # and so do compiled ones
    vae_tile_px: int
    drawing: str  # version of the code that draws

    @property
    def address(self) -> str:
        """Name the picture: 64 hex digits, the same wherever the same picture is wanted."""
        return sha256_json(dataclasses.asdict(self))

    @property
    def parameters(self) -> str:
        """Write how the picture was drawn, as A1111 does into a PNG's text.

        Source: `create_infotext` of AUTOMATIC1111's web UI, version 1.10.
        """
        lines = [self.prompt]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        sampler, schedule = SAMPLER_NAMES[self.sampler]
        words = {
            "Steps": self.steps,
            "Sampler": sampler,
            "Schedule type": schedule,
            "CFG scale": f"{self.guidance:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model hash": self.weights[:10],
            "Clip skip": self.clip_skip if self.clip_skip > 1 else None,
        }
        lines.append(
            ", ".join(f"{name}: {value}" for name, value in words.items() if value is not None)
        )
        return "\n".join(lines)


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
    def variant(self) -> str:
        """Say what tells it from cells of the same prompt, seed and size; "" where nothing does."""
        parts = [self.setting, f"not: {self.negative_prompt}" if self.negative_prompt else ""]
        return ", ".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a published grid holds."""

    group: str
    models: dict[str, str]  # name -> SHA-256 of its weights, in the order of the columns
    settings: dict[str, Any]  # what all cells have in common
    entries: list[Entry]  # model by model, as planned


def drawing_version(engine: Sequence[str] = ENGINE) -> str:
    """Name the code that draws; a new torch may round elsewhere, so it counts as other code."""
    libraries = (f"{name} {version(name).split('+')[0]}" for name in engine)
    return ", ".join([str(DRAWING_VERSION), *libraries])


def planned_cells(
    params: GridParams, weights: str, config: str, drawing: str | None = None
) -> list[Cell]:
    """List a model's cells: size by size, setting by setting, prompt by prompt, seed by seed.

    Args:
        params: the section `grid`.
        weights: SHA-256 of the model's file.
        config: SHA-256 of its config folder.
        drawing: names what draws; by default the code of this project.
    """
    drawing = drawing or drawing_version()
    return [
        Cell(
            weights=weights,
            config=config,
            prompt=prompt.text,
            negative_prompt=prompt.negative,
            seed=seed,
            width=width,
            height=height,
            **dataclasses.asdict(setting),
            dtype=params.dtype,
            batch_size=params.batch_size,
            compile=params.compile,
            vae_tile_px=params.vae_tile_px,
            drawing=drawing,
        )
        for width, height in params.sizes
        for setting in params.settings()
        for prompt in params.all_prompts()
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
        """Keep a picture: lossless, its text says how it was drawn, and nothing else is in it."""
        path = self._path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The process's own name: two grids may draw one cell at one time, and either may win.
        scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            with scratch.open("wb") as file:
                bare = Image.frombytes(picture.mode, picture.size, picture.tobytes())
                text = PngInfo()
                text.add_text("parameters", cell.parameters)
                bare.save(file, format="PNG", pnginfo=text, compress_level=PNG_LEVEL)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        return path

    def adopt(self, cell: Cell, path: Path) -> None:
        """Take in a picture that a published grid holds, as one that came with `dvc pull`."""
        if path.is_file() and not self.find(cell):
            link_or_copy(path, self._path(cell))

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
            f"{path}: no such file. `python -m stages.grid cells` draws a grid"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a grid's manifest: {error!r}. Draw the grid again") from None


def entry_name(model: str, number: int) -> str:
    """Name a published picture; `number` counts a model's cells from 1."""
    return f"{model}/{number:04}.png"
