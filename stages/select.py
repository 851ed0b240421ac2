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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.choice.evidence import Measures, gather
from stages.choice.rule import RuleParams, decide
from stages.choice.told import compared, shown_evidence, shown_reference
from stages.harness.files import link_or_copy, sha256_file, write_json
from stages.harness.named import named_weights
from stages.harness.params import Params, load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.harness.scratch import replacing_folder

WINNER = "winner"  # the place of a choice that has one


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
                name: shown_evidence(name, evidence, rule.confidence) for name in candidates
            },
            **shown_reference(decision, measures.reference, evidence, rule),
        },
    )
    print(f"select {name}: {reason}")


def _by_place(values: dict[str, str]) -> str | dict[str, str]:
    """Show what belongs to the one place, or to each of several."""
    return values[WINNER] if values.keys() == {WINNER} else values


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
    options = parser.parse_args(argv)
    if options.votes and not options.grid:
        parser.error("--votes needs --grid: which grid's votes count?")
    return options


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
