"""How often a run writes checkpoints: so seldom that all of them cost a small share of its time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

SHARE = 0.02  # of the time that checkpoints may take, whatever the disk


class Cadence:
    """Knows when a checkpoint is due."""

    def __init__(self, pause_s: float) -> None:
        """Begin to count.

        Args:
            pause_s: least time between two checkpoints within an epoch; 0 for one after each
                step, whatever it costs.
        """
        self._pause_s = pause_s
        self._saved_at = time.monotonic()
        self._cost_s = 0.0  # of the last one

    def is_due(self, *, within_epoch: bool) -> bool:
        """Tell whether it is time for a checkpoint; between epochs it need not be a long time."""
        if not self._pause_s:
            return True
        pause_s = self._cost_s / SHARE
        if within_epoch:
            pause_s = max(pause_s, self._pause_s)
        return time.monotonic() - self._saved_at >= pause_s

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Take the time of a checkpoint."""
        began = time.monotonic()
        yield
        self._saved_at = time.monotonic()
        self._cost_s = self._saved_at - began
