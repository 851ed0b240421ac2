"""Samplers: at which noise levels the UNet is asked, and how latents get from one to the next.

The levels, the timesteps and the first latents are those of ComfyUI, and so, but for rounding, of
A1111: a picture must not depend on which of them draws it. Deterministic samplers alone: an
ancestral one draws noise at each step, on the device.

Sources: ComfyUI, comfy/samplers.py, comfy/model_sampling.py; K. Crowson, k-diffusion, sampling.py,
    for steps in "sigma", the noise's share over the picture's; arXiv 2206.00364; arXiv 2211.01095.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

DDIM, EULER = "ddim", "euler"
DPMPP_2M, DPMPP_2M_KARRAS = "dpmpp_2m", "dpmpp_2m_karras"
SAMPLERS = (DDIM, DPMPP_2M, DPMPP_2M_KARRAS, EULER)
RHO = 7.0  # of Karras' levels, arXiv 2206.00364
# What stands for no picture at all where a schedule ends in pure noise; a level must be finite.
LEAST_SHARE = 4.8973451890853435e-08
PREDICTS_V = {"epsilon": False, "v_prediction": True}  # as diffusers calls what a UNet answers

Ask = Callable[[Tensor, Tensor], Tensor]  # what the UNet says of scaled latents at a timestep


@dataclass(frozen=True, slots=True)
class NoiseLevels:
    """The noise levels that a model was trained at, and what it answers there."""

    sigmas: Tensor  # (timesteps,) float64, rising
    predicts_v: bool
    is_zero_terminal: bool  # the last level is pure noise, arXiv 2305.08891

    def at(self, timestep: float) -> float:
        """Give the level at a timestep, between two of them in proportion of the logarithms."""
        low, high = math.floor(timestep), math.ceil(timestep)
        below, above = (math.log(self.sigmas[n]) for n in (low, high))
        return math.exp(below + (timestep - low) * (above - below))

    def nearest(self, sigma: float) -> int:
        """Give the timestep whose level is the nearest: the UNet learnt whole ones alone."""
        return int((self.sigmas.log() - math.log(sigma)).abs().argmin())


def levels_of(noise_scheduler: DDPMScheduler) -> NoiseLevels:
    """Read a noise schedule.

    Raises:
        ValueError: if the model predicts neither noise nor v.
    """
    predicts = noise_scheduler.config.prediction_type
    if predicts not in PREDICTS_V:
        known = " or ".join(PREDICTS_V)
        raise ValueError(f"the noise schedule's prediction_type is {predicts!r}; wanted: {known}")
    shares = noise_scheduler.alphas_cumprod.double().cpu()
    ends_in_noise = float(shares[-1]) < 2 * LEAST_SHARE
    shares = shares.clamp(min=LEAST_SHARE)
    return NoiseLevels(((1 - shares) / shares).sqrt(), PREDICTS_V[predicts], ends_in_noise)


def planned(sampler: str, steps: int, levels: NoiseLevels) -> list[float]:
    """List the levels that a sampler goes through, falling; the last is 0.

    All begin at the last timestep but DDIM, which counts from the first in whole steps, as in its
    paper: 15 of 1,000 are 66 apart, begin at 991, and are 16. Where that one is pure noise, DDIM
    counts from there instead ("trailing" in arXiv 2305.08891).
    """
    last = len(levels.sigmas) - 1
    if sampler == DPMPP_2M_KARRAS:
        least, most = (float(levels.sigmas[n]) ** (1 / RHO) for n in (0, last))
        ramp = (n / max(steps - 1, 1) for n in range(steps))
        return [*((most + share * (least - most)) ** RHO for share in ramp), 0.0]
    if sampler != DDIM:
        return [*(levels.at(last - n * last / max(steps - 1, 1)) for n in range(steps)), 0.0]
    if levels.is_zero_terminal:
        asked = [round((last + 1) * (1 - n / steps)) - 1 for n in range(steps)]
    else:
        asked = list(range(1, last + 1, max((last + 1) // steps, 1)))[::-1]
    return [*(float(levels.sigmas[timestep]) for timestep in asked), 0.0]


def sampled(noise: Tensor, ask: Ask, sampler: str, steps: int, levels: NoiseLevels) -> Tensor:
    """Go from noise to latents.

    Args:
        noise: standard normal, (B, 4, h, w); float32, as all between two answers of the UNet.
        ask: gives the UNet's answer to scaled latents, at a timestep of no dimension.
        sampler: one of SAMPLERS.
        steps: see `planned`.
        levels: of the model.
    """
    sigmas = planned(sampler, steps, levels)
    timesteps = torch.tensor([levels.nearest(sigma) for sigma in sigmas[:-1]], device=noise.device)
    latents = noise * _first_scale(sigmas[0], levels)
    earlier: Tensor | None = None  # of DPM-Solver++: the picture that the step before saw
    for number, (sigma, following) in enumerate(pairwise(sigmas)):
        scale = 1 / math.sqrt(sigma**2 + 1)
        answer = ask(latents * scale, timesteps[number]).float()
        if levels.predicts_v:
            picture = latents * scale**2 - answer * (sigma * scale)
        else:
            picture = latents - answer * sigma
        aim = picture
        if sampler in (DPMPP_2M, DPMPP_2M_KARRAS) and earlier is not None and following:
            ratio = math.log(sigmas[number - 1] / sigma) / math.log(sigma / following)
            aim = picture + (picture - earlier) / (2 * ratio)
        latents = aim + (latents - aim) * (following / sigma)
        earlier = picture
    return latents


def _first_scale(sigma: float, levels: NoiseLevels) -> float:
    """Scale the first noise: at the highest level the picture behind it counts as noise, too."""
    return math.sqrt(1 + sigma**2) if sigma >= levels.sigmas[-1] * (1 - 1e-5) else sigma
