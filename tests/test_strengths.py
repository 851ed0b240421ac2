"""Strengths behind votes: the fit, and intervals that hold the truth."""

import time
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from stages.choice.scores import interval, resampled_prompts
from stages.choice.strengths import davidson, floors, resampled_strengths, standard_errors
from stages.choice.votes import Vote

Floats = npt.NDArray[np.float64]
COVERAGE_RUNS = 400
PATIENCE = 3  # times the goal: the machine may be at other work


def simulated_votes(
    strengths: dict[str, float], prompts: int, votes: int, seed: int, spread: float = 0.0
) -> list[Vote]:
    """Draw votes from Davidson's model; a model's strength may differ from prompt to prompt."""
    rng = np.random.default_rng(seed)
    names = list(strengths)
    own = {p: rng.normal(0, spread, len(names)) for p in range(prompts)}
    drawn = []
    for number in range(votes):
        i, j = rng.choice(len(names), 2, replace=False)
        prompt = number % prompts
        s, t = (strengths[names[k]] + own[prompt][k] for k in (i, j))
        weights = np.exp([s, t, -0.5 + (s + t) / 2])
        said = rng.choice(3, p=weights / weights.sum())
        winner = [names[i], names[j], None][said]
        drawn.append(Vote(names[i], names[j], f"p{prompt}", number, winner))
    return drawn


def strengths_of_all_prompts(strengths: dict[str, float], spread: float) -> Floats:
    """Give what a fit to endless prompts comes to: the more prompts differ, the nearer to zero."""
    pairs = list(combinations(range(len(strengths)), 2))
    rng = np.random.default_rng(0)
    own = rng.normal(0, spread, (40_000, len(strengths))) + np.array(list(strengths.values()))
    shares = []
    for i, j in pairs:
        s, t = own[:, i], own[:, j]
        weights = np.exp(np.stack([s, t, -0.5 + (s + t) / 2], axis=1))
        shares.append((weights / weights.sum(1, keepdims=True)).mean(0))
    return davidson(np.array(shares) * 1e6, pairs, len(strengths))


def coverage(prompts: int, votes: int, spread: float, runs: int) -> tuple[float, float]:
    """Simulate voting, and count how often intervals of differences hold the true ones.

    Returns:
        The shares without and with the floor of votes that point one way.
    """
    strengths = {"a": 0.6, "b": 0.1, "c": -0.7}
    truth, held = strengths_of_all_prompts(strengths, spread), []
    names = list(strengths)
    for number in range(runs):
        drawn = simulated_votes(strengths, prompts, votes, number, spread)
        _, resampled = resampled_strengths(drawn, names, 400, seed=number)
        least = floors(drawn, names)
        for i, j in combinations(range(3), 2):
            gaps, true = resampled[i] - resampled[j], truth[i] - truth[j]
            both = (0.0, least.get(frozenset({names[i], names[j]}), 0.0))
            bounds = [interval(gaps, 0.95, prompts, floor) for floor in both]
            held.append([low <= true <= high for low, high in bounds])
    bare, floored = np.mean(held, axis=0).tolist()
    return bare, floored


@pytest.mark.parametrize(
    ("prompts", "votes", "spread"),
    [(21, 400, 0.0), (21, 400, 1.0), (6, 100, 0.5), (6, 24, 0.0)],
)
def test_95_percent_intervals_hold_the_truth_in_93_to_97_of_100_simulations(
    prompts: int, votes: int, spread: float
) -> None:
    bare, floored = coverage(prompts, votes, spread, COVERAGE_RUNS)
    assert 0.93 <= bare <= 0.97
    assert 0.93 <= floored <= 0.97, "the floor is for votes that agree, and widens no others"


def test_ten_thousand_votes_are_fitted_with_intervals_in_two_seconds() -> None:
    truth = {f"m{i}": i / 10 for i in range(13)}
    votes = simulated_votes(truth, prompts=21, votes=10_000, seed=1)
    started = time.perf_counter()
    strengths, resampled = resampled_strengths(votes, list(truth), 1000, seed=1)
    bounds = [interval(row, 0.95, 21) for row in resampled]
    seconds = time.perf_counter() - started
    wanted = np.array(list(truth.values())) - np.mean(list(truth.values()))
    assert strengths == pytest.approx(wanted, abs=0.2)
    assert all(low < high for low, high in bounds)
    assert seconds < 2 * PATIENCE


def test_davidsons_model_finds_known_strengths() -> None:
    strengths, log_nu = np.array([0.8, 0.1, -0.2, -0.7]), -0.3
    rng = np.random.default_rng(0)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    counts = []
    for i, j in pairs:
        weights = np.exp([strengths[i], strengths[j], log_nu + (strengths[i] + strengths[j]) / 2])
        counts.append(rng.multinomial(4000, weights / weights.sum()))
    found = davidson(np.array(counts, float), pairs, 4)
    assert found == pytest.approx(strengths, abs=0.08)


def test_davidsons_model_of_two_without_ties_is_the_logit_of_the_wins() -> None:
    found = davidson(np.array([[750.0, 250.0, 0.0]]), [(0, 1)], 2)
    assert found[0] - found[1] == pytest.approx(np.log(3), abs=0.01)


def test_a_resampling_moves_strengths_as_a_fit_to_it_would_where_votes_are_many() -> None:
    names = ["a", "b", "c"]
    truth = {"a": 0.5, "b": 0.0, "c": -0.5}
    votes = simulated_votes(truth, prompts=21, votes=4000, seed=1, spread=0.5)
    strengths, resampled = resampled_strengths(votes, names, 3, seed=7)
    for taken, found in zip(resampled_prompts(21, 3, seed=7), resampled.T, strict=True):
        again = [vote for vote in votes for _ in range(taken[int(vote.prompt[1:])])]
        fitted, _ = resampled_strengths(again, names, 1, seed=1)
        assert found - strengths == pytest.approx(fitted - strengths, abs=0.01)
        assert np.abs(found - strengths).max() > 0.04


def test_who_wins_every_vote_has_a_finite_strength() -> None:
    votes = [Vote("a", "b", f"p{i % 5}", 1, "a") for i in range(40)]
    strengths, resampled = resampled_strengths(votes, ["a", "b"], 50, seed=1)
    assert strengths[0] > 1
    assert np.isfinite(resampled).all()


def test_the_standard_error_of_many_votes_is_that_of_a_share() -> None:
    votes = [Vote("a", "b", "p", n, "ab"[n % 4 == 0]) for n in range(1000)]
    found = standard_errors(votes, ["a", "b"])
    wanted = np.sqrt(1 / 750 + 1 / 250)  # of a logit
    assert found[frozenset("ab")] == pytest.approx(wanted, rel=0.02)
    assert found[frozenset("a")] == pytest.approx(wanted / 2, rel=0.02)


def test_only_votes_that_point_one_way_have_a_floor() -> None:
    def won(*names: str) -> list[Vote]:
        each = zip(names[::2], names[1::2], strict=True)
        return [Vote(a, b, f"p{n}", n, a) for n, (a, b) in enumerate(each)]

    names = ["a", "b", "c"]
    tied = [Vote("a", "b", f"p{n}", n, None) for n in range(5)]
    pairs = {frozenset(pair) for pair in combinations(names, 2)}
    assert floors(won("a", "b", "b", "c", "a", "c"), names).keys() >= pairs, "unanimous"
    assert not floors(won("a", "b", "b", "c", "c", "a"), names), "each has lost to one it beat"
    one_apart = floors(won("a", "b", "b", "a", "a", "c", "b", "c"), names).keys()
    assert pairs & one_apart == {frozenset("ac"), frozenset("bc")}
    assert floors(tied, ["a", "b"]).keys() >= {frozenset("ab")}, "nobody has won"
