"""Merge models of one architecture, rounded once.

  python -m stages.merge --expression "0.6*a + 0.2*b + 0.2*c" a=FILE b=FILE c=FILE --out FILE
  python -m stages.merge --expression "a + 0.5*(b - c)" a=FILE b=FILE c=FILE --out FILE
  python -m stages.merge --recipe merge.mixes.hybrid a=FILE b=FILE --out FILE
  python -m stages.merge inspect FILE

The first two say what to do; the third takes `expression` and `dtype` from the params, as the
graph does, and without files the `inputs`, too; the last shows what a file holds and was made of.
Instead of a file, an input may be another recipe, as in a=recipe:merge.mixes.hybrid: both are then
computed as one sum.

`0.5*a + 0.5*b` is a mix, `a + 0.5*(b - c)` adds half of what b has learned since c. Names, numbers,
+ - * / and parentheses make an expression, and these methods, whose arguments may be expressions
again; what has a value here may be left out:

  slerp(a, b, t)                           along an arc, t from 0 to 1
  train_difference(a, b, c, scale=1)       what b learned since c, most where a lacks it
  ties(base, [a, b], keep=0.2, scale=1)    differences from base that agree; keep a fifth of each
  dare(base, a, keep, seed=0)              a random share of a's difference, enlarged to match
  model_stock(base, [a, b])                towards the mean as far as the differences point one way
  similarity(a, b, bias=0)                 a where both are alike, b where they are not
  mbw(a, b, [26 numbers] or NAME)          b's weight by block: BASE, IN00-11, M00, OUT00-11;
                                           names: GRAD_V, GRAD_A, FLAT_25, FLAT_50, FLAT_75
  parts(rest, unet=, text_encoder=, vae=)  another expression for a part: vae=x bakes x's in
"""

import argparse
import errno
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stages.diffusion.writing import free_bytes
from stages.harness.counted import counted
from stages.harness.file_command import file_command
from stages.harness.files import write_json
from stages.harness.new_file import check_new_files
from stages.harness.params import load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.harness.progress import Progress
from stages.lineage.in_file import doubt_warning
from stages.merging.blocks import meanings, sum_warning
from stages.merging.expression import parse_expression
from stages.merging.files import (
    Merged,
    check_files,
    check_out,
    merge_files,
    named_inputs,
    plan_file,
)
from stages.merging.inspection import described
from stages.merging.memory import held_bytes
from stages.merging.recipe import Recipe, flattened
from stages.merging.table import METHODS
from stages.merging.terms import calls, model_weights
from stages.merging.text import format_sum, format_weight
from stages.merging.tokens import NAME

READ_BYTES_PER_S = 1_300_000_000  # of sums, two cores, files in memory; disks may be slower


def run(
    recipe: Recipe,
    inputs: Mapping[str, Path],
    out: Path,
    *,
    name: str | None = None,
    allow_nonfinite: bool = False,
) -> Merged:
    """Merge files and say so.

    Args:
        recipe: how; its own `inputs` are not looked at.
        inputs: file by name.
        out: the new file.
        name: of the recipe, for the ancestry in the new file.
        allow_nonfinite: write NaN and infinity instead of refusing them.

    Raises:
        ValueError, OSError: see `merge_files`.
    """
    check_files(recipe.expression, inputs)
    check_out(out, inputs)
    read = announce(recipe, inputs, out)
    progress = Progress("merge, MB", 0)

    def advance(written: int, total: int) -> None:
        progress.total = total // 10**6
        progress.advance(written // 10**6 - progress.done)

    start = time.monotonic()
    merged = merge_files(
        inputs,
        recipe.expression,
        out,
        recipe.dtype,
        name=name,
        allow_nonfinite=allow_nonfinite,
        advance=advance,
    )
    if progress.is_terminal:
        progress.close()
    seconds = max(time.monotonic() - start, 1e-3)
    for key, parent in merged.parents.items():
        if warning := doubt_warning(inputs[key], parent):
            print(f"Warning: {warning}", file=sys.stderr)
    rate = (read + merged.size) / 1e6 / seconds
    print(f"Done: {merged.size / 1e9:.2f} GB in {seconds:.1f} s, {rate:,.0f} MB/s read and written")
    return merged


def announce(recipe: Recipe, inputs: Mapping[str, Path], out: Path) -> int:
    """Say what will be merged and how long it takes; give the bytes that it reads."""
    weights = parse_expression(recipe.expression)
    shares = model_weights(weights)
    has_methods = any(calls(weights))
    read = sum(path.stat().st_size for path in inputs.values() if path.is_file())
    print(
        f"Merging {counted(len(inputs), 'file')}, {read / 1e9:.2f} GB, into {out} ({recipe.dtype}):"
    )
    for key, path in inputs.items():
        if key in shares:
            about = "~" if has_methods else ""
            size = path.stat().st_size / 1e9 if path.is_file() else 0
            print(f"  {about + format_weight(shares[key]):>6} {key} = {path} ({size:.2f} GB)")
    places = meanings(weights)
    for place, settled in places:
        print(f"  {place + ': ' if len(places) > 1 else ''}{format_sum(settled)}")
    if warning := sum_warning(recipe.expression, weights):
        print(f"Warning: {warning}", file=sys.stderr)
    rate = min((METHODS[c.method].bytes_per_s for c in calls(weights)), default=READ_BYTES_PER_S)
    print(f"It takes about {max(1, round(read / rate))} s.", flush=True)
    return read


def dry_run(recipe: Recipe, inputs: Mapping[str, Path], out: Path) -> None:
    """Check the files and the room for a new one, and say what would be done.

    Raises:
        ValueError, OSError: as the merge itself would.
    """
    sources = check_files(recipe.expression, inputs)
    check_out(out, inputs)
    announce(recipe, inputs, out)
    plan = plan_file(parse_expression(recipe.expression), sources, recipe.dtype)
    free = free_bytes(out)
    print(
        f"It writes {plan.size / 1e9:.2f} GB, {len(plan.shapes):,} tensors; "
        f"{free / 1e9:.2f} GB are free there."
    )
    shapes = {key: shape for key, (_, shape) in plan.shapes.items()}
    if held := held_bytes(parse_expression(recipe.expression), shapes):
        print(f"Its methods hold up to {held / 1e6:,.1f} MB of tensors at a time.")
    if free < plan.size:
        words = f"No room for {plan.size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free"
        raise OSError(errno.ENOSPC, words, str(out))


def inspect(path: Path) -> None:
    """Show a file's parts, dtypes, metadata and parents."""
    for line in described(path):
        print(line)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if file_command(arguments, "stages.merge", "inspect", inspect):
        return
    options = _parser().parse_args(_with_minus(arguments))
    with clear_errors():
        given = _inputs(options.inputs)
        if options.recipe:
            recipe = load_params(options.recipe, Recipe, options.params)
        else:
            recipe = Recipe(expression=options.expression, dtype="float16")
        if options.dtype:
            recipe = replace(recipe, dtype=options.dtype)
        recipe, inputs = flattened(recipe, given or recipe.files(), options.params)
        if options.report:
            check_new_files([options.out, options.report], named_inputs(inputs))
        if options.dry_run:
            dry_run(recipe, inputs, options.out)
            return
        name = options.recipe.rpartition(".")[2] if options.recipe else None
        merged = run(
            recipe, inputs, options.out, name=name, allow_nonfinite=options.allow_nonfinite
        )
        if options.report:
            write_json(options.report, _report(recipe, merged))


def _report(recipe: Recipe, merged: Merged) -> dict[str, object]:
    weights = model_weights(parse_expression(recipe.expression))
    return {
        "expression": recipe.expression,
        "weights": {name: float(weight) for name, weight in weights.items()},
        "inputs": {name: parent.sha256 for name, parent in merged.parents.items()},
        "tensors_sha256": merged.tensors_hash,
        "bytes": merged.size,
    }


def _with_minus(arguments: Sequence[str]) -> list[str]:
    """Let an expression begin with a minus, which argparse would take for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined[-1:] == ["--expression"] and not argument.startswith("--"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _inputs(texts: Sequence[str]) -> dict[str, str]:
    """Take NAME=FILE apart.

    Raises:
        ValueError: naming the one that is none, or the name that is given twice.
    """
    given: dict[str, str] = {}
    for name, path in map(_input, texts):
        if name in given:
            raise ValueError(
                f"the name {name!r} is given twice, for {given[name]} and for {path}; name each "
                "input once, as in a=FILE b=FILE"
            )
        given[name] = path
    return given


def _input(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (equals and path and NAME.fullmatch(name)):
        raise ValueError(
            f"{text!r}: expected NAME=FILE, as in a=models/a.safetensors, where the name is made "
            "of letters, digits and _, and begins with no digit"
        )
    return name, path


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
        help="a safetensors file for each name; without any, the recipe's own `inputs`",
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
        "--allow-nonfinite",
        action="store_true",
        help="merge NaN and infinity instead of refusing a file that holds them",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the files and print weights, sizes, memory and time; write nothing",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="a JSON file: weights, inputs and hashes"
    )
    add_params_option(parser)
    return parser


if __name__ == "__main__":
    main()
