"""What one may change about a training run."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from stages.diffusion.optimizers import OPTIMIZERS
from stages.harness.params import Params
from stages.images.bucket import buckets

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# These decide where a run ends, not how it gets there: changed, they go on with the old run.
ENDS = ("max_epochs", "stop_patience")
# Ranges of params.
POSITIVE = (
    "learning_rate",
    "batch_size",
    "gradient_accumulation",
    "max_epochs",
    "checkpoint_every_epochs",
    "validation_timesteps",
)
NOT_NEGATIVE = (
    "text_encoder_learning_rate",
    "weight_decay",
    "stop_patience",
    "max_gradient_norm",
    "min_snr_gamma",
    "noise_offset",
)
SHARES = ("caption_dropout", "ema_decay")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainParams(Params):
    """Section `train.<run>`."""

    resolution: int  # px; side of a square picture, whose area other shapes do not exceed
    bucket_step_px: int  # 64 for SD 1.5, 8 for the mini model
    max_aspect: float  # longer side / shorter side of a bucket
    learning_rate: float  # of the UNet; for dadaptation a multiplier, 1.0
    text_encoder_learning_rate: float  # 0 leaves the text encoder as it is
    optimizer: str  # adamw or dadaptation
    weight_decay: float  # share of a weight lost per step and unit of learning rate
    batch_size: int  # examples of one bucket
    gradient_accumulation: int  # batches per optimizer step
    max_epochs: int
    checkpoint_every_epochs: int  # the weights of these epochs are kept, and the best one's
    caption_dropout: float  # share of captions left out, which classifier-free guidance needs
    validation_timesteps: int  # K, per example; evenly spread over the noise schedule
    stop_patience: int  # validations in a row that are surely worse than the best; 0 never stops
    seed: int
    precision: str  # fp32 or bf16; weights and optimizer are float32 in both
    max_gradient_norm: float  # over all trained weights; 0 for no limit
    ema_decay: float  # of the weights' running average, which is then what is kept; 0 for none
    min_snr_gamma: float  # weighs timesteps, arXiv 2303.09556; 0 for equal weights
    noise_offset: float  # 0 for none

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in (*NOT_NEGATIVE, *SHARES):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in SHARES:
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be below 1, got {getattr(self, name)}")
        self._check_name("optimizer", OPTIMIZERS)
        self._check_name("precision", PRECISIONS)
        buckets(self.resolution, self.max_aspect, self.bucket_step_px)

    def _check_name(self, field_name: str, known: Iterable[str]) -> None:
        value = getattr(self, field_name)
        if value not in known:
            raise ValueError(f"{field_name} must be {' or '.join(known)}, got {value!r}")

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoder learns too."""
        return self.text_encoder_learning_rate > 0

    def without_ends(self) -> dict[str, Any]:
        """Give what decides how a run goes, as JSON holds it."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in ENDS}
