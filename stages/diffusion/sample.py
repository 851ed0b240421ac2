"""From a prompt and a seed to a picture, the same one whatever else is drawn.

Initial noise belongs to a seed, never to a batch. Kernels may round differently in batches of
other sizes (a few millionths of a latent, on a CPU), but not by what else is in a batch: whoever
always draws as many pictures at once gets the same pixels from the same prompt and seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from stages.diffusion.model import Models
from stages.diffusion.samplers import SAMPLERS, levels_of, sampled
from stages.harness.params import Params

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


class BrokenPicturesError(FloatingPointError):
    """Some pictures of a batch hold NaN or infinite values."""

    def __init__(self, pictures: list[Image.Image | None], dtype: torch.dtype) -> None:
        """Say so.

        Args:
            pictures: of the batch; None in the place of a broken one.
            dtype: that they were drawn in.
        """
        super().__init__(f"not a finite picture: broken weights, or too large for {dtype}")
        self.pictures = pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams(Params):
    """How a picture is drawn, whatever it shows."""

    sampler: str  # one of SAMPLERS
    steps: int  # UNet calls, each for the prompt and the negative prompt; DDIM may make more
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
        BrokenPicturesError: if a picture holds NaN or infinite values; it has the others.
    """
    device, dtype = models.unet.device, models.unet.dtype
    guided = params.guidance != 1
    encoder_hidden_states = encode_prompts(
        models.text_encoder, models.tokenizer, [params.negative_prompt, *prompts], clip_skip
    )
    negative, positive = encoder_hidden_states[:1], encoder_hidden_states[1:]
    if guided:
        encoder_hidden_states = torch.cat([negative.expand_as(positive), positive])
    else:
        encoder_hidden_states = positive

    def ask(latents: Tensor, timestep: Tensor) -> Tensor:
        inputs = latents.to(dtype)
        if not guided:
            answer: Tensor = models.unet(
                inputs, timestep, encoder_hidden_states, return_dict=False
            )[0]
            return answer
        twice = torch.cat([inputs, inputs])
        (both,) = models.unet(twice, timestep, encoder_hidden_states, return_dict=False)
        without, with_prompt = both.float().chunk(2)
        guided_answer: Tensor = without + params.guidance * (with_prompt - without)
        return guided_answer

    noises = [initial_noise(seed, width_px, height_px, models) for seed in seeds]
    levels = levels_of(models.noise_scheduler)
    latents = sampled(torch.cat(noises).to(device), ask, params.sampler, params.steps, levels)
    latents = latents.to(dtype)
    decoded = models.vae.decode(latents / models.vae.config.scaling_factor).sample
    are_finite = decoded.isfinite().flatten(1).all(1)
    if not are_finite.all():
        whole = iter(to_images(decoded[are_finite]))
        pictures = [next(whole) if is_finite else None for is_finite in are_finite.tolist()]
        raise BrokenPicturesError(pictures, dtype)
    return to_images(decoded)


def to_images(pixel_values: Tensor) -> list[Image.Image]:
    """Turn (B, 3, H, W) in [-1, 1] into pictures of 8 bits a channel, copied off at once."""
    levels = ((pixel_values.float().clamp(-1, 1) + 1) * 127.5).round()
    pixels = levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()  # (B, H, W, 3)
    return [Image.fromarray(picture) for picture in pixels]
