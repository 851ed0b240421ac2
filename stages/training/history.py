"""What a training run's validations said, and what follows from it: when to stop, what to keep."""

from dataclasses import dataclass

import numpy as np

from stages.training.early_stop import stop_epoch
from stages.training.params import TrainParams
from stages.training.validation import Floats, Interval, everydream2_loss, paired_interval


@dataclass(frozen=True, slots=True)
class History:
    """What validation and training said, epoch by epoch."""

    ids: tuple[str, ...]  # of the validation examples
    errors: Floats  # (E, N, K), of epoch 0, the base, to E - 1
    train_losses: tuple[float, ...]  # of epochs 1 to E - 1, while they were trained

    def __len__(self) -> int:
        return len(self.errors)

    @property
    def losses(self) -> Floats:
        """(E, N), of each validation example."""
        losses: Floats = self.errors.astype(np.float64).mean(2)
        return losses

    @property
    def means(self) -> list[float]:
        """(E,), what the graph shows."""
        return [float(loss) for loss in self.losses.mean(1)]

    @property
    def best(self) -> int:
        """The epoch of the lowest validation loss, the base left out."""
        return 1 + int(np.argmin(self.means[1:]))

    def bins(self, epoch: int) -> list[float]:
        """(K,), the loss by part of the noise schedule, from clean to noisy."""
        return [float(loss) for loss in self.errors[epoch].astype(np.float64).mean(0)]

    def change(self, epoch: int) -> Interval:
        """Say where the change of the loss since the base lies."""
        return paired_interval(self.losses[epoch] - self.losses[0])

    def everydream2(self, epoch: int) -> float:
        """Give the figure that EveryDream2 would."""
        return everydream2_loss(self.errors[epoch], self.ids)

    def until(self, epoch: int) -> "History":
        """Forget what came after an epoch."""
        return History(self.ids, self.errors[: epoch + 1], self.train_losses[:epoch])

    def end(self, params: TrainParams) -> int | None:
        """Find the epoch with which the run ends; None if it is to go on."""
        stop = stop_epoch(self.losses, params.stop_patience) if params.stop_patience else None
        end = params.max_epochs if stop is None else min(stop, params.max_epochs)
        return end if end < len(self) else None

    def kept(self, params: TrainParams) -> list[int]:
        """List the epochs whose weights are kept."""
        every = params.checkpoint_every_epochs
        return sorted({*range(every, len(self), every), *([self.best] if len(self) > 1 else [])})
