"""Pictures drawn while a run goes on, for a person to see where it goes."""

from pathlib import Path

import torch
from PIL import Image
from torch import nn

from stages.diffusion.capacity import Capacity
from stages.diffusion.model import Base, Models, load_models
from stages.diffusion.sample import draw
from stages.harness.files import replacing
from stages.training.params import PRECISIONS, SamplesParams


def draw_preview(
    path: Path, base: Base, trained: Models, samples: SamplesParams, side_px: int, precision: str
) -> None:
    """Draw every prompt once and write the pictures side by side as a PNG.

    All at once if memory suffices for it, else in batches half as large, and so on.

    Args:
        path: of the PNG.
        base: gives what `trained` no longer holds, the autoencoder above all.
        trained: the UNet in it is drawn with, on its noise schedule, and the text encoder if it
            still has its weights.
        samples: what to draw.
        side_px: of each picture.
        precision: of the arithmetic, a key of PRECISIONS.

    Raises:
        torch.OutOfMemoryError: if not even one picture fits beside what trains.
    """
    unet = trained.unet
    models = load_models(base.weights, base.config)
    models.unet, models.noise_scheduler = unet, trained.noise_scheduler
    if trained.text_encoder.device.type != "meta":
        models.text_encoder = trained.text_encoder
    for network in (models.vae, models.text_encoder):
        nn.Module.to(network, unet.device).eval()
    dtype = PRECISIONS[precision]
    with torch.autocast(unet.device.type, dtype, enabled=dtype != torch.float32):
        pictures = _draw_as_memory_allows(models, samples, side_px)
    row = Image.new("RGB", (side_px * len(pictures), side_px))
    for i, picture in enumerate(pictures):
        row.paste(picture, (i * side_px, 0))
    with replacing(path) as scratch:
        row.save(scratch, "PNG")


def _draw_as_memory_allows(
    models: Models, samples: SamplesParams, side_px: int
) -> list[Image.Image]:
    def draw_some(asked: list[tuple[str, int]]) -> list[Image.Image]:
        prompts, seeds = zip(*asked, strict=True)
        return draw(models, prompts, seeds, side_px, side_px, samples.sampling)

    asked = [(prompt, samples.seed + i) for i, prompt in enumerate(samples.prompts)]
    capacity = Capacity(len(asked))
    pictures: list[Image.Image] = []
    while len(pictures) < len(asked):
        pictures += capacity.fill(draw_some, asked[len(pictures) :])
    return pictures
