"""What one may change about a training run."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from stages.diffusion.sample import SamplingParams
from stages.harness.params import Params
from stages.images.bucket import buckets
from stages.training.loss import EPSILON, V_PREDICTION
from stages.training.optimizers import OPTIMIZERS, SCHEDULE_FREE
from stages.training.schedule import SCHEDULES

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# These decide where a run ends and what it shows, not how it gets there: changed, they go on with
# the old run.
ENDS = ("max_epochs", "stop_patience", "max_skipped_share", "samples")
# Ranges of params.
POSITIVE = (
    "learning_rate",
    "batch_size",
    "gradient_accumulation",
    "max_epochs",
    "checkpoint_every_epochs",
    "validation_timesteps",
    "schedule_epochs",
)
NOT_NEGATIVE = (
    "text_encoder_learning_rate",
    "weight_decay",
    "stop_patience",
    "max_gradient_norm",
    "min_snr_gamma",
    "noise_offset",
    "warmup_steps",
)
SHARES = ("caption_dropout", "ema_decay", "max_skipped_share")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesParams(Params):
    """Pictures drawn while a run goes on, for a person to look at."""

    every_epochs: int  # 0 for none
    prompts: tuple[str, ...]
    seed: int
    sampling: SamplingParams

    def __post_init__(self) -> None:
        """Check that there is something to draw."""
        if self.every_epochs < 0:
            raise ValueError(f"every_epochs must be at least 0, got {self.every_epochs}")
        if self.every_epochs and not self.prompts:
            raise ValueError("prompts is empty; name some, or set every_epochs to 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainParams(Params):
    """Section `train.<run>`."""

    resolution: int  # px; side of a square picture, whose area other shapes do not exceed
    bucket_step_px: int  # 64 for SD 1.5, 8 for the mini model
    max_aspect: float  # longer side / shorter side of a bucket
    learning_rate: float  # of the UNet; for dadaptation and prodigy a multiplier, 1.0
    text_encoder_learning_rate: float  # 0 leaves the text encoder as it is
    optimizer: str  # a key of OPTIMIZERS
    weight_decay: float  # share of a weight lost per step and unit of learning rate
    schedule: str  # of the learning rate: constant, cosine or linear
    schedule_epochs: int  # its length; max_epochs may change and leave it alone
    warmup_steps: int  # over which the learning rate rises from 0
    batch_size: int  # examples of one bucket, over all GPUs
    gradient_accumulation: int  # batches per optimizer step
    max_epochs: int
    checkpoint_every_epochs: int  # the weights of these epochs are kept, and the best one's
    caption_dropout: float  # share of captions left out, which classifier-free guidance needs
    validation_timesteps: int  # K, per example; evenly spread over the noise schedule
    stop_patience: int  # validations in a row that are surely worse than the best; 0 never stops
    seed: int
    precision: str  # fp32, bf16 or fp16; weights and optimizer are float32 in all
    gradient_checkpointing: bool  # computes activations twice, and keeps few of them
    activation_memory: float  # share of a compiled UNet's activations to keep; 1 for all
    max_gradient_norm: float  # over all trained weights; 0 for no limit
    max_skipped_share: float  # of an epoch's steps, for a loss or gradient that is not finite
    ema_decay: float  # of the weights' running average, which is then what is kept; 0 for none
    prediction_type: str  # epsilon or v_prediction; the base's config must say the same
    zero_terminal_snr: bool  # the last timestep is pure noise, arXiv 2305.08891; for v_prediction
    min_snr_gamma: float  # weighs timesteps, arXiv 2303.09556; 0 for equal weights
    noise_offset: float  # 0 for none
    samples: SamplesParams

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
        if not 0 < self.activation_memory <= 1:
            raise ValueError(
                f"activation_memory must be above 0 and at most 1, got {self.activation_memory}"
            )
        self._check_name("optimizer", OPTIMIZERS)
        self._check_name("precision", PRECISIONS)
        self._check_name("schedule", SCHEDULES)
        self._check_name("prediction_type", (EPSILON, V_PREDICTION))
        if self.zero_terminal_snr and self.prediction_type == EPSILON:
            raise ValueError(
                "zero_terminal_snr needs prediction_type v_prediction: to predict the noise in "
                "pure noise teaches nothing"
            )
        if self.optimizer == SCHEDULE_FREE and (self.schedule != "constant" or self.ema_decay):
            raise ValueError(
                "optimizer schedulefree averages and slows down by itself: set schedule to "
                "constant and ema_decay to 0"
            )
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
