"""What scores say about models: means with intervals, as metrics and as a table to plot."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.choice.score_params import ScoreParams
from stages.choice.scores import (
    MIN_PROMPTS,
    Score,
    interval,
    resampled_means,
    score_table,
)
from stages.harness.files import replacing

Floats = npt.NDArray[np.float64]
DECIMALS = 4
COLUMNS = ("model", "measure", "mean", "low", "high")


@dataclass(frozen=True, slots=True)
class Mean:
    """A model's mean by one measure, and its interval; None of too few prompts."""

    model: str
    measure: str
    mean: float
    low: float | None
    high: float | None
    left_out: int = 0  # pictures that failed, where the measure cannot count them as worst


def mean_scores(
    measure: str, scores: Iterable[Score], models: list[str], params: ScoreParams
) -> list[Mean]:
    """Average a measure by model; prompts are resampled, and failed pictures count as worst."""
    table = score_table(list(scores), models, measure)
    resampled = resampled_means(table, params.resamples, params.seed)
    prompts = len(table.prompts)
    return [
        mean_of(model, measure, float(own), draws, prompts, params)
        for model, own, draws in zip(models, table.means.mean(1), resampled, strict=True)
    ]


def mean_of(
    model: str, measure: str, mean: float, resampled: Floats, prompts: int, params: ScoreParams
) -> Mean:
    """Put a figure and its resampled values together."""
    if prompts < MIN_PROMPTS or not len(resampled):
        return Mean(model, measure, mean, None, None)
    return Mean(model, measure, mean, *interval(resampled, params.confidence, prompts))


def as_metrics(means: Iterable[Mean]) -> dict[str, dict[str, float]]:
    """Give figures by model, flat, as DVC's metrics show them."""
    shown: dict[str, dict[str, float]] = {}
    for mean in means:
        figures = {"": mean.mean, "_low": mean.low, "_high": mean.high}
        own = shown.setdefault(mean.model, {})
        own |= {
            f"{mean.measure}{k}": round(v, DECIMALS) for k, v in figures.items() if v is not None
        }
        if mean.left_out:
            own[f"{mean.measure}_left_out"] = mean.left_out
    return shown


def write_means(path: Path, means: Iterable[Mean]) -> None:
    """Write means as CSV, a row each."""
    with replacing(path) as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for mean in means:
            figures = (mean.mean, mean.low, mean.high)
            shown = ("" if value is None else f"{value:.{DECIMALS}f}" for value in figures)
            writer.writerow([mean.model, mean.measure, *shown])
