"""When checkpoints are written: seldom enough, and at the end always."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stages.training import cadence as cadence_module
from stages.training import resume
from stages.training.cadence import SHARE, Cadence
from stages.training.checkpoint import save_checkpoint
from tests.tiny_training import base, one_thread, start

__all__ = ["base", "one_thread"]  # fixtures are found by their names


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(cadence_module, "time", fake)
    return fake


def save(cadence: Cadence, clock: Clock, cost_s: float) -> None:
    with cadence.saving():
        clock.now += cost_s


def test_within_an_epoch_a_checkpoint_is_due_after_the_pause(clock: Clock) -> None:
    cadence = Cadence(pause_s=300)
    assert not cadence.is_due(within_epoch=True)
    clock.now += 299
    assert not cadence.is_due(within_epoch=True)
    clock.now += 1
    assert cadence.is_due(within_epoch=True)


@pytest.mark.parametrize("cost_s", [0.1, 7, 60])
def test_checkpoints_cost_two_percent_of_the_time_also_between_short_epochs(
    clock: Clock, cost_s: float
) -> None:
    cadence = Cadence(pause_s=300)
    save(cadence, clock, cost_s)  # the first one tells what one costs
    began, spent = clock.now, 0.0
    for epoch_s in [cost_s / 3] * 10_000:
        clock.now += epoch_s
        if cadence.is_due(within_epoch=False):
            save(cadence, clock, cost_s)
            spent += cost_s
    share = spent / (clock.now - began)
    assert SHARE / 2 < share <= SHARE


def test_without_a_pause_one_is_due_after_each_step_whatever_it_costs(clock: Clock) -> None:
    cadence = Cadence(pause_s=0)
    save(cadence, clock, cost_s=1000)
    assert cadence.is_due(within_epoch=True)


def test_a_run_of_short_epochs_ends_with_a_checkpoint_of_its_last_step(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: Callable[[], None]
) -> None:
    monkeypatch.setattr(cadence_module, "SHARE", 1e-9)  # after the first one, none is due
    written = count_saves(monkeypatch)
    start(base, tmp_path)
    assert written == [3, 9]  # three steps an epoch: after the first of three epochs, and the last
    start(base, tmp_path)
    assert written == [3, 9], "a finished run was written again"


def count_saves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the steps at which checkpoints are written."""
    written: list[int] = []

    def save_and_note(folder: Path, step: int, state: dict[str, object]) -> None:
        written.append(step)
        save_checkpoint(folder, step, state)

    monkeypatch.setattr(resume, "save_checkpoint", save_and_note)
    return written
