"""People's votes between two pictures of one prompt and seed, and the strengths behind them."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.choice.scores import resampled_prompts

Floats = npt.NDArray[np.float64]
COLUMNS = ("a", "b", "prompt", "seed", "winner")
TIES = ("tie", "both_bad")  # what `winner` may say besides a model's name
PRIOR_VARIANCE = 9.0  # of a log strength: keeps finite who won or lost every time
NEWTON_STEPS = 50
CONVERGED = 1e-9


@dataclass(frozen=True, slots=True)
class Vote:
    """One answer to "which of the two?"."""

    a: str
    b: str
    prompt: str
    seed: int
    winner: str | None  # None: a tie, or both bad


@dataclass(frozen=True, slots=True)
class Ballot:
    """The votes of a file that count, and what was said about the rest."""

    votes: list[Vote]
    problems: list[str]  # by line


def read_votes(path: Path, models: Iterable[str]) -> Ballot:
    """Read votes, one a row: a, b, prompt, seed, winner (a model's name, tie or both_bad).

    A line that is cut short, or names a model that is not asked about, is left out and told.

    Raises:
        ValueError: if the header is another.
    """
    known = set(models)
    votes, problems = [], []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: columns {reader.fieldnames}; wanted {', '.join(COLUMNS)}")
        for row in reader:
            vote = _parse(row, known)
            if isinstance(vote, Vote):
                votes.append(vote)
            else:
                problems.append(f"{path}, line {reader.line_num}: {vote}")
    return Ballot(votes, problems)


def _parse(row: dict[str, str | None], known: set[str]) -> Vote | str:
    """Read one row, or say what is wrong with it."""
    a, b, prompt, seed, winner = (row[name] or "" for name in COLUMNS)
    if not seed.removeprefix("-").isdecimal():
        return f"no seed but {seed!r}"
    if unknown := sorted({a, b} - known):
        return f"no such model: {unknown[0]!r}"
    if a == b or winner not in (a, b, *TIES):
        return f"winner {winner!r} of {a!r} and {b!r}"
    return Vote(a, b, prompt, int(seed), None if winner in TIES else winner)


def are_connected(votes: Iterable[Vote], models: Sequence[str]) -> bool:
    """Tell whether every model was compared, through others if need be, with every other."""
    group = {model: {model} for model in models}
    for vote in votes:
        if group[vote.a] is not group[vote.b]:
            joined = group[vote.a] | group[vote.b]
            group.update(dict.fromkeys(joined, joined))
    return all(len(group[model]) == len(models) for model in models)


def resampled_strengths(
    votes: Sequence[Vote], models: Sequence[str], samples: int, seed: int
) -> tuple[Floats, Floats]:
    """Fit the models' strengths to the votes, and again to resampled prompts.

    Returns:
        Log strengths, mean 0: (models,) of all votes, and (models, samples).
    """
    pairs = [(i, j) for i in range(len(models)) for j in range(i + 1, len(models))]
    at = {pair: number for number, pair in enumerate(pairs)}
    number = {model: i for i, model in enumerate(models)}
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(v.prompt for v in votes))}
    counts = np.zeros((len(prompts), len(pairs), 3))  # first won, second won, tie
    for vote in votes:
        first, second = sorted((vote.a, vote.b), key=number.__getitem__)
        outcome = 2 if vote.winner is None else [first, second].index(vote.winner)
        counts[prompts[vote.prompt], at[number[first], number[second]], outcome] += 1
    taken = resampled_prompts(len(prompts), samples, seed)  # (samples, prompts)
    resampled = np.tensordot(taken.astype(float), counts, axes=1)  # (samples, pairs, 3)
    fits = [davidson(sample, pairs, len(models)) for sample in resampled]
    return davidson(counts.sum(0), pairs, len(models)), np.stack(fits, axis=1)


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
    design = np.zeros((len(pairs), 3, models + 1))  # the last parameter is log nu
    for row, (i, j) in enumerate(pairs):
        design[row, 0, i] = design[row, 1, j] = design[row, 2, models] = 1
        design[row, 2, [i, j]] = 0.5
    total = counts.sum(1)  # (pairs,)
    parameters = np.zeros(models + 1)
    for _ in range(NEWTON_STEPS):
        utility = design @ parameters
        chance = np.exp(utility - utility.max(1, keepdims=True))
        chance /= chance.sum(1, keepdims=True)  # (pairs, 3)
        gradient = np.einsum("qo,qop->p", counts - total[:, None] * chance, design)
        gradient -= parameters / PRIOR_VARIANCE
        mean = np.einsum("qo,qop->qp", chance, design)
        curvature = np.einsum("q,qo,qop,qor->pr", total, chance, design, design, optimize=True)
        curvature -= np.einsum("q,qp,qr->pr", total, mean, mean, optimize=True)
        curvature += np.eye(models + 1) / PRIOR_VARIANCE
        step = np.linalg.solve(curvature, gradient)
        parameters += step / max(1.0, float(np.abs(step).max()))  # at most 1 a step: no overshoot
        if np.abs(step).max() < CONVERGED:
            break
    strengths: Floats = parameters[:models]
    strengths -= strengths.mean()
    return strengths
