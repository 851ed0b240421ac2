"""The strengths behind votes: Davidson's model, fitted again to resampled prompts."""

import math
from collections.abc import Sequence
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
    """Fit the models' strengths to the votes, and again to resampled prompts.

    Returns:
        Log strengths, mean 0: (models,) of all votes, and (models, samples).
    """
    counts, pairs = _counted(votes, models)
    taken = resampled_prompts(len(counts), samples, seed)  # (samples, prompts)
    resampled = np.tensordot(taken.astype(float), counts, axes=1)  # (samples, pairs, 3)
    fits = davidson(np.concatenate([counts.sum(0)[None], resampled]), pairs, len(models))
    return fits[0], fits[1:].T


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
    _, curvature = _newton(counts.sum(0)[None], pairs, size)
    centred = np.eye(size) - 1 / size
    covariance = centred @ np.linalg.inv(curvature[0])[:size, :size] @ centred
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
        counts: (..., pairs, 3): first won, second won, tie; each leading index is a fit of its
            own, and all are made at once.
        pairs: the two models' numbers, for each row of counts.
        models: how many there are.

    Returns:
        (..., models) log strengths, mean 0.

    Source: R. R. Davidson, On Extending the Bradley-Terry Model to Accommodate Ties in Paired
        Comparison Experiments, JASA 65 (1970), 317-328.
    """
    parameters, _ = _newton(counts.reshape(-1, len(pairs), 3), pairs, models)
    strengths = parameters[:, :models]
    strengths -= strengths.mean(1, keepdims=True)
    return strengths.reshape(*counts.shape[:-2], models)


def _newton(wanted: Floats, pairs: Sequence[tuple[int, int]], models: int) -> tuple[Floats, Floats]:
    """Find the maxima of Davidson's model for counts (fits, pairs, 3).

    Returns:
        Log strengths and log nu, (fits, models + 1), and the negative second derivatives there.
    """
    size = models + 1  # the last parameter is log nu
    design = np.zeros((len(pairs), 3, size))
    for row, (i, j) in enumerate(pairs):
        design[row, FIRST, i] = design[row, SECOND, j] = design[row, TIED, models] = 1
        design[row, TIED, [i, j]] = 0.5
    flat = design.reshape(-1, size)  # (pairs * 3, P)
    squares = (flat[:, :, None] * flat[:, None, :]).reshape(len(flat), -1)  # (pairs * 3, P * P)
    total = wanted.sum(2, keepdims=True)
    parameters = np.zeros((len(wanted), size))
    for _ in range(NEWTON_STEPS):
        utility = (parameters @ flat.T).reshape(wanted.shape)
        chance = np.exp(utility - utility.max(2, keepdims=True))
        chance /= chance.sum(2, keepdims=True)
        expected = total * chance
        gradient = (wanted - expected).reshape(len(wanted), -1) @ flat - parameters / PRIOR_VARIANCE
        mean = np.einsum("sqo,qop->sqp", chance, design, optimize=True)
        curvature = (expected.reshape(len(wanted), -1) @ squares).reshape(-1, size, size)
        curvature -= (total * mean).transpose(0, 2, 1) @ mean
        curvature += np.eye(size) / PRIOR_VARIANCE
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        longest = np.abs(step).max(1, keepdims=True)
        parameters += step / np.maximum(1.0, longest)  # at most 1 a step: no overshoot
        if longest.max() < CONVERGED:
            break
    return parameters, curvature
