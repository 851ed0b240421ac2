"""A network that learns: its weights, its optimizer, and what of it is kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stages.diffusion.model import Models
from stages.training.checkpoint import load_optimizer_state, optimizer_state
from stages.training.optimizers import ROW_MAJOR, build_optimizer
from stages.training.params import TrainParams


@dataclass
class Part:
    """A network in training."""

    network: nn.Module
    optimizer: Optimizer
    weights: list[Tensor]
    average: list[Tensor]  # running average of the weights; empty without EMA
    learning_rate: float  # before the schedule

    def state(self) -> dict[str, Any]:
        """Give all that changes, for a checkpoint."""
        return {
            "weights": list(self.weights),
            "average": self.average,
            "optimizer": optimizer_state(self.optimizer),
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        for weight, saved in zip(self.weights, state["weights"], strict=True):
            weight.copy_(saved)
        for mean, saved in zip(self.average, state["average"], strict=True):
            mean.copy_(saved)
        load_optimizer_state(self.optimizer, state["optimizer"])

    def set_rate(self, factor: float) -> None:
        """Learn at this share of the learning rate from here on."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor

    @torch.no_grad()
    def update_average(self, ema_decay: float, step: int) -> None:
        """Move the running average, which forgets faster while it is young.

        Source: the warm-up of TensorFlow's ExponentialMovingAverage, (1 + n) / (10 + n).
        """
        if self.average:
            decay = min(ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.average, self.weights, 1 - decay)

    @contextmanager
    def as_kept(self) -> Iterator[None]:
        """Hold the weights that would be kept for a while; then those in training, bit by bit."""
        self.network.eval()
        if self.average:
            self._swap()
        trained = self._schedule_free_average()
        try:
            yield
        finally:
            if trained:
                with torch.no_grad():
                    torch._foreach_copy_(self.weights, trained)
            if self.average:
                self._swap()
            self.network.train()

    def _swap(self) -> None:
        for weight, mean in zip(self.weights, self.average, strict=True):
            weight.data, mean.data = mean.data, weight.data

    def _schedule_free_average(self) -> list[Tensor]:
        """Let a schedule-free optimizer put its average in the weights' place; give the weights.

        Its own way back, `train`, would round them anew.
        """
        if not hasattr(self.optimizer, "eval"):
            return []
        trained = [weight.detach().clone() for weight in self.weights]
        self.optimizer.eval()
        for group in self.optimizer.param_groups:
            group["train_mode"] = True
        return trained


def make_parts(models: Models, params: TrainParams, device: torch.device) -> dict[str, Part]:
    """Set up what learns, on its device.

    Args:
        models: their `unet` learns, and their `text_encoder` if it has a learning rate.
        params: of the run.
        device: where it is to learn.

    Raises:
        ValueError: if the optimizer is not installed.
    """
    rates = {"unet": params.learning_rate}
    if params.trains_text_encoder:
        rates["text_encoder"] = params.text_encoder_learning_rate
    parts = {}
    for name, rate in rates.items():
        network: nn.Module = getattr(models, name)
        network.to(device).requires_grad_(True).train()
        if params.gradient_checkpointing:  # diffusers' word for it, or transformers'
            words = ("enable_gradient_checkpointing", "gradient_checkpointing_enable")
            next(getattr(network, word) for word in words if hasattr(network, word))()
        weights: list[Tensor] = list(network.parameters())
        for weight in weights:
            if weight.dim() == 4 and params.optimizer not in ROW_MAJOR:  # convolutions are fast so
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        parts[name] = Part(
            network=network,
            optimizer=build_optimizer(params.optimizer, weights, rate, params.weight_decay),
            weights=weights,
            average=[w.detach().clone() for w in weights] if params.ema_decay else [],
            learning_rate=rate,
        )
    return parts
