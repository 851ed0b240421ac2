"""How the learning rate goes over a run."""

import math
from collections.abc import Callable

# Each maps the share of the schedule that is done, 0 to 1, to a share of the learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,  # noqa: ARG005
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),  # arXiv 1608.03983, one cycle
    "linear": lambda done: 1 - done,
}


def check_warmup(name: str, warmup_steps: int, steps: int) -> None:
    """See that the rate has risen before its schedule is over; a constant one never is.

    Args:
        name: a key of SCHEDULES.
        warmup_steps: over which the rate rises.
        steps: of the whole schedule, its warm-up included.

    Raises:
        ValueError: if the rate would fall to its last share as soon as it had risen.
    """
    if name != "constant" and warmup_steps >= steps:
        raise ValueError(
            f"warmup_steps is {warmup_steps:,}, but the whole {name} schedule has {steps:,} steps "
            "and ends with a rate of 0: warm up for fewer steps, raise schedule_epochs, or choose "
            "the constant schedule"
        )


def idle_epochs(name: str, schedule_epochs: int, max_epochs: int) -> int:
    """Count the epochs that lie behind the end of a schedule, where its rate is 0.

    Args:
        name: a key of SCHEDULES; a constant one has no such epochs.
        schedule_epochs: its length.
        max_epochs: that may be trained.
    """
    return 0 if SCHEDULES[name](1.0) else max(0, max_epochs - schedule_epochs)


def rate_factor(name: str, step: int, warmup_steps: int, steps: int) -> float:
    """Give the share of the learning rate for a step.

    Args:
        name: a key of SCHEDULES.
        step: of the run, from 0.
        warmup_steps: over which the rate rises in a straight line.
        steps: of the whole schedule, its warm-up included; behind it the last share stays.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return SCHEDULES[name](min(1.0, done))
