"""From a prompt and a seed to a picture, the same one whatever else is drawn.

Initial noise belongs to a seed, never to a batch. Kernels may round differently in batches of
other sizes (a few millionths of a latent, on a CPU), but not by what else is in a batch: whoever
always draws as many pictures at once gets the same pixels from the same prompt and seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from stages.diffusion.model import Models
from stages.harness.params import Params

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

# Deterministic ones alone: an ancestral sampler draws noise at each step, on the device.
SAMPLERS = {
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams(Params):
    """How a picture is drawn, whatever it shows."""

    sampler: str  # a key of SAMPLERS
    steps: int  # UNet calls, each for the prompt and the negative prompt
    guidance: float  # scale of arXiv 2207.12598; 1 draws without guidance
    negative_prompt: str  # "" is the empty caption of training

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; known: {', '.join(SAMPLERS)}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


def initial_noise(seed: int, width_px: int, height_px: int, models: Models) -> Tensor:
    """Draw a picture's first latents on the CPU, so that every device starts alike.

    Returns:
        (1, 4, height / f, width / f) float32, where f is the autoencoder's factor.
    """
    factor = latent_factor(models)
    shape = (1, models.unet.config.in_channels, height_px // factor, width_px // factor)
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def latent_factor(models: Models) -> int:
    """Pixels per latent, one way: 8 for SD 1.5, 4 for the mini model."""
    return int(2 ** (len(models.vae.config.block_out_channels) - 1))


@torch.inference_mode()
def encode_prompts(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, prompts: list[str], clip_skip: int = 1
) -> Tensor:
    """Encode prompts for the UNet; what is too long for the tokenizer is cut.

    Args:
        text_encoder, tokenizer: of one model.
        prompts: as people write them.
        clip_skip: which layer's output is taken, from the end: 1 is the last. As in A1111, the
            last layer's norm is applied to it.

    Returns:
        encoder_hidden_states, (len(prompts), L, D) in the encoder's dtype.
    """
    tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
    input_ids = tokens.input_ids.to(text_encoder.device)
    if clip_skip == 1:
        hidden: Tensor = text_encoder(input_ids).last_hidden_state
        return hidden
    states = text_encoder(input_ids, output_hidden_states=True).hidden_states
    if clip_skip >= len(states):
        raise ValueError(f"clip_skip {clip_skip}: the text encoder has {len(states) - 1} layers")
    return text_encoder.get_submodule("final_layer_norm")(states[-clip_skip])  # type: ignore[no-any-return]


@torch.inference_mode()
def draw(
    models: Models,
    prompts: Sequence[str],
    seeds: Sequence[int],
    width_px: int,
    height_px: int,
    params: SamplingParams,
    clip_skip: int = 1,
) -> list[Image.Image]:
    """Draw a batch of pictures of one size.

    Args:
        models: on one device, in one dtype.
        prompts: one per picture.
        seeds: of each picture's initial noise, the only randomness.
        width_px, height_px: multiples of what the UNet can halve and double again.
        params: how.
        clip_skip: see `encode_prompts`.

    Raises:
        FloatingPointError: if a picture holds NaN or infinite values.
    """
    device, dtype = models.unet.device, models.unet.dtype
    noise_scheduler = make_sampler(models, params)
    noise_scheduler.set_timesteps(params.steps, device=device)
    guided = params.guidance != 1
    encoder_hidden_states = encode_prompts(
        models.text_encoder, models.tokenizer, [params.negative_prompt, *prompts], clip_skip
    )
    negative, positive = encoder_hidden_states[:1], encoder_hidden_states[1:]
    if guided:
        encoder_hidden_states = torch.cat([negative.expand_as(positive), positive])
    else:
        encoder_hidden_states = positive

    noises = [initial_noise(seed, width_px, height_px, models) for seed in seeds]
    latents = torch.cat(noises).to(device, dtype) * noise_scheduler.init_noise_sigma
    for timestep in noise_scheduler.timesteps:
        scaled = noise_scheduler.scale_model_input(latents, timestep)
        inputs = torch.cat([scaled, scaled]) if guided else scaled
        noise_pred = models.unet(inputs, timestep, encoder_hidden_states).sample
        if guided:
            without, with_prompt = noise_pred.chunk(2)
            noise_pred = without + params.guidance * (with_prompt - without)
        latents = noise_scheduler.step(noise_pred, timestep, latents).prev_sample
    decoded = models.vae.decode(latents / models.vae.config.scaling_factor).sample
    if not decoded.isfinite().all():
        raise FloatingPointError(f"not a finite picture: broken weights, or too large for {dtype}")
    return to_images(decoded)


def make_sampler(models: Models, params: SamplingParams) -> Any:
    """Build a fresh sampler, for it keeps state, on the model's own noise schedule."""
    import diffusers

    name, options = SAMPLERS[params.sampler]
    return getattr(diffusers, name).from_config(models.noise_scheduler.config, **options)


def to_images(pixel_values: Tensor) -> list[Image.Image]:
    """Turn (B, 3, H, W) in [-1, 1] into pictures of 8 bits a channel, copied off at once."""
    levels = ((pixel_values.float().clamp(-1, 1) + 1) * 127.5).round()
    pixels = levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()  # (B, H, W, 3)
    return [Image.fromarray(picture) for picture in pixels]
