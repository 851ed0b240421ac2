"""How far a job is: an honest time left, whatever its start was like."""

import io
import re
from collections.abc import Iterator

import pytest

from stages.harness import progress as progress_module
from stages.harness.progress import Progress


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def times_left(work: list[tuple[float, int]]) -> Iterator[tuple[float, float]]:
    """Show each time left in seconds, beside the one that came true.

    Args:
        work: seconds that pass, and the units that they bring.
    """
    clock, terminal = Clock(), Terminal()
    told: list[tuple[float, float]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress_module, "time", clock)
        progress = Progress("job", sum(count for _, count in work), terminal)
        for seconds, count in work:
            clock.now += seconds
            before = len(terminal.getvalue())
            progress.advance(count)
            if found := re.search(r"([\d:]+) left", terminal.getvalue()[before:]):
                parts = reversed(found[1].split(":"))
                told.append((clock.now, sum(60**i * int(part) for i, part in enumerate(parts))))
        progress.close()
    assert "left" not in terminal.getvalue().rsplit("\r", 1)[1]
    return ((left, clock.now - at) for at, left in told)


@pytest.mark.parametrize(
    "start",
    [
        [(90.0, 10)],  # a compiler
        [(0.0, 1)] * 5000,  # mirrors that answer at once
        [(0.5, 10)],  # nothing out of the way
    ],
)
def test_the_time_left_holds_from_the_first_time_it_is_told(start: list[tuple[float, int]]) -> None:
    work = [*start, *[(0.5, 10)] * 1000]
    shown = list(times_left(work))
    assert shown[0][1] > 485  # of 500 s
    assert all(left == pytest.approx(true, rel=0.15, abs=1) for left, true in shown)


def test_the_time_left_follows_work_that_slows_down() -> None:
    shown = list(times_left([*[(0.5, 10)] * 1000, *[(0.5, 1)] * 3000]))
    assert all(left == pytest.approx(true, rel=0.02, abs=1) for left, true in shown if true < 1440)


def test_units_that_take_minutes_have_a_time_left_from_the_second_on() -> None:
    shown = list(times_left([(200.0, 1)] * 10))
    assert [left for left, _ in shown] == [1600, 1400, 1200, 1000, 800, 600, 400, 200]


def test_the_end_tells_the_rate_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(), io.StringIO()
    monkeypatch.setattr(progress_module, "time", clock)
    progress = Progress("job", 100, log)
    clock.now += 30
    progress.advance(10)
    clock.now += 20
    progress.advance(90)
    progress.close()
    lines = log.getvalue().splitlines()
    assert lines == ["job: 10/100", *["job: 100/100 in 0:50, 2/s"] * 2]


def test_a_fast_rate_is_told_in_whole_numbers_and_a_slow_one_in_three_digits() -> None:
    progress = Progress("download", 30_000)
    progress.advance(30_000)
    assert progress.line(15.0) == "download: 30,000/30,000 in 0:15, 2,000/s"
    assert progress.line(60_000.0) == "download: 30,000/30,000 in 16:40:00, 0.5/s"
