"""Section `grid` of the params: which pictures are drawn, and how."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from stages.choice.score_params import ScoreParams
from stages.drawing.cell import COMFYUI, SAMPLER_NAMES, TORCH, Cell
from stages.harness.params import Params
from stages.sheets.sheet_params import SheetParams

SIDE_STEP_PX = 8
TILE_STEP_PX = 32  # tiles overlap by a quarter, which must be whole latents
DTYPES = ("float32", "float16", "bfloat16")
ENGINES = (TORCH, COMFYUI)
MAX_STEPS = 1000  # of SD 1.5's noise schedule: a step each
MAX_SEED = 2**64 - 1  # of torch and ComfyUI; to A1111, -1 is another seed each time


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


def replaced_words(search: str, replacement: str) -> str:
    """Say what search and replace do to a prompt."""
    return f"{search} → {replacement}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a picture is to show, and what not."""

    text: str
    negative: str
    category: str
    written: str  # the text before search and replace
    replaced: str = ""  # what those did to it, in words


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
        if self.steps > MAX_STEPS:
            raise ValueError(
                f"steps must be at most {MAX_STEPS}, those of the noise schedule, got {self.steps}"
            )
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance}")


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
        for seed in self.seeds:
            if not 0 <= seed <= MAX_SEED:
                raise ValueError(f"seeds must lie between 0 and {MAX_SEED}, got {seed}")
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
        if self.engine == COMFYUI and not self.comfyui.servers:
            raise ValueError("comfyui.servers is empty: the engine comfyui needs at least one")

    def _check_prompts(self) -> None:
        written = [(prompt.text, prompt.negative) for prompt in self._written_prompts()]
        if not written:
            raise ValueError("prompts holds sets without a prompt: at least one is needed")
        if repeated := [text for text, negative in written if written.count((text, negative)) > 1]:
            raise ValueError(f"prompts holds {repeated[0]!r} twice")
        words = [replaced_words(*pair) for pair in self.axes.replace]
        if repeated_words := [text for text in words if words.count(text) > 1]:
            raise ValueError(f"axes.replace holds {repeated_words[0]!r} twice")
        for search, _ in self.axes.replace:
            if not search or not any(search in text for text, _ in written):
                raise ValueError(f"axes.replace: no prompt says {search!r}")
        drawn = set(written)
        for prompt in self.all_prompts():
            place = (prompt.text, prompt.negative)
            if prompt.replaced and place in drawn:
                raise ValueError(
                    f"axes.replace: {prompt.replaced} makes {prompt.text!r} of "
                    f"{prompt.written!r}, which is drawn anyway; leave one of the two out"
                )
            drawn.add(place)

    def _written_prompts(self) -> Iterator[Prompt]:
        for entry in self.prompts:
            if isinstance(entry, str):
                yield Prompt(entry, self.negative_prompt, "", entry)
            else:
                for text in entry.prompts:
                    yield Prompt(text, entry.negative_prompt, entry.category, text)

    def all_prompts(self) -> list[Prompt]:
        """List the prompts, each followed by what search and replace make of it."""
        prompts = []
        for prompt in self._written_prompts():
            prompts.append(prompt)
            for search, replacement in self.axes.replace:
                if search in prompt.text:
                    text = prompt.text.replace(search, replacement)
                    said = replaced_words(search, replacement)
                    prompts.append(dataclasses.replace(prompt, text=text, replaced=said))
        return prompts

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

    def label(self, cell: Cell) -> str:
        """Say in words by which settings a cell differs from others of the grid; "" if by none."""
        axes = self.axes
        words = [
            (axes.sampler, cell.sampler),
            (axes.steps, f"{cell.steps} steps"),
            (axes.guidance, f"guidance {cell.guidance:g}"),
            (axes.clip_skip, f"clip skip {cell.clip_skip}"),
        ]
        return ", ".join(text for varied, text in words if varied)


def planned_cells(params: GridParams, weights: str, config: str, drawing: str) -> list[Cell]:
    """List a model's cells: size by size, setting by setting, prompt by prompt, seed by seed.

    Args:
        params: the section `grid`.
        weights: SHA-256 of the model's file.
        config: SHA-256 of its config folder.
        drawing: names what draws.
    """
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
            engine=params.engine,
            drawing=drawing,
        )
        for width, height in params.sizes
        for setting in params.settings()
        for prompt in params.all_prompts()
        for seed in params.seeds
    ]
