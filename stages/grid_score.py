"""Let a CLIP judge how well each of a grid's pictures shows its prompt, and average by model."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.choice.judge import Judge, cmmd_means
from stages.choice.score_params import ScoreParams
from stages.choice.scores import write_scores
from stages.choice.summary import as_metrics, mean_scores, write_means
from stages.diffusion.device_errors import clear_device_errors
from stages.drawing.manifest import read_manifest
from stages.harness.files import write_json
from stages.harness.params import load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.harness.threads import wait_politely


@dataclass(frozen=True, slots=True)
class ScoreOuts:
    """What `run` writes."""

    scores: Path  # of every cell by the scorer, CSV; a failed cell's score is empty
    summary: Path | None = None  # means with intervals by model, JSON
    means: Path | None = None  # the same as CSV, to be plotted


def run(
    cells: Path,
    clip: Path,
    outs: ScoreOuts,
    params: ScoreParams,
    validation: Path | None = None,
) -> None:
    """Score each of a grid's cells by how well it shows its prompt, and average by model.

    Args:
        cells: a grid that `stages.grid_cells` published.
        clip: a folder with a CLIPModel, its tokenizer and image processor.
        outs: what is written.
        params: the section `grid.score`.
        validation: a manifest of real pictures, which the drawn ones are compared with.
    """
    manifest = read_manifest(cells)
    models = list(manifest.models)
    judge = Judge(clip)
    judge.look(manifest, cells)
    own = judge.scores(manifest)
    write_scores(outs.scores, own)
    if not (outs.summary or outs.means):
        return
    means = mean_scores("score", own, models, params)
    for name, folder in params.more:
        other = Judge(Path(folder))
        other.look(manifest, cells)
        means += mean_scores(name, other.scores(manifest), models, params)
    if params.aesthetic_head:
        liked = Judge(Path(params.aesthetic_clip), Path(params.aesthetic_head))
        liked.look(manifest, cells)
        means += mean_scores("aesthetic", liked.scores(manifest), models, params)
    if validation:
        means += cmmd_means(manifest, judge, validation, params)
    if outs.means:
        write_means(outs.means, means)
    if outs.summary:
        write_json(
            outs.summary,
            {
                "scores": as_metrics(means),
                "confidence": params.confidence,
                "prompts": len({e.as_written for e in manifest.entries}),  # that are resampled
            },
        )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m stages.grid_score", description=__doc__)
    for name, metavar, text in (
        ("cells", "DIR", "what `stages.grid_cells` wrote"),
        ("clip", "DIR", "a transformers CLIPModel, such as PickScore, and its preprocessors"),
        ("out", "FILE", "scores, a CSV file"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar=metavar, help=text)
    for name, text in (
        ("summary", "means by model with intervals, a JSON file"),
        ("means", "the same as a CSV file, to be plotted"),
        ("validation", "a manifest of stages.split: its pictures are compared with, by CMMD"),
    ):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=text)
    add_params_option(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run from the command line."""
    wait_politely()
    options = parse()
    with clear_errors(), clear_device_errors():
        run(
            options.cells,
            options.clip,
            ScoreOuts(options.out, options.summary, options.means),
            load_params("grid.score", ScoreParams, options.params),
            options.validation,
        )


if __name__ == "__main__":
    main()
