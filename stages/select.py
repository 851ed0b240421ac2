"""Choose which weights go on, copy them to a fixed path, and write down why.

  checkpoint RUN     one epoch of a training run
  mixes              some of the mixes (the article: three of four)
  ingredients KIND   of one kind, merged or trained, one for each place: realistic, general
  row ROW            one cocktail of a row
  final              the release, among the rows' winners

The params say `auto`, or name a candidate, which wins. `auto` goes by votes if there are enough,
then by score if the lead is sure or large, then by validation loss if the lead is large enough;
`select.rule` holds the thresholds. If none decides, the best by the first measure goes on, and the
report says "no clear winner".
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.choice.loss import validation_losses
from stages.choice.rule import (
    LOSS,
    SCORE,
    VOTES,
    Decision,
    Evidence,
    Interval,
    RuleParams,
    decide,
    difference,
)
from stages.choice.scores import MIN_PROMPTS, interval, read_scores, resampled_means, score_table
from stages.choice.strengths import resampled_strengths, standard_errors
from stages.choice.votes import agreement, are_connected, read_votes
from stages.harness.counted import counted
from stages.harness.files import link_or_copy, sha256_file, write_json
from stages.harness.named import named_weights
from stages.harness.params import Params, load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.harness.scratch import replacing_folder

WINNER = "winner"  # the place of a choice that has one
DECIMALS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class OneParams(Params):
    """A choice of one: `select.checkpoint.RUN`, `select.row.ROW`, `select.final`."""

    choice: str  # auto, or a candidate's name


@dataclass(frozen=True, slots=True, kw_only=True)
class SeveralParams(Params):
    """A choice of several: `select.mixes`, `select.ingredients.KIND`."""

    choice: str | list[str]  # auto, or a candidate's name for each place, in their order
    places: dict[str, list[str]]  # place -> the candidates that auto may put there


KINDS: dict[str, type[OneParams] | type[SeveralParams]] = {
    "checkpoint": OneParams,
    "mixes": SeveralParams,
    "ingredients": SeveralParams,
    "row": OneParams,
    "final": OneParams,
}


@dataclass(frozen=True, slots=True)
class Measures:
    """What there is to choose by; None or empty where a kind is missing."""

    scores: list[Path]
    loss: Path | None
    votes: Path | None  # folder of the voters' files
    reference: str | None  # scored and voted on like a candidate, never chosen
    grid: str = ""  # whose votes count
    reference_weights: Path | None = None  # without them votes on the reference do not count


def run(
    name: str,
    weights: dict[str, Path],
    measures: Measures,
    out: Path,
    report: Path,
    params: OneParams | SeveralParams,
    rule: RuleParams,
) -> None:
    """Make one choice.

    Args:
        name: of the choice, for messages and the report.
        weights: the candidates.
        measures: what to choose by.
        out: comes to hold the chosen weights: a file, or a folder with PLACE.safetensors.
        report: choice, candidates and reason; JSON.
        params: the choice's own section.
        rule: the section `select.rule`.
    """
    candidates = list(weights)
    several = isinstance(params, SeveralParams)
    places = params.places if isinstance(params, SeveralParams) else {WINNER: candidates}
    evidence, remarks = gather(weights, measures, rule)
    try:
        decision = decide(candidates, places, params.choice, evidence, rule)
    except ValueError as error:
        raise ValueError(f"select.{name}: {error}") from None
    if measures.reference:
        remarks.append(compared(decision, measures.reference, evidence, rule))
    reason = " ".join([decision.reason, *remarks])
    if several:
        with replacing_folder(out, "*.safetensors") as scratch:
            for place, chosen in decision.chosen.items():
                link_or_copy(weights[chosen], scratch / f"{place}.safetensors")
    else:
        link_or_copy(weights[decision.chosen[WINNER]], out)
    write_json(
        report,
        {
            "choice": _by_place(decision.chosen),
            "sha256": _by_place(
                {place: sha256_file(weights[name]) for place, name in decision.chosen.items()}
            ),
            "by": decision.by,
            "is_clear": decision.is_clear,
            "reason": reason,
            "candidates": {
                name: _shown_evidence(name, evidence, rule.confidence) for name in candidates
            },
            **_shown_reference(decision, measures.reference, evidence, rule),
        },
    )
    print(f"select {name}: {reason}")


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
    voted_on = {name for vote in ballot.votes for name in (vote.a, vote.b)}
    models = [*weights, *(name for name in asked if name not in weights and name in voted_on)]
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
    if not are_connected(ballot.votes, models):
        remarks.append(
            f"{counted(len(ballot.votes), 'vote')}, not enough to compare all candidates: "
            "left aside."
        )
        return [], remarks
    strengths, resampled = resampled_strengths(ballot.votes, models, rule.resamples, rule.seed)
    values = dict(zip(models, strengths.tolist(), strict=True))
    voters = len({vote.voter for vote in ballot.votes})
    remarks.append(f"{counted(len(ballot.votes), 'vote')} counted, of {counted(voters, 'voter')}.")
    if agreed := agreement(ballot.votes):
        remarks.append(
            f"Voters agree in {agreed.share:.0%} of what two were asked alike "
            f"({agreed.questions} questions, Krippendorff's alpha {agreed.alpha:.2f})."
        )
    prompts = len({vote.prompt for vote in ballot.votes})
    by_model = dict(zip(models, resampled, strict=True))
    errors = standard_errors(ballot.votes, models)
    evidence = Evidence(VOTES, values, resampled=by_model, prompts=prompts, errors=errors)
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


def compared(
    decision: Decision, reference: str, evidence: Sequence[Evidence], rule: RuleParams
) -> str:
    """Say in words how the chosen do against the reference."""
    said = []
    for chosen in decision.chosen.values():
        for kind in evidence:
            if reference in kind.values:
                gap = difference(chosen, reference, kind, rule.confidence)
                assert gap, "votes and scores have intervals"
                verdict = "" if gap.is_clear else ", so not surely different"
                said.append(f"{kind.kind} {gap.mean:+.3g} ({gap.told(rule.confidence)}{verdict})")
    return f"Compared with {reference}: {'; '.join(said) or 'nothing to compare by'}."


def _by_place(values: dict[str, str]) -> str | dict[str, str]:
    """Show what belongs to the one place, or to each of several."""
    return values[WINNER] if values.keys() == {WINNER} else values


def _shown_evidence(name: str, evidence: Sequence[Evidence], confidence: float) -> dict[str, float]:
    """Give a candidate's figures, flat, as DVC's metrics show them."""
    shown = {}
    for kind in evidence:
        if name in kind.values and math.isfinite(kind.values[name]):
            key = kind.kind.replace(" ", "_")
            shown[key] = round(kind.values[name], DECIMALS)
            if kind.resampled and kind.prompts >= MIN_PROMPTS:
                low, high = interval(
                    kind.resampled[name], confidence, kind.prompts, kind.error(name)
                )
                shown |= {
                    f"{key}_low": round(low, DECIMALS),
                    f"{key}_high": round(high, DECIMALS),
                }
    return shown


def _shown_reference(
    decision: Decision, reference: str | None, evidence: Sequence[Evidence], rule: RuleParams
) -> dict[str, Any]:
    if not reference:
        return {}
    figures: dict[str, Any] = {"name": reference}
    figures |= _shown_evidence(reference, evidence, rule.confidence)
    for kind in evidence:
        if reference in kind.values:
            chosen = next(iter(decision.chosen.values()))
            gap = difference(chosen, reference, kind, rule.confidence)
            figures |= _shown_gap(kind.kind, gap) if gap else {}
    return {"reference": figures}


def _shown_gap(kind: str, gap: Interval) -> dict[str, float]:
    lead = {"lead": gap.mean, "lead_low": gap.low, "lead_high": gap.high}
    finite = {name: value for name, value in lead.items() if math.isfinite(value)}
    return {f"{kind}_{name}": round(value, DECIMALS) for name, value in finite.items()}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.select",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help="what to choose; see above")
    parser.add_argument(
        "key", nargs="?", help="which run, kind of ingredient or row; none for mixes and final"
    )
    parser.add_argument(
        "--from",
        dest="candidates",
        nargs="+",
        required=True,
        metavar="MODEL",
        help="NAME=FILE, or a folder of epoch_*.safetensors whose files give the names",
    )
    parser.add_argument(
        "--scores",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="of the candidates, from `python -m stages.grid_score`",
    )
    parser.add_argument("--loss", type=Path, metavar="FILE", help="a training run's loss.csv")
    parser.add_argument(
        "--votes",
        type=Path,
        metavar="DIR",
        help="VOTER.jsonl of each voter, from `python -m stages.vote`; may be empty",
    )
    parser.add_argument(
        "--grid", default="", metavar="NAME", help="the grid whose votes count (with --votes)"
    )
    parser.add_argument(
        "--reference",
        metavar="NAME[=FILE]",
        help="a scored model to compare the choice to; with its weights votes on it count, too",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="the chosen weights: a file; for mixes and ingredients a folder, PLACE.safetensors",
    )
    parser.add_argument(
        "--report",
        type=Path,
        required=True,
        metavar="FILE",
        help="choice, candidates and reason, a JSON file",
    )
    add_params_option(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run from the command line."""
    options = parse()
    name = ".".join(filter(None, [options.kind, options.key]))
    reference, _, reference_weights = (options.reference or "").partition("=")
    with clear_errors():
        measures = Measures(
            options.scores,
            options.loss,
            options.votes,
            reference or None,
            options.grid,
            Path(reference_weights) if reference_weights else None,
        )
        run(
            name,
            named_weights(options.candidates),
            measures,
            options.out,
            options.report,
            load_params(f"select.{name}", KINDS[options.kind], options.params),
            load_params("select.rule", RuleParams, options.params),
        )


if __name__ == "__main__":
    main()
