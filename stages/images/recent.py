"""How far a download is, and the time left by what it did of late."""

from collections import deque

from stages.harness.progress import Progress, clock

SPAN_S = 60.0


class RecentProgress(Progress):
    """Counts as Progress does, but tells the rate of the last minute.

    What a mirror or an earlier run has comes thousands of times as fast as what a network gives,
    and mostly first: a mean over all would promise minutes where hours are left.
    """

    def __init__(self, label: str, total: int) -> None:
        """Start the clock."""
        super().__init__(label, total)
        self._marks = deque([(0.0, 0)])  # seconds, and units done by then; one is older than SPAN_S

    def line(self, elapsed_s: float) -> str:
        """Say what is done, how fast of late, and how long the rest will take at that rate."""
        while len(self._marks) > 1 and elapsed_s - self._marks[1][0] >= SPAN_S:
            self._marks.popleft()
        since_s, before = self._marks[0]
        self._marks.append((elapsed_s, self.done))
        text = f"{self.label}: {self.done:,}/{self.total:,}"
        if self.done >= self.total:
            return f"{text} in {clock(elapsed_s)}, {_rate(self.done / max(elapsed_s, 1e-9))}"
        if self.done == before:
            return text
        rate = (self.done - before) / max(elapsed_s - since_s, 1e-9)
        return f"{text}, {_rate(rate)}, {clock((self.total - self.done) / rate)} left"


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}/s" if per_s >= 100 else f"{per_s:.3g}/s"
