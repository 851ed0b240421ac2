"""Pictures on white, moved, scaled and tinted at random, on the device that holds them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def placed(
    pixel_values: Tensor,
    side_px: int,
    scales: tuple[float, float],
    shift: float,
    generator: torch.Generator,
) -> Tensor:
    """Draw each picture at a random scale and place on a white square.

    Args:
        pixel_values: (B, 3, H, W) float in [-1, 1].
        side_px: of the square.
        scales: least and greatest size, as a share of the square.
        shift: greatest move to a side, as a share of the square.
        generator: on the pictures' device.

    Returns:
        (B, 3, side_px, side_px) float in [-1, 1].
    """
    count, device = len(pixel_values), pixel_values.device
    draws = torch.rand(count, 3, generator=generator, device=device)
    scale = scales[0] + (scales[1] - scales[0]) * draws[:, 0]
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = (2 * draws[:, 1:] - 1) * 2 * shift
    grid = F.affine_grid(theta, [count, 3, side_px, side_px], align_corners=False)
    ink = 1 - pixel_values  # zero outside the picture is white
    drawn: Tensor = 1 - F.grid_sample(ink, grid, mode="bilinear", align_corners=False)
    return drawn


def jitter_colours(pixel_values: Tensor, generator: torch.Generator) -> Tensor:
    """Change contrast, brightness, saturation and sharpness a little, and add noise.

    Hues stay: captions name colours.
    """
    shape, device = (4, len(pixel_values), 1, 1, 1), pixel_values.device
    contrast, brightness, saturation, blur = torch.rand(shape, generator=generator, device=device)
    grey = pixel_values.mean(1, keepdim=True)
    out = grey + (pixel_values - grey) * (0.5 + saturation)
    out = out * (0.6 + 0.6 * contrast) + 0.4 * (brightness - 0.5)
    soft = F.avg_pool2d(F.pad(out, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    out = torch.where(blur < 0.3, soft, out)
    noise = torch.randn(out.shape, generator=generator, device=device)
    noisy: Tensor = out + 0.05 * blur * noise
    return noisy.clamp(-1, 1)
