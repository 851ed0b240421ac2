"""Merge models: the weighted sum of files of one architecture, rounded once.

  python -m stages.merge --expression "0.6*a + 0.2*b + 0.2*c" a=FILE b=FILE c=FILE --out FILE
  python -m stages.merge --expression "a + 0.5*(b - c)" a=FILE b=FILE c=FILE --out FILE
  python -m stages.merge --recipe merge.mixes.hybrid a=FILE b=FILE --out FILE

The first two say the weights; the third takes `expression` and `dtype` from the params, as the
graph does. Weights must sum to 1: `0.5*a + 0.5*b` is a mix, `a + 0.5*(b - c)` adds half of what
b has learned since c. Names, numbers, + - * / and parentheses make an expression.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from stages.diffusion.expression import NAME, check_sum, format_weight, parse_expression
from stages.diffusion.weights import Merged, merge_files
from stages.harness.files import write_json
from stages.harness.params import Params, load_params
from stages.harness.paths import DEFAULT_PARAMS, clear_errors
from stages.harness.progress import Progress

READ_BYTES_PER_S = 600_000_000  # two cores of 2023 with the files in memory; disks may be slower
Dtype = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Params):
    """One mix in the params."""

    expression: str  # of names, as in 0.6*vodka + 0.2*x + 0.2*y
    dtype: Dtype  # of the file; float32 for what is merged again
    inputs: dict[str, str] = field(default_factory=dict)  # name: file; a command line may say it

    def __post_init__(self) -> None:
        """Check the expression before any file is looked at."""
        check_sum(self.expression, parse_expression(self.expression))


def run(
    recipe: Recipe, inputs: Mapping[str, Path], out: Path, *, name: str | None = None
) -> Merged:
    """Merge files and say so.

    Args:
        recipe: how; its own `inputs` are not looked at.
        inputs: file by name.
        out: the new file.
        name: of the recipe, for the ancestry in the new file.

    Raises:
        ValueError, OSError: see `merge_files`.
    """
    weights = parse_expression(recipe.expression)
    read = sum(path.stat().st_size for path in inputs.values() if path.is_file())
    print(f"Merging {len(inputs)} files, {read / 1e9:.2f} GB, into {out} ({recipe.dtype}):")
    for key, path in inputs.items():
        if key in weights:
            print(f"  {format_weight(weights[key]):>6} {key} = {path}")
    print(f"It takes about {max(1, round(read / READ_BYTES_PER_S))} s.", flush=True)
    progress = Progress("merge, MB", 0)

    def advance(written: int, total: int) -> None:
        progress.total = total // 10**6
        progress.advance(written // 10**6 - progress.done)

    start = time.monotonic()
    merged = merge_files(
        inputs, recipe.expression, out, getattr(torch, recipe.dtype), name=name, advance=advance
    )
    if progress.is_terminal:
        progress.close()
    seconds = max(time.monotonic() - start, 1e-3)
    rate = (read + merged.size) / 1e6 / seconds
    print(f"Done: {merged.size / 1e9:.2f} GB in {seconds:.1f} s, {rate:,.0f} MB/s read and written")
    return merged


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = _parser().parse_args(argv)
    with clear_errors():
        given = dict(_input(text) for text in options.inputs)
        if len(given) < len(options.inputs):
            raise ValueError("a name is given twice; name each input once, as in a=FILE b=FILE")
        if options.recipe:
            recipe = load_params(options.recipe, Recipe, options.params)
        else:
            recipe = Recipe(expression=options.expression, dtype="float16")
        if options.dtype:
            recipe = Recipe(expression=recipe.expression, dtype=options.dtype, inputs=recipe.inputs)
        inputs = {**{key: Path(path) for key, path in recipe.inputs.items()}, **given}
        name = options.recipe.rpartition(".")[2] if options.recipe else None
        merged = run(recipe, inputs, options.out, name=name)
        if options.report:
            write_json(options.report, _report(recipe, merged))


def _report(recipe: Recipe, merged: Merged) -> dict[str, object]:
    weights = parse_expression(recipe.expression)
    return {
        "expression": recipe.expression,
        "weights": {name: float(weight) for name, weight in weights.items()},
        "inputs": {name: parent.sha256 for name, parent in merged.parents.items()},
        "tensors_sha256": merged.tensors_hash,
        "bytes": merged.size,
    }


def _input(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (equals and path and NAME.fullmatch(name)):
        raise ValueError(
            f"{text!r}: expected NAME=FILE, as in a=models/a.safetensors, where the name is made "
            "of letters, digits and _, and begins with no digit"
        )
    return name, Path(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.merge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--expression", metavar="TEXT", help="the sum, as in '0.5*a + 0.5*b'")
    how.add_argument(
        "--recipe", metavar="SECTION", help="where the params say it, as in merge.mixes.hybrid"
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="NAME=FILE",
        help="a safetensors file for each name (default: the recipe's `inputs`)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the safetensors file to write"
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="of the file (default: the recipe's, or float16); sums are float32 anyway",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="a JSON file: weights, inputs and hashes"
    )
    parser.add_argument(
        "--params",
        type=Path,
        default=DEFAULT_PARAMS,
        metavar="FILE",
        help=f"every value that one may change (default: {DEFAULT_PARAMS})",
    )
    return parser


if __name__ == "__main__":
    main()
