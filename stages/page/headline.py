"""The few figures by which commits are compared, flat and rounded, for `dvc metrics diff`."""

from collections.abc import Iterator

from stages.page.findings import Findings, Run

LOSS_DIGITS, SCORE_DIGITS = 5, 2  # finer differences lie well within the intervals
LAST_CHOICE = "final"

Figure = bool | float | str


def headline(findings: Findings) -> dict[str, Figure]:
    """Pick a run's figures out of its reports; what is not there yet is left out."""
    figures: dict[str, Figure] = {}
    if findings.download:
        figures["pictures"] = findings.download["fetched"]
    for run in findings.runs:
        if "/" not in run.name:  # those of the recipe, not the stand-ins for other people's
            figures.update(_of_training(run))
    if findings.grids:
        figures["cells_failed"] = sum(grid.content["failed"] for grid in findings.grids)
    figures.update(_of_winner(findings))
    if findings.release:
        figures["release"] = findings.release["auto_v2"]
    return figures


def _of_training(run: Run) -> Iterator[tuple[str, Figure]]:
    if run.summary:
        yield f"loss_{run.name}", round(run.summary["minimum"], LOSS_DIGITS)
        yield f"loss_change_percent_{run.name}", round(run.summary["change_percent"], 1)
        yield f"best_epoch_{run.name}", run.summary["epoch_of_minimum"]


def _of_winner(findings: Findings) -> Iterator[tuple[str, Figure]]:
    """Give the winner's scores, and its lead over the older cocktail with its interval."""
    final = findings.choice(LAST_CHOICE)
    if not final:
        return
    yield "winner", final["choice"]
    scored = [s.content["scores"] for s in findings.scores if s.name == LAST_CHOICE]
    means = scored[0].get(final["choice"], {}) if scored else {}
    for measure in ("score", "cmmd"):
        if (mean := means.get(measure)) is not None:
            yield f"winner_{measure}", round(mean, SCORE_DIGITS)
    for end in ("", "_low", "_high"):
        if (lead := (final.get("reference") or {}).get(f"score_lead{end}")) is not None:
            yield f"winner_lead{end}", round(lead, SCORE_DIGITS) + 0.0  # no -0.0
