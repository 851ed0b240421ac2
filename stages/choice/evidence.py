"""What there is to choose by, read from where other stages and voters left it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.choice.loss import validation_losses
from stages.choice.poll import Poll, read_poll, votes_evidence
from stages.choice.rule import LOSS, SCORE, Evidence, RuleParams
from stages.choice.scores import read_scores, resampled_means, score_table


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
        votes, remarks = votes_evidence(_poll(weights, measures, measures.votes), rule)
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


def _poll(weights: Mapping[str, Path], measures: Measures, votes: Path) -> Poll:
    """Read votes on the candidates, and on the reference, on which nobody need have voted."""
    reference, reference_weights = measures.reference, measures.reference_weights
    others = {reference: reference_weights} if reference and reference_weights else {}
    scores = [score for path in measures.scores for score in read_scores(path)]
    return read_poll(votes, measures.grid, weights, others, scores)


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
