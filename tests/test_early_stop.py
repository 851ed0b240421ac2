"""When to stop, on recorded curves and on curves as the article's: a lowest epoch, a slow rise."""

from pathlib import Path

import numpy as np
import pytest

from stages.training.early_stop import stop_epoch
from stages.training.validation import Floats

EXAMPLES = 400
CURVES = Path(__file__).parent / "curves"
# start, lowest, epoch of the lowest, epoch at which a person stopped: the article's two runs
ARTICLE = {512: (0.138, 0.1361, 40, 70), 768: (0.125, 0.12166, 34, 60)}


def curve(means: list[float], wobble: float = 0.005, seed: int = 0) -> Floats:
    """Give (E, N) losses with these means: examples differ much, and move a little by chance."""
    rng = np.random.default_rng(seed)
    level = rng.gamma(2, 0.5, EXAMPLES)
    level /= level.mean()
    chance = rng.normal(0, wobble, (len(means), EXAMPLES))
    return np.outer(means, level) + chance


def bowl(start: float, lowest: float, at: int, epochs: int) -> list[float]:
    return [lowest + (start - lowest) * (epoch / at - 1) ** 2 for epoch in range(epochs + 1)]


@pytest.mark.parametrize("resolution", ARTICLE)
@pytest.mark.parametrize("seed", range(5))
def test_the_articles_runs_stop_after_their_lowest_and_no_later_than_a_person(
    resolution: int, seed: int
) -> None:
    start, lowest, at, stopped = ARTICLE[resolution]
    epoch = stop_epoch(curve(bowl(start, lowest, at, 100), seed=seed), patience=5)
    assert epoch is not None
    assert at + 5 <= epoch <= stopped


def recorded(name: str) -> Floats:
    """Read a run of the mini model at 64 px: 40 held-out pictures after epochs 0 to 60."""
    return np.loadtxt(CURVES / f"{name}.csv", delimiter=",")


def test_a_run_that_learnt_sixty_pictures_by_heart_is_stopped_behind_its_lowest() -> None:
    """Glossy pictures, which the base had never seen: it gains a third, then overfits."""
    losses = recorded("sixty_pictures")
    assert losses.mean(1).argmin() == 11
    assert [stop_epoch(losses, patience) for patience in (2, 3, 5)] == [16, 17, 19]


def test_a_run_on_pictures_that_the_base_knows_is_stopped_at_once() -> None:
    assert stop_epoch(recorded("known_pictures"), patience=5) == 5


def test_what_is_left_of_a_recorded_run_at_its_lowest_is_not_stopped() -> None:
    assert stop_epoch(recorded("sixty_pictures")[:13], patience=2) is None


def test_a_rise_that_begins_at_once_is_stopped_after_patience() -> None:
    rising = [0.1 + 0.002 * epoch for epoch in range(20)]
    assert stop_epoch(curve(rising), patience=3) == 3


def test_falling_and_level_curves_are_not_stopped() -> None:
    assert stop_epoch(curve([0.1 - 0.0005 * e for e in range(60)]), patience=3) is None
    assert stop_epoch(np.tile(curve([0.1]), (60, 1)), patience=3) is None


def test_a_spike_does_not_stop_what_goes_on_falling() -> None:
    means = [0.1 - 0.0005 * epoch for epoch in range(30)]
    means[10] = means[11] = 0.11
    assert stop_epoch(curve(means), patience=3) is None
    assert stop_epoch(curve(means), patience=2) == 11


def test_noise_around_a_level_seldom_stops() -> None:
    stops = [stop_epoch(curve([0.1] * 40, seed=seed), patience=5) for seed in range(20)]
    assert sum(epoch is not None for epoch in stops) <= 2


def test_what_comes_later_does_not_change_where_it_stops() -> None:
    losses = curve(bowl(0.138, 0.1361, 40, 100))
    stop = stop_epoch(losses, patience=5)
    assert stop is not None
    assert stop_epoch(losses[: stop + 1], patience=5) == stop
    assert stop_epoch(losses[:stop], patience=5) is None
