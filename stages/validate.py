"""Score checkpoints on held-out pictures, at the resolution that they were trained at or another.

  python -m stages.validate RUN --weights FILE|DIR … --config DIR --validation FILE --out FILE.json

RUN names a section of the params, `train.RUN`: its resolution, buckets, timesteps and seed decide
what is asked, of all checkpoints alike. So the checkpoints of 512 and of 768 can be compared at
both: once with RUN 512, once with RUN 768. The first checkpoint is what the others are compared
with, picture by picture; a DIR means all epochs in it. NAME= before either tells two runs' epochs
apart, as in 512=models/train/512 768=models/train/768.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.harness.files import sha256_file, sha256_folder, write_json
from stages.harness.named import named_weights
from stages.harness.params import load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.harness.scratch import work_dir
from stages.harness.threads import wait_politely
from stages.images.manifest import Pictures, read_manifest
from stages.training.code_hash import code_hash

if TYPE_CHECKING:  # what imports torch waits for `wait_politely`
    from stages.training.params import TrainParams

DIGITS = 8  # of losses; float32 has no more to tell

say = functools.partial(print, flush=True)


def run(
    weights: dict[str, Path], config: Path, manifest: Path, params: "TrainParams", work: Path
) -> dict[str, Any]:
    """Score checkpoints.

    Args:
        weights: single files by name; the first is what the others are compared with.
        config: the diffusers folder that describes them.
        manifest: of the pictures held out.
        params: the section `train.RUN`.
        work: scratch for the encoded pictures.

    Returns:
        What the report holds.

    Raises:
        ValueError: if a file does not fit the config or gives no finite loss, or a picture is bad.
        OSError: if a file is missing.
    """
    from stages.training.encode import as_example
    from stages.training.scoring import score_checkpoints
    from stages.training.validation import paired_interval

    found = score_checkpoints(
        weights,
        config,
        Pictures(read_manifest(manifest), as_example),
        params,
        work,
        {
            "validation": sha256_file(manifest),
            "config": sha256_folder(config),
            "encoding": code_hash("stages.training.encode"),
        },
        say,
    )
    names = list(found)
    base = found[names[0]].mean(1)
    report: dict[str, Any] = {"resolution": params.resolution, "checkpoints": {}}
    for name, errors in found.items():
        losses = errors.mean(1)
        change = paired_interval(losses - base)
        report["checkpoints"][name] = {
            "loss": round(float(losses.mean()), DIGITS),
            "by_timestep": [round(float(loss), DIGITS) for loss in errors.mean(0)],
            "change_percent": round(100 * float(losses.mean() / base.mean() - 1), 4),
            "change_percent_low": round(100 * change.low / float(base.mean()), 4),
            "change_percent_high": round(100 * change.high / float(base.mean()), 4),
        }
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = _parser().parse_args(argv)
    wait_politely()
    with clear_errors():
        from stages.training.params import TrainParams

        params = load_params(f"train.{options.run}", TrainParams, options.params)
        weights = named_weights(options.weights)
        report = run(weights, options.config, options.validation, params, work_dir("encoded"))
        write_json(options.out, report)
    for name, row in report["checkpoints"].items():
        say(
            f"{name} at {params.resolution} px: {row['loss']:.5f}, {row['change_percent']:+.2f} % "
            f"({row['change_percent_low']:+.2f} to {row['change_percent_high']:+.2f})"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.validate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="name of the params' section train.RUN")
    parser.add_argument(
        "--weights",
        nargs="+",
        required=True,
        metavar="FILE",
        help="files or folders of epochs, or NAME=PATH; the first is the one to compare with",
    )
    for name, metavar, text in (
        ("config", "DIR", "the diffusers folder that describes them"),
        ("validation", "FILE", "manifest of the pictures held out"),
        ("out", "FILE", "the report to write, JSON"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar=metavar, help=text)
    add_params_option(parser)
    return parser


if __name__ == "__main__":
    main()
