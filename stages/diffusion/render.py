"""A model made ready to draw, on the best device there is."""

from pathlib import Path

import torch

from stages.diffusion.device_kind import device_kind
from stages.diffusion.model import Models, load_models


def open_models(weights: Path, config: Path, dtype: str) -> Models:
    """Load a model for drawing: on the GPU if there is one, else on the CPU.

    Args:
        weights: a safetensors file in the original SD 1.x layout.
        config: the diffusers folder that describes it.
        dtype: of the weights while drawing, as torch names it: float32, float16 or bfloat16.
    """
    models = load_models(weights, config, dtype=getattr(torch, dtype), device=device_kind())
    for part in (models.unet, models.vae, models.text_encoder):
        part.requires_grad_(False)
    for part in (models.unet, models.vae):  # the fast convolutions of CPU and GPU want it so
        part.to(memory_format=torch.channels_last)
    return models
