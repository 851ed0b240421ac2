"""The strengths behind votes: Davidson's model, and how far other prompts would move it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from stages.choice.scores import resampled_prompts
from stages.choice.votes import FIRST, SECOND, TIED, Vote

Floats = npt.NDArray[np.float64]
PRIOR_VARIANCE = 9.0  # of a log strength: keeps finite who won or lost every time
NEWTON_STEPS = 50
CONVERGED = 1e-9


def resampled_strengths(
    votes: Sequence[Vote], models: Sequence[str], samples: int, seed: int
) -> tuple[Floats, Floats]:
    """Fit the models' strengths to the votes, and find how resampled prompts would move them.

    A resampling takes one of Newton's steps from the fit to all votes. Fits of its own would run
    off where a model happens to lose every vote, and with four votes on a prompt 95 % intervals
    held the truth in 98 to 99 of 100 simulations.

    Returns:
        Log strengths, mean 0: (models,) of all votes, and (models, samples).

    Source: P. Kline and A. Santos, A Score Based Approach to Wild Bootstrap Inference, Journal of
        Econometric Methods 1 (2012), 23-41, with the weights of resampled prompts.
    """
    counts, pairs = _counted(votes, models)
    fit = _fit(counts.sum(0), pairs, len(models))
    surprise = counts - counts.sum(2, keepdims=True) * fit.chances
    pulls = np.einsum("gqo,qop->pg", surprise, _design(pairs, len(models)))  # (P, prompts)
    moves = np.linalg.solve(fit.curvature, pulls)[: len(models)]
    moves -= moves.mean(0)
    taken = resampled_prompts(len(counts), samples, seed)  # (samples, prompts)
    return fit.strengths, fit.strengths[:, None] + moves @ (taken - 1).T


def floors(votes: Sequence[Vote], models: Sequence[str]) -> dict[frozenset[str], float]:
    """Give the standard errors of `standard_errors` where votes only ever point one way.

    There resampled prompts say the same again and again, as if nothing were left open: so many
    votes do leave something open. Where each of two has won, over the other or over one who did,
    resampling tells by itself how far prompts differ, and a floor would only widen it.

    Returns:
        By two models, and by one where it is so of it and any other.
    """
    counts, pairs = _counted(votes, models)
    has_beaten = np.eye(len(models), dtype=bool)
    for (i, j), said in zip(pairs, counts.sum(0), strict=True):
        has_beaten[i, j], has_beaten[j, i] = said[FIRST] > 0, said[SECOND] > 0
    for through in range(len(models)):  # Warshall's closure: over one who did
        has_beaten |= has_beaten[:, through, None] & has_beaten[through]
    both_won = has_beaten & has_beaten.T

    def points_one_way(names: frozenset[str]) -> bool:
        at = [models.index(name) for name in names]
        return not (both_won[at[0]].all() if len(at) == 1 else both_won[at[0], at[1]])

    errors = standard_errors(votes, models)
    return {names: error for names, error in errors.items() if points_one_way(names)}


def standard_errors(votes: Sequence[Vote], models: Sequence[str]) -> dict[frozenset[str], float]:
    """Say how far the number of votes alone leaves strengths open, whatever prompts they are on.

    Returns:
        The standard error of a model's log strength, and of the difference of two models', from
        the curvature of the fit at its maximum.
    """
    counts, pairs = _counted(votes, models)
    size = len(models)
    curvature = _fit(counts.sum(0), pairs, size).curvature
    centred = np.eye(size) - 1 / size
    covariance = centred @ np.linalg.inv(curvature)[:size, :size] @ centred
    found = {frozenset({name}): covariance[i, i] for i, name in enumerate(models)}
    for (i, a), (j, b) in combinations(enumerate(models), 2):
        found[frozenset({a, b})] = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
    return {names: math.sqrt(variance) for names, variance in found.items()}


def _counted(votes: Sequence[Vote], models: Sequence[str]) -> tuple[Floats, list[tuple[int, int]]]:
    """Count answers, (prompts, pairs, 3), of each two models' numbers."""
    number = {model: i for i, model in enumerate(models)}
    pairs = list(combinations(range(len(models)), 2))
    at = {pair: row for row, pair in enumerate(pairs)}
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(v.prompt for v in votes))}
    counts = np.zeros((len(prompts), len(pairs), 3))
    for vote in votes:
        first, second = sorted((vote.a, vote.b), key=number.__getitem__)
        said = TIED if vote.winner is None else [first, second].index(vote.winner)
        counts[prompts[vote.prompt], at[number[first], number[second]], said] += 1
    return counts, pairs


def davidson(counts: Floats, pairs: Sequence[tuple[int, int]], models: int) -> Floats:
    """Fit Davidson's model of paired comparisons with ties; its maximum is unique.

    With p = exp(strength): i beats j with a probability in proportion to p_i, loses in
    proportion to p_j, ties in proportion to nu * sqrt(p_i p_j). That is a logit model, linear in
    the log strengths and log nu, so Newton's method finds the maximum. A normal prior of
    variance PRIOR_VARIANCE keeps it finite.

    Args:
        counts: (pairs, 3): first won, second won, tie.
        pairs: the two models' numbers, for each row of counts.
        models: how many there are.

    Returns:
        (models,) log strengths, mean 0.

    Source: R. R. Davidson, On Extending the Bradley-Terry Model to Accommodate Ties in Paired
        Comparison Experiments, JASA 65 (1970), 317-328.
    """
    return _fit(counts, pairs, models).strengths


@dataclass(frozen=True, slots=True)
class _Fit:
    """Davidson's model at its maximum."""

    strengths: Floats  # (models,) logarithms, mean 0
    chances: Floats  # (pairs, 3) of each answer
    curvature: Floats  # (P, P) negative second derivatives; the last parameter is log nu


def _design(pairs: Sequence[tuple[int, int]], models: int) -> Floats:
    """Tell what each parameter adds to the logit of each answer, (pairs, 3, P)."""
    design = np.zeros((len(pairs), 3, models + 1))
    for row, (i, j) in enumerate(pairs):
        design[row, FIRST, i] = design[row, SECOND, j] = design[row, TIED, models] = 1
        design[row, TIED, [i, j]] = 0.5
    return design


def _fit(counts: Floats, pairs: Sequence[tuple[int, int]], models: int) -> _Fit:
    """Find the maximum for counts (pairs, 3)."""
    design = _design(pairs, models)
    total = counts.sum(1, keepdims=True)
    parameters = np.zeros(models + 1)
    for _ in range(NEWTON_STEPS):
        utility = design @ parameters
        chances = np.exp(utility - utility.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        expected = total * chances
        gradient = np.einsum("qo,qop->p", counts - expected, design) - parameters / PRIOR_VARIANCE
        mean = np.einsum("qo,qop->qp", chances, design)
        curvature = np.einsum("qo,qop,qor->pr", expected, design, design, optimize=True)
        curvature += np.eye(models + 1) / PRIOR_VARIANCE - (total * mean).T @ mean
        step = np.linalg.solve(curvature, gradient)
        longest = np.abs(step).max()
        parameters += step / max(1.0, longest)  # at most 1 a step: no overshoot
        if longest < CONVERGED:
            break
    strengths = parameters[:models] - parameters[:models].mean()
    return _Fit(strengths, chances, curvature)
