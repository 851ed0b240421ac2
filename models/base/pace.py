"""The course of a training run: learning rate by step, and lines that tell how far it is."""

from __future__ import annotations

import math
import time

from torch import Tensor

LINES = 40  # of progress in a whole run


def learning_rate_at(step: int, peak: float, warmup_steps: int, steps: int) -> float:
    """Rise in a line to `peak`, then fall as a cosine to zero at `steps`; arXiv 1608.03983."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def trapezoid_rate_at(
    step: int, peak: float, warmup_steps: int, decay_steps: int, steps: int
) -> float:
    """Rise in a line to `peak`, stay, and fall in a line to zero over the last `decay_steps`.

    Until the fall begins nothing depends on `steps`, so a run can still be lengthened; after
    "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", arXiv 2405.18392.
    """
    rise = (step + 1) / max(1, warmup_steps)
    fall = (steps - step) / max(1, decay_steps)
    return peak * min(1.0, rise, fall)


class Pace:
    """Prints the mean loss, the speed and the time left; losses are read when a line is due."""

    def __init__(self, name: str, steps: int, done: int = 0) -> None:
        self.name = name
        self.steps = steps
        self.every = max(1, steps // LINES)
        self.losses: list[Tensor] = []
        self.last = time.monotonic()
        print(f"{name}: {steps - done} of {steps} steps to do", flush=True)

    def tick(self, step: int, loss: Tensor) -> None:
        """Note the loss of a finished step, without waiting for the device."""
        self.losses.append(loss.detach())
        if (step + 1) % self.every and step + 1 != self.steps and step != 0:
            return
        mean = sum(loss.item() for loss in self.losses) / len(self.losses)
        now = time.monotonic()
        each = (now - self.last) / len(self.losses)
        left = each * (self.steps - step - 1)
        print(
            f"{self.name}: step {step + 1}/{self.steps}, loss {mean:.4f}, "
            f"{1000 * each:.1f} ms a step, {left:.0f} s left",
            flush=True,
        )
        self.losses.clear()
        self.last = now
