"""One optimizer step: the gradients of its batches, and what is done with them."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn

from stages.diffusion.model import Models
from stages.diffusion.torch_settings import keep_code_of_all_sizes
from stages.training.draw import Drawn
from stages.training.loss import min_snr_weights, prediction_errors
from stages.training.params import PRECISIONS, TrainParams
from stages.training.part import Part
from stages.training.ranks import Ranks
from stages.training.schedule import rate_factor

# Each size of picture gets code of its own: code for any size does not come out of this layout.
# Inductor alone leaves some convolutions in the usual one, and cuDNN transposes on each call.
COMPILE: dict[str, Any] = {"dynamic": False, "options": {"force_layout_optimization": True}}


@dataclass(frozen=True, slots=True)
class Step:
    """What came of an optimizer step."""

    error_sum: Tensor  # of this process's examples; float64, on the device
    is_loss_finite: bool  # of all processes' examples
    is_taken: bool  # false if a loss or gradient was not finite: then nothing moved
    is_fault: bool  # not taken, and not for float16's range alone; a loss not finite always is one


class Learner:
    """The networks that learn, and how they take a step."""

    def __init__(
        self, models: Models, parts: dict[str, Part], params: TrainParams, ranks: Ranks
    ) -> None:
        """Take what learns.

        Args:
            models: the parts' networks among them, on the device; their `noise_scheduler` decides
                what the UNet predicts.
            parts: by name, `unet` and perhaps `text_encoder`.
            params: of the run.
            ranks: who trains.
        """
        self.models, self.parts, self.params, self.ranks = models, parts, params, ranks
        self.device = ranks.device
        self.noise_scheduler = models.noise_scheduler
        self.total_timesteps = int(self.noise_scheduler.config.num_train_timesteps)
        weight_at = torch.ones(self.total_timesteps)
        if params.min_snr_gamma:
            weight_at = min_snr_weights(self.noise_scheduler, params.min_snr_gamma)
        self.weight_at = weight_at.to(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=params.precision == "fp16")
        self.compiles = is_compiled(self.device)
        self.unet: Any = models.unet
        if self.compiles:
            functorch_config.activation_memory_budget = params.activation_memory
            keep_code_of_all_sizes()
            self.unet = torch.compile(models.unet, **COMPILE)
        self.weights = [weight for part in parts.values() for weight in part.weights]

    @property
    def full_batch(self) -> int:
        """Rows that every batch is filled up to: a compiled UNet wants batches of one size."""
        size = self.ranks.largest_share(self.params.batch_size, self.params.gradient_accumulation)
        return size if self.compiles else 0

    def errors(self, drawn: Drawn) -> Tensor:
        """Measure the UNet's errors at a batch on the device, (B,) float32."""
        dtype = PRECISIONS[self.params.precision]
        captions = drawn.captions
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            if captions.dtype == torch.int64:
                captions = self.models.text_encoder(captions).last_hidden_state
            return prediction_errors(
                self.unet,
                self.noise_scheduler,
                drawn.latents,
                drawn.noise,
                drawn.timesteps,
                captions,
            )

    def step(self, drawn: Iterable[Drawn], count: int, step: int, steps: int) -> Step:
        """Move the weights once, by the mean gradient over all examples of the step.

        Args:
            drawn: this process's batches, on any device.
            count: examples of all processes.
            step: of the run, from 0.
            steps: of the learning rate's schedule.
        """
        error_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in drawn:
            error_sum += self._backward(batch.to(self.device), count)
        for weight in self.weights:  # this process may have had no batch
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        self.ranks.add_up(gradients)
        for part in self.parts.values():
            self.scaler.unscale_(part.optimizer)
        norm = nn.utils.get_total_norm(gradients)
        is_taken = bool(norm.isfinite())  # the step's one wait for the device
        if is_taken:
            self._move(norm, step, steps)
        self.forget()
        is_loss_finite = is_taken or not self.ranks.agree(int(not error_sum.isfinite()))
        scale = self.scaler.get_scale()
        # no scale mends a loss that is not finite: the scale stays for the gradients that follow
        self.scaler.update(None if is_loss_finite else scale)
        is_fault = not is_taken and (not is_loss_finite or scale <= 1)
        return Step(error_sum, is_loss_finite, is_taken, is_fault)

    def forget(self) -> None:
        """Drop all gradients."""
        for part in self.parts.values():
            part.optimizer.zero_grad(set_to_none=True)

    def _backward(self, drawn: Drawn, count: int) -> Tensor:
        """Add a batch's share to the gradients; give the sum of its errors."""
        errors = self.errors(drawn)
        weighed = self.weight_at[drawn.timesteps] * drawn.counts * errors
        self.scaler.scale(weighed.sum() / count).backward()
        return (drawn.counts * errors.detach()).double().sum()

    def _move(self, norm: Tensor, step: int, steps: int) -> None:
        if self.params.max_gradient_norm:
            nn.utils.clip_grads_with_norm_(self.weights, self.params.max_gradient_norm, norm)
        factor = rate_factor(self.params.schedule, step, self.params.warmup_steps, steps)
        for part in self.parts.values():
            part.set_rate(factor)
            self.scaler.step(part.optimizer)
            part.update_average(self.params.ema_decay, step)


def is_compiled(device: torch.device) -> bool:
    """Tell whether the UNet is compiled on a device: on GPUs, unless TRAIN_COMPILE is 0.

    A machine's affair, not the run's: the first compilation takes minutes.
    """
    return device.type == "cuda" and os.environ.get("TRAIN_COMPILE", "1") != "0"
