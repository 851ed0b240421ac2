"""What there is to choose by, read from where other stages and voters left it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from stages.choice.loss import validation_losses
from stages.choice.rule import LOSS, SCORE, VOTES, Evidence, RuleParams
from stages.choice.scores import read_scores, resampled_means, score_table
from stages.choice.strengths import floors, resampled_strengths
from stages.choice.votes import agreement, are_connected, first_of_weights, read_votes
from stages.harness.counted import counted
from stages.harness.files import sha256_file


@dataclass(frozen=True, slots=True)
class Measures:
    """What there is to choose by; None or empty where a kind is missing."""

    scores: list[Path]
    loss: Path | None
    votes: Path | None  # folder of the voters' files
    reference: str | None  # scored and voted on like a candidate, never chosen
    grid: str = ""  # whose votes count
    reference_weights: Path | None = None  # without them votes on the reference do not count


def gather(
    weights: Mapping[str, Path], measures: Measures, rule: RuleParams
) -> tuple[list[Evidence], list[str]]:
    """Read what there is to choose by.

    Args:
        weights: the candidates.
        measures: what to choose by.
        rule: the section `select.rule`.

    Returns:
        The evidence, strongest kind first, and remarks on what was left aside or counts as worst.

    Raises:
        FileNotFoundError: if scores or losses are missing; votes need not be there.
        ValueError: if a file does not speak of the candidates.
    """
    for path in [*measures.scores, *([measures.loss] if measures.loss else [])]:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file. `python -m stages.grid_score` writes scores, "
                "`python -m stages.train` a loss.csv"
            )
    candidates = list(weights)
    models = [*candidates, *([measures.reference] if measures.reference else [])]
    evidence: list[Evidence] = []
    remarks: list[str] = []
    if measures.votes and any(measures.votes.glob("*.jsonl")):
        votes, remarks = _votes_evidence(weights, measures, rule)
        evidence += votes
    if measures.scores:
        scores, failures = _score_evidence(measures.scores, models, rule)
        evidence.append(scores)
        remarks += failures
    if measures.loss:
        losses = validation_losses(measures.loss, candidates)
        remarks += [
            f"The validation loss of {name} is no finite number: worse than any."
            for name, loss in losses.items()
            if math.isinf(loss)
        ]
        evidence.append(Evidence(LOSS, losses, lower_is_better=True))
    return evidence, remarks


def _votes_evidence(
    weights: Mapping[str, Path], measures: Measures, rule: RuleParams
) -> tuple[list[Evidence], list[str]]:
    """Read votes, and say why if they cannot decide; nobody need have voted on the reference."""
    assert measures.votes
    asked = dict(weights)
    if measures.reference and measures.reference_weights:
        asked[measures.reference] = measures.reference_weights
    hashes = {name: sha256_file(path) for name, path in asked.items()}
    scores = [score for path in measures.scores for score in read_scores(path)]
    ballot = read_votes(measures.votes, measures.grid, hashes, scores)
    first = first_of_weights(hashes)
    same = {name: first[sha256] for name, sha256 in hashes.items()}  # as votes call it
    voted_on = {name for vote in ballot.votes for name in (vote.a, vote.b)}
    models = [*weights, *(n for n in asked if n not in weights and same[n] in voted_on)]
    fitted = list(dict.fromkeys(same[name] for name in models))
    remarks = []
    if ballot.problems:
        remarks.append(
            f"{counted(len(ballot.problems), 'line')} of votes not counted, the first: "
            f"{ballot.problems[0]}."
        )
        print("\n".join(ballot.problems))
    if not ballot.votes:
        return [], remarks
    if len(ballot.votes) < rule.min_votes:
        remarks.append(
            f"{counted(len(ballot.votes), 'vote')}, fewer than select.rule.min_votes = "
            f"{rule.min_votes}: left aside."
        )
        return [], remarks
    if not are_connected(ballot.votes, fitted):
        remarks.append(
            f"{counted(len(ballot.votes), 'vote')}, not enough to compare all candidates: "
            "left aside."
        )
        return [], remarks
    strengths, resampled = resampled_strengths(ballot.votes, fitted, rule.resamples, rule.seed)
    values = dict(zip(fitted, strengths.tolist(), strict=True))
    voters = len({vote.voter for vote in ballot.votes})
    remarks.append(f"{counted(len(ballot.votes), 'vote')} counted, of {counted(voters, 'voter')}.")
    if agreed := agreement(ballot.votes):
        remarks.append(
            f"Voters agree in {agreed.share:.0%} of what two were asked alike "
            f"({agreed.questions} questions, Krippendorff's alpha {agreed.alpha:.2f})."
        )
    prompts = len({vote.prompt for vote in ballot.votes})
    by_model = dict(zip(fitted, resampled, strict=True))
    least = floors(ballot.votes, fitted)
    errors = {frozenset({n}): least.get(frozenset({same[n]}), 0.0) for n in models}
    for a, b in combinations(models, 2):
        if same[a] != same[b]:
            errors[frozenset({a, b})] = least.get(frozenset({same[a], same[b]}), 0.0)
    evidence = Evidence(
        VOTES,
        {name: values[same[name]] for name in models},
        resampled={name: by_model[same[name]] for name in models},
        prompts=prompts,
        errors=errors,
    )
    return [evidence], remarks


def _score_evidence(
    paths: Sequence[Path], models: Sequence[str], rule: RuleParams
) -> tuple[Evidence, list[str]]:
    """Read scores, and name the models some of whose pictures failed."""
    scores = [score for path in paths for score in read_scores(path)]
    table = score_table(scores, models, ", ".join(map(str, paths)))
    resampled = resampled_means(table, rule.resamples, rule.seed)
    remarks = [
        f"{count} of {table.cells} pictures of {model} failed, and count below the worst score."
        for model, count in table.failed.items()
    ]
    evidence = Evidence(
        SCORE,
        dict(zip(models, table.means.mean(1).tolist(), strict=True)),
        resampled=dict(zip(models, resampled, strict=True)),
        prompts=len(table.prompts),
        failed=table.failed,
    )
    return evidence, remarks
