"""How far a training run is."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.training.history import History
from stages.training.ranks import Ranks


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

    def history(self, ids: tuple[str, ...]) -> History:
        """Give the figures of all finished epochs; `ids` are the validation examples'."""
        return History(ids, torch.stack(self.errors).numpy(), tuple(self.train_losses))

    def loss_of_all(self, ranks: Ranks) -> float:
        """Add up what the processes have seen of the epoch."""
        total = torch.tensor(float(self.loss_sum), dtype=torch.float64)
        ranks.add_up([total])
        return float(total)
