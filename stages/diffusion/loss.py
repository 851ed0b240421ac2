"""The training objective of a latent diffusion model: predict the noise that was added."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


def noise_errors(
    unet: nn.Module,
    noise_scheduler: DDPMScheduler,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    encoder_hidden_states: Tensor,
) -> Tensor:
    """Measure how far the predicted noise is from the noise that was added, picture by picture.

    Args:
        latents: (B, 4, h, w), times the autoencoder's scaling factor.
        noise: shape of `latents`.
        timesteps: (B,) int64 in [0, 1000).
        encoder_hidden_states: (B, L, D).

    Returns:
        (B,) float32, the mean squared error of each picture.

    Source: "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, equation 14.
    """
    noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
    noise_pred = unet(noisy_latents, timesteps, encoder_hidden_states).sample
    errors: Tensor = (noise_pred.float() - noise.float()).square().mean((1, 2, 3))
    return errors


def min_snr_weights(noise_scheduler: DDPMScheduler, gamma: float) -> Tensor:
    """Weigh timesteps by min(SNR, gamma) / SNR: the many nearly clean ones shall not rule.

    Returns:
        (1000,) float32, to be indexed by timestep; for noise prediction.

    Source: "Efficient Diffusion Training via Min-SNR Weighting Strategy", arXiv 2303.09556.
    """
    signal: Tensor = noise_scheduler.alphas_cumprod.float()
    snr = signal / (1 - signal)
    return snr.clamp(max=gamma) / snr


def stratified_timesteps(
    count: int, total: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draw `count` timesteps, one from each of `count` equal parts of [0, total), shuffled.

    Source: the low-discrepancy sampler of "Variational Diffusion Models", arXiv 2107.00630.
    """
    offsets = torch.rand(count, generator=generator, device=device)
    parts = torch.randperm(count, generator=generator, device=device)
    return ((parts + offsets) * total / count).long().clamp(max=total - 1)
