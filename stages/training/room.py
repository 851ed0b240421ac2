"""What to say when a device's memory ends: how much of a batch would fit, found out by trying."""

from collections.abc import Sequence

import torch

from stages.training.dataset import Dataset
from stages.training.draw import draw_training
from stages.training.learner import Learner
from stages.training.params import TrainParams
from stages.training.ranks import alone


def what_would_fit(learner: Learner, dataset: Dataset, rows: Sequence[int]) -> str:
    """Put into words that memory ran out, and which batch would do.

    The weights move by it: only for a run that ends here anyway.

    Args:
        learner: whose step ran out of memory.
        dataset: the examples.
        rows: of the batch, all of one bucket.
    """
    params = learner.params
    fits = _largest_that_fits(learner, dataset, rows)
    times = -(-params.batch_size // fits) if fits else 0
    advice = (
        f"batch_size {fits} would fit; with gradient_accumulation "
        f"{times * params.gradient_accumulation} a step sees as many examples"
        if fits
        else "not even a batch of 1 fits: set gradient_checkpointing to true, optimizer to "
        "adamw8bit, or ema_decay to 0"
    )
    return (
        f"out of memory on {learner.device} with batch_size {params.batch_size} at "
        f"{params.resolution} px: {advice}"
    )


def no_room_to_begin(params: TrainParams, device: torch.device) -> str:
    """Put into words that memory ran out before the first step, where no batch is to blame."""
    learns = "the UNet and the text encoder" if params.trains_text_encoder else "the UNet"
    spared = [
        *(["ema_decay 0"] if params.ema_decay else []),
        *(["text_encoder_learning_rate 0"] if params.trains_text_encoder else []),
    ]
    less = f" With {' or '.join(spared)} it needs less." if spared else ""
    return (
        f"out of memory on {device} before the first step, while pictures of {params.resolution} "
        f"px were encoded or {learns} moved there: no batch size helps. Is another process at work "
        f"there?{less}"
    )


def _largest_that_fits(learner: Learner, dataset: Dataset, rows: Sequence[int]) -> int:
    """Halve a batch until a whole step fits; give its rows, perhaps 0."""
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
