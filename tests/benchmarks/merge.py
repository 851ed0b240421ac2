"""Time merges of full-size SD 1.5 files: ours, sd-mecha's, and the floor of reading and writing.

  python -m tests.benchmarks.merge --folder DIR [--mecha PYTHON]

Writes three files of random weights (6.4 GB) into DIR once. PYTHON is that of an environment with
sd-mecha 1.1.8 and its needs; without it only ours is timed. All runs follow each other in one
call, for absolute times drift; look at the ratios.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from stages.diffusion.model import write_single_file
from stages.diffusion.single_file import POSITION_IDS
from tests.test_single_file import shapes_on_meta

METHODS = {  # ours, and sd-mecha's of the same meaning
    "60/20/20": (
        "0.6*a + 0.2*b + 0.2*c",
        "m.weighted_sum(m.weighted_sum(a, b, alpha=0.25), c, alpha=0.2)",
    ),
    "slerp": ("slerp(a, b, 0.3)", "m.slerp(a, b, alpha=0.3)"),
    "ties": ("ties(a, [b, c], 0.2)", "m.add_difference_ties(a, b, c, k=0.2)"),
    "model stock": ("model_stock(a, [b, c])", "m.n_model_stock(a, b, c)"),
}
MECHA = """
import sys
import sd_mecha as m
a, b, c = (m.model(path) for path in sys.argv[1:4])
m.merge({recipe}, output=sys.argv[4])
"""
FLOOR = """
import hashlib, sys
*sources, out = sys.argv[1:]
digest = hashlib.sha256()
for i, path in enumerate(sources):
    with open(path, "rb", buffering=0) as file, open(out, "wb", buffering=0) as copy:
        while chunk := file.read(1 << 22):
            if i == len(sources) - 1:
                copy.write(chunk)
                digest.update(chunk)
"""
# Leaves of the deepest recipe of the graph, mix 3.1: six models, four merges one after another.
DEEPEST = "0.6*(0.5*a + 0.5*b + 0.5*(c - d)) + 0.2*e + 0.2*f"
SAMPLED = "model.diffusion_model.input_blocks.7.0.in_layers.2.weight"


@dataclass(frozen=True, slots=True)
class Run:
    """One process."""

    seconds: float
    peak_mb: float


def write_models(folder: Path, count: int) -> list[Path]:
    """Write full-size files of random float16 weights, those that are not there yet."""
    paths = [folder / f"{chr(ord('a') + i)}.safetensors" for i in range(count)]
    shapes = {k: tuple(t.shape) for part in shapes_on_meta().values() for k, t in part.items()}
    for i, path in enumerate(paths):
        if path.is_file():
            continue
        generator = torch.Generator().manual_seed(i)
        tensors = {k: torch.randn(s, generator=generator) * 0.03 for k, s in shapes.items()}
        tensors[POSITION_IDS] = torch.arange(77)[None]
        write_single_file(path, tensors, {}, torch.float16)
    return paths


def timed(command: Sequence[str | Path]) -> Run:
    """Run a process to its end; its time, and its largest resident set."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} failed:\n{error.decode()[-2000:]}")
    return Run(time.perf_counter() - started, usage.ru_maxrss / 1024)


def merge_command(expression: str, paths: dict[str, Path], out: Path) -> list[str | Path]:
    named = [f"{name}={path}" for name, path in paths.items()]
    return [sys.executable, "-m", "stages.merge", "--expression", expression, *named, "--out", out]


def rms_errors(paths: dict[str, Path], folder: Path) -> tuple[float, float]:
    """Compare the deepest recipe with float64: ours, and float64 rounded once to float16."""
    out = folder / "deepest.safetensors"
    timed(merge_command(DEEPEST, paths, out))

    def read(path: Path) -> torch.Tensor:
        with safe_open(path, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(SAMPLED)
            return tensor

    a, b, c, d, e, f = (read(paths[name]).double() for name in "abcdef")
    exact = 0.6 * (0.5 * a + 0.5 * b + 0.5 * (c - d)) + 0.2 * e + 0.2 * f
    ours, cast = read(out).double(), exact.half().double()
    out.unlink()
    return (
        (ours - exact).square().mean().sqrt().item(),
        (cast - exact).square().mean().sqrt().item(),
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR")
    parser.add_argument("--mecha", metavar="PYTHON")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    paths = write_models(options.folder, 3)
    names = dict(zip("abc", paths, strict=True))
    out = options.folder / "out.safetensors"
    bare = timed([sys.executable, "-c", "import torch"])
    print(f"bare torch import: {bare.seconds:.1f} s, {bare.peak_mb:.0f} MB")
    timed([sys.executable, "-c", FLOOR, *paths, out])  # the files are in the cache from here on
    floor = timed([sys.executable, "-c", FLOOR, *paths, out])
    print(f"floor, reading 6.4 GB and writing and hashing 2.1 GB: {floor.seconds:.1f} s")
    for method, (expression, recipe) in METHODS.items():
        used = {name: path for name, path in names.items() if name in expression.split("(", 1)[-1]}
        ours = timed(merge_command(expression, used, out))
        digest = hashlib.file_digest(out.open("rb"), "sha256").hexdigest()[:12]
        line = (
            f"{method}: {ours.seconds:.1f} s ({ours.seconds / floor.seconds:.2f} x the floor), "
            f"{ours.peak_mb - bare.peak_mb:.0f} MB above torch, SHA-256 {digest}"
        )
        if options.mecha:
            script = MECHA.format(recipe=recipe)
            theirs = timed([options.mecha, "-c", script, *paths, out])
            line += (
                f"; sd-mecha {theirs.seconds:.1f} s, {theirs.peak_mb - bare.peak_mb:.0f} MB: "
                f"{ours.seconds / theirs.seconds:.3f} x its time"
            )
        print(line, flush=True)
    again = [
        subprocess.run(
            [str(w) for w in merge_command(METHODS["60/20/20"][0], names, out)],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        and hashlib.file_digest(out.open("rb"), "sha256").hexdigest()
        for threads in ("1", "2")
    ]
    print(f"60/20/20 twice, with one thread and with two: equal is {again[0] == again[1]}")
    six = write_models(options.folder, 6)
    ours_rms, cast_rms = rms_errors(dict(zip("abcdef", six, strict=True)), options.folder)
    print(
        f"deepest recipe, RMS error against float64: {ours_rms:.3e}; one cast alone {cast_rms:.3e}"
    )
    out.unlink()


if __name__ == "__main__":
    main()
