"""How much of a batch fits on a device, found out by trying."""

from collections.abc import Sequence

import torch

from stages.diffusion.dataset import Dataset
from stages.diffusion.draw import draw_training
from stages.diffusion.learner import Learner
from stages.diffusion.ranks import alone


def room_for_a_batch(learner: Learner, dataset: Dataset, rows: Sequence[int]) -> int:
    """Halve a batch that did not fit until a whole step does; how many rows that is, perhaps 0.

    The weights move by it: only for a run that ends here anyway.

    Args:
        learner: whose step ran out of memory.
        dataset: the examples.
        rows: of the batch, all of one bucket.
    """
    learner.ranks = alone(learner.device)  # the other processes take no part
    learner.unet = learner.models.unet  # to compile for each size would take minutes
    count = len(rows) // 2
    while count:
        drawn = draw_training(dataset, learner.params, learner.total_timesteps, 0, 1, rows[:count])
        try:
            learner.forget()
            learner.step([drawn], count, 0, 1)
        except torch.OutOfMemoryError:
            count //= 2
        else:
            return count
    return 0
