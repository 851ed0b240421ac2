"""Section `grid.sheet` of the params."""

from dataclasses import dataclass

from stages.harness.params import Params

FORMATS = ("png", "jpeg", "webp")


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetParams(Params):
    """Section `grid.sheet`: how cells are shown; changing it draws none anew."""

    scale: int  # px of the sheet for each px of a cell
    max_side_px: int  # longer side of a page; what does not fit goes on another
    format: str  # png, jpeg or webp
    quality: int  # of JPEG and WebP, 1 to 100; 100 in WebP is lossless

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.scale < 1 or self.max_side_px < 1:
            raise ValueError("scale and max_side_px must be at least 1")
        if self.format not in FORMATS:
            raise ValueError(f"unknown format {self.format!r}; known: {', '.join(FORMATS)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must lie between 1 and 100, got {self.quality}")
