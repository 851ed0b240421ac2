"""The training objective of a latent diffusion model: predict the noise that was added, or v."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

EPSILON, V_PREDICTION = "epsilon", "v_prediction"  # as diffusers' scheduler configs name them


def prediction_errors(
    unet: nn.Module,
    noise_scheduler: DDPMScheduler,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    encoder_hidden_states: Tensor,
) -> Tensor:
    """Measure how far the UNet's prediction is from what it should predict, picture by picture.

    Args:
        noise_scheduler: whose config says whether the UNet predicts the noise or v.
        latents: (B, 4, h, w), times the autoencoder's scaling factor.
        noise: shape of `latents`.
        timesteps: (B,) int64 in [0, 1000).
        encoder_hidden_states: (B, L, D).

    Returns:
        (B,) float32, the mean squared error of each picture.

    Source: "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, equation 14; v is that
    of "Progressive Distillation for Fast Sampling", arXiv 2202.00512, appendix D.
    """
    noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
    prediction = unet(noisy_latents, timesteps, encoder_hidden_states).sample
    target = noise
    if noise_scheduler.config.prediction_type == V_PREDICTION:
        target = noise_scheduler.get_velocity(latents, noise, timesteps)
    errors: Tensor = (prediction.float() - target.float()).square().mean((1, 2, 3))
    return errors


def min_snr_weights(noise_scheduler: DDPMScheduler, gamma: float) -> Tensor:
    """Weigh timesteps by min(SNR, gamma) / SNR: the many nearly clean ones shall not rule.

    For v the denominator is SNR + 1, for its error is the noise's times (SNR + 1) / SNR. So with
    a zero-terminal schedule, whose last SNR is 0, the last timestep weighs nothing.

    Returns:
        (1000,) float32, to be indexed by timestep.

    Source: "Efficient Diffusion Training via Min-SNR Weighting Strategy", arXiv 2303.09556.
    """
    signal: Tensor = noise_scheduler.alphas_cumprod.float()
    snr = signal / (1 - signal)
    is_v = noise_scheduler.config.prediction_type == V_PREDICTION
    return snr.clamp(max=gamma) / (snr + 1 if is_v else snr)


def stratified_timesteps(
    count: int, total: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draw `count` timesteps, one from each of `count` equal parts of [0, total), shuffled.

    Source: the low-discrepancy sampler of "Variational Diffusion Models", arXiv 2107.00630.
    """
    offsets = torch.rand(count, generator=generator, device=device)
    parts = torch.randperm(count, generator=generator, device=device)
    return ((parts + offsets) * total / count).long().clamp(max=total - 1)
