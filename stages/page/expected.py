"""What the params in force say there should be, and what earlier ones left over.

DVC never removes the reports of a stage that is gone from params: after another profile, curves,
sheets and choices of the one before still lie there.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stages.page.findings import Findings, same_name


def expected_runs(params: Mapping[str, Any]) -> list[str]:
    """Name the trainings, as `run_name` does."""
    ingredients = (f"ingredients/{name}" for name in params.get("train_ingredient") or {})
    return [*map(str, params.get("train") or {}), *ingredients]


def expected_grids(params: Mapping[str, Any]) -> list[str]:
    """Name the grids, in the order in which the recipe draws them."""
    return [*map(str, params.get("grids") or {})]


def expected_choices(params: Mapping[str, Any]) -> Iterator[str]:
    """Name the choices, as in `checkpoint.64`."""
    for name, section in (params.get("select") or {}).items():
        if "choice" in section:
            yield str(name)
        elif name != "rule":
            yield from (f"{name}.{key}" for key in section)


def drop_left_over(findings: Findings, params: Mapping[str, Any]) -> list[str]:
    """Take out of the findings what the params know nothing of; give its names.

    A section that the params do not have says nothing about what it would name.
    """
    dropped: list[str] = []
    if "train" in params:
        runs = set(expected_runs(params))
        dropped += [f"training {run.name}" for run in findings.runs if run.name not in runs]
        findings.runs[:] = [run for run in findings.runs if run.name in runs]
    if "grids" in params:
        grids = set(expected_grids(params))
        dropped += [f"grid {name}" for name in findings.sheets if name not in grids]
        for name in set(findings.sheets) - grids:
            del findings.sheets[name]
        findings.grids[:] = [grid for grid in findings.grids if grid.name in grids]
        findings.scores[:] = [scores for scores in findings.scores if scores.name in grids]
    if "select" in params:
        choices = {same_name(name) for name in expected_choices(params)}
        known = [c for c in findings.choices if same_name(c.name) in choices]
        dropped += [f"choice {c.name}" for c in findings.choices if c not in known]
        findings.choices[:] = known
    return dropped
