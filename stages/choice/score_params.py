"""Section `grid.score` of the params."""

from dataclasses import dataclass

from stages.harness.params import Params


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreParams(Params):
    """Section `grid.score`: who judges besides the scorer, and how intervals are made."""

    more: list[tuple[str, str]]  # name and folder of other CLIPModels, reported beside
    aesthetic_clip: str  # folder of CLIP ViT-L/14; "": no aesthetic score
    aesthetic_head: str  # its perceptron, a safetensors file
    resamples: int  # of the prompts
    confidence: float  # of the intervals: 0.95
    seed: int  # of the resampling

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.resamples < 1:
            raise ValueError(f"resamples must be at least 1, got {self.resamples}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")
        if bool(self.aesthetic_clip) != bool(self.aesthetic_head):
            raise ValueError("aesthetic_clip and aesthetic_head go together: give both or none")
        names = [name for name, _ in self.more]
        if len(set(names)) < len(names) or {"score", "aesthetic", "cmmd"} & set(names):
            raise ValueError(
                f"more: names must differ, and not be score, aesthetic or cmmd: {names}"
            )
