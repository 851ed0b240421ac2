"""How far a long job is: a bar on a terminal, now and then a line in a log."""

import sys
import time
from collections import deque
from typing import TextIO

LOG_EVERY_S = 10.0
TERMINAL_EVERY_S = 0.2
MARK_EVERY_S = 1.0
# Rate and time left are told by the work since the first unit, which may have waited for a
# compiler: by its later half, for a start may be quick or slow, and at most by the last minute.
SURE_AFTER_S = 5.0
RECENT_S = 60.0


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
        self.start()
        self.printed = self.started

    def start(self, kept: int = 0) -> None:
        """Start the clock; `kept` units are there already, and count as done, not as speed."""
        self.done = self.kept = kept
        self.started = time.monotonic()
        self._began = 0.0  # when the first unit was done
        self._marks: deque[tuple[float, int]] = deque()  # times, and what was done by then

    def advance(self, count: int = 1) -> None:
        """Count finished units, and print if it is time to."""
        self.done += count
        now = time.monotonic()
        self._mark(now)
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
        rate = self.rate(elapsed_s)
        if rate is None:
            return text
        if self.done >= self.total:
            return f"{text} in {clock(elapsed_s)}, {_told(rate)}"
        return f"{text}, {_told(rate)}, {clock((self.total - self.done) / rate)} left"

    def rate(self, elapsed_s: float) -> float | None:
        """Give the units a second: at the end of all, before it of late; None if not known."""
        now = self.started + elapsed_s
        since, before = self.started, self.kept
        if self.done < self.total:
            if not self._marks or now - self._began < SURE_AFTER_S:
                return None
            since, before = self._marks[0]
        came = self.done - before
        return came / max(now - since, 1e-9) if came > 0 else None

    def _mark(self, now: float) -> None:
        """Remember how far it is now, and forget what is no longer recent."""
        if not self._marks:
            self._began = now
        if not self._marks or now - self._marks[-1][0] >= MARK_EVERY_S:
            self._marks.append((now, self.done))
        recent_s = min(RECENT_S, (now - self._began) / 2)
        while len(self._marks) > 1 and self._marks[1][0] <= now - recent_s:
            self._marks.popleft()

    def _print(self, line: str) -> None:
        if not self.is_shown:
            return
        self.stream.write(f"\r\x1b[K{line}" if self.is_terminal else f"{line}\n")
        self.stream.flush()


def _told(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s"


def clock(seconds: float) -> str:
    """Write a time in whole seconds.

    >>> clock(42), clock(3723)
    ('0:42', '1:02:03')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
