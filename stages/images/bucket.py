"""Size classes: pictures of one bucket are cropped to one size, so that they can share a batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]  # left, top, right, bottom; px


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A size in px."""

    width: int
    height: int

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.width / self.height


def buckets(resolution: int, max_aspect: float, step: int) -> list[Bucket]:
    """List sizes in multiples of `step` px, of area at most resolution**2, both ways up.

    Args:
        resolution: side of the square bucket, px; a multiple of `step`.
        max_aspect: longer side over shorter side, at most.
        step: px; 64 for SD 1.5, whose UNet halves latents of 8 px three times.

    Returns:
        For each width the tallest size that fits, and its mirror image; narrowest first.

    Raises:
        ValueError: if the resolution is no multiple of the step, or nothing fits the aspect.
    """
    if step < 1 or resolution < step or resolution % step:
        raise ValueError(
            f"resolution {resolution} px is not a multiple of bucket_step_px {step}; the nearest "
            f"below is {max(resolution // max(step, 1), 1) * step}"
        )
    if max_aspect < 1:
        raise ValueError(f"max_aspect is longer over shorter side, so at least 1; got {max_aspect}")
    widths = range(resolution, int(resolution * max_aspect) + 1, step)
    sizes = [Bucket(width, resolution**2 // width // step * step) for width in widths]
    wide = [size for size in sizes if size.width <= max_aspect * size.height]
    return sorted({*wide, *(Bucket(size.height, size.width) for size in wide)})


def nearest_bucket(width: int, height: int, choices: Sequence[Bucket]) -> Bucket:
    """Pick the bucket whose shape is most like the picture's, by difference of log aspects.

    The larger bucket wins a tie, then the wider one.
    """
    return min(
        choices,
        key=lambda b: (
            abs(math.log(b.aspect) - math.log(width / height)),
            -b.width * b.height,
            -b.width,
        ),
    )


def centre_crop(width: int, height: int, bucket: Bucket) -> Box:
    """Find the largest box in a picture's middle that has the bucket's shape.

    Args:
        width, height: of the picture, px.
        bucket: what the box is to be resized to.
    """
    scale = min(width / bucket.width, height / bucket.height)
    left = (width - bucket.width * scale) / 2
    top = (height - bucket.height * scale) / 2
    return left, top, width - left, height - top
