"""How far a training run is."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Position:
    """How far a run is, and the loss of the epoch under way."""

    epoch: int = 1  # under way
    epoch_step: int = 0  # optimizer steps done in it, those left out included
    step: int = 0  # optimizer steps done in all
    seen: int = 0  # examples of this epoch
    counted: int = 0  # of them, those whose loss is finite
    skipped: int = 0  # steps of this epoch that were left out
    loss_sum: float | Tensor = 0.0  # over them; a tensor, so that no step waits for the device
    train_losses: list[float] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)  # (N, K) of each validation, on the CPU
    scaler: dict[str, float] = field(default_factory=dict)  # of float16's gradients

    def next_epoch(self) -> "Position":
        """Give the start of the epoch that follows."""
        return Position(self.epoch + 1, 0, self.step, 0, 0, 0, 0.0, self.train_losses, self.errors)
