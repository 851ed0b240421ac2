"""A cell: one picture, named by the hash of everything that determines it."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from stages.harness.files import sha256_json

DRAWING_VERSION = 3  # raise it when stages.diffusion draws other pixels from the same cell
ENGINE = ("torch", "diffusers", "transformers")
SAMPLER_NAMES = {  # as A1111 calls them: sampler, schedule
    "ddim": ("DDIM", None),
    "dpmpp_2m": ("DPM++ 2M", None),
    "dpmpp_2m_karras": ("DPM++ 2M", "Karras"),
    "euler": ("Euler", None),
}


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
        return sha256_json({name: getattr(self, name) for name in self.__slots__})

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


def drawing_version(engine: Sequence[str] = ENGINE) -> str:
    """Name the code that draws; a new torch may round elsewhere, so it counts as other code."""
    libraries = (f"{name} {version(name).split('+')[0]}" for name in engine)
    return ", ".join([str(DRAWING_VERSION), *libraries])
