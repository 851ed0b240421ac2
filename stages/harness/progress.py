"""How far a long job is: a bar on a terminal, now and then a line in a log."""

import sys
import time
from typing import TextIO

LOG_EVERY_S = 10.0
TERMINAL_EVERY_S = 0.2


class Progress:
    """Counts what is done, and shows rate and time left."""

    def __init__(
        self, label: str, total: int, stream: TextIO | None = None, *, is_shown: bool = True
    ) -> None:
        """Start the clock.

        Args:
            label: the job's name.
            total: number of units in the whole job.
            stream: where to print; standard error if None.
            is_shown: false where another process speaks for this one.
        """
        self.label = label
        self.total = total
        self.stream = stream or sys.stderr
        self.is_shown = is_shown
        self.is_terminal = self.stream.isatty()
        self.done = 0
        self.started = time.monotonic()
        self.printed = self.started

    def advance(self, count: int = 1) -> None:
        """Count finished units, and print if it is time to."""
        self.done += count
        now = time.monotonic()
        if now - self.printed >= (TERMINAL_EVERY_S if self.is_terminal else LOG_EVERY_S):
            self.printed = now
            self._print(self.line(now - self.started))

    def close(self) -> None:
        """Print how it ended."""
        self._print(self.line(time.monotonic() - self.started))
        if self.is_terminal and self.is_shown:
            self.stream.write("\n")

    def line(self, elapsed_s: float) -> str:
        """Say what is done, how fast, and how long the rest will take.

        >>> Progress("download", 20).line(4.0)
        'download: 0/20'
        """
        text = f"{self.label}: {self.done:,}/{self.total:,}"
        if not self.done:
            return text
        rate = self.done / max(elapsed_s, 1e-9)
        if self.done >= self.total:
            return f"{text} in {clock(elapsed_s)}, {rate:.3g}/s"
        return f"{text}, {rate:.3g}/s, {clock((self.total - self.done) / rate)} left"

    def _print(self, line: str) -> None:
        if not self.is_shown:
            return
        self.stream.write(f"\r\x1b[K{line}" if self.is_terminal else f"{line}\n")
        self.stream.flush()


def clock(seconds: float) -> str:
    """Write a time in whole seconds.

    >>> clock(42), clock(3723)
    ('0:42', '1:02:03')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
