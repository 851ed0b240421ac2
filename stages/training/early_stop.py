"""When to stop: validation trends up consistently.

The rule. A validation is *worse* if its loss is above the best so far (the base's own included)
by more than chance explains: the paired bootstrap interval of (this one - the best), example by
example, lies wholly above zero. Training stops at the first epoch that closes a run of `patience`
worse validations, unbroken. One that is better, or not surely worse, starts the count again: a
single spike, a plateau and noise around it stop nothing.
"""

import numpy as np

from stages.training.validation import Floats, paired_interval


def stop_epoch(losses: Floats, patience: int) -> int | None:
    """Find the epoch after which to stop; None if the curve gives no reason.

    A pure function of the curve: a longer curve with the same start gives the same answer.

    Args:
        losses: (E, N), of each example after epoch 0 (the base) to E - 1.
        patience: worse validations in a row.
    """
    run = 0
    for epoch, worse in enumerate(worse_than_best(losses)):
        run = run + 1 if worse else 0
        if run == patience:
            return epoch
    return None


def worse_than_best(losses: Floats) -> list[bool]:
    """Tell for each epoch whether it is surely worse than the best up to it."""
    means = losses.mean(1)
    best = [int(np.argmin(means[: epoch + 1])) for epoch in range(len(means))]
    return [
        epoch != at and paired_interval(losses[epoch] - losses[at]).low > 0
        for epoch, at in enumerate(best)
    ]
