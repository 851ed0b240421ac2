"""A cell: one picture, named by the hash of everything that determines it."""

from dataclasses import dataclass
from importlib.metadata import version

from stages.harness.files import sha256_json

DRAWING_VERSION = 3  # raise it when stages.diffusion draws other pixels from the same cell
LIBRARIES = ("torch", "diffusers", "transformers")
TORCH, COMFYUI = "torch", "comfyui"  # engines
OF_TORCH = ("config", "dtype", "batch_size", "compile", "vae_tile_px")  # what no server is told
NOISE_SCHEDULE, ZERO_TERMINAL_SNR = "Noise Schedule", "Zero Terminal SNR"  # A1111's words, too
SAMPLER_NAMES = {  # as A1111 calls them: sampler, schedule
    "ddim": ("DDIM", "Automatic"),  # it has no other
    "dpmpp_2m": ("DPM++ 2M", "Uniform"),  # for it "Automatic" is Karras
    "dpmpp_2m_karras": ("DPM++ 2M", "Karras"),
    "euler": ("Euler", "Uniform"),
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
    engine: str  # TORCH or COMFYUI
    drawing: str  # versions of what draws, and the kind of its device: GPUs round as no CPU does

    @property
    def address(self) -> str:
        """Name the picture: 64 hex digits, the same wherever the same picture is wanted."""
        left_out = () if self.engine == TORCH else OF_TORCH
        return sha256_json({n: getattr(self, n) for n in self.__slots__ if n not in left_out})

    def parameters(self, noise_schedule: str | None = None) -> str:
        """Write how the picture was drawn, as A1111 does into a PNG's text.

        What it does not say, A1111 takes from its user's settings: noise of the GPU, and first
        noise that is weaker by the picture's share, which its DDIM never is.

        Args:
            noise_schedule: the model's, as A1111 calls it; None if it is the usual one.

        Source: `create_infotext` of AUTOMATIC1111's web UI, version 1.10, and for the noise
            schedule its `apply_alpha_schedule_override`.
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
            "RNG": "CPU",
            NOISE_SCHEDULE: noise_schedule,
            "SGM noise multiplier": None if self.sampler == "ddim" else True,
        }
        lines.append(
            ", ".join(f"{name}: {value}" for name, value in words.items() if value is not None)
        )
        return "\n".join(lines)


def drawing_version(device: str) -> str:
    """Name the code that draws; a new torch may round elsewhere, so it counts as other code.

    Args:
        device: the kind that draws, as torch calls it.
    """
    libraries = (f"{name} {version(name).split('+')[0]}" for name in LIBRARIES)
    return ", ".join([str(DRAWING_VERSION), *libraries, device])
