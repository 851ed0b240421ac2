"""Time merges of full-size SD 1.5 files: ours, sd-mecha's, and the floor of reading and writing.

  python -m tests.benchmarks.merge --folder DIR [--mecha PYTHON] [--runs N]

Writes six files of random weights (12.8 GB) into DIR once. PYTHON is that of an environment with
sd-mecha 1.1.8 and its needs; without it only ours is timed. All runs follow each other in one
call, for absolute times drift; look at the ratios. The ways take turns, N times each, and the
median counts.

The floor reads the inputs, writes 2.1 GB and hashes what it writes, in one process.
"First time" is a merge that must hash its inputs, "again" one that remembers their hashes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open

from stages.diffusion.header import read_header
from stages.diffusion.model import write_single_file
from stages.diffusion.single_file import POSITION_IDS
from stages.harness.files import sha256_file
from stages.merging import hash_process
from stages.merging.files import merge_files
from tests.test_single_file import sd15_networks, shapes_on_meta
from tests.tiny_sd import MODEL_INDEX, SCHEDULER, tiny_vocabulary, write_json, write_tokenizer

SUM = "0.6*a + 0.2*b + 0.2*c"
METHODS = {  # ours, and sd-mecha's of the same meaning
    "60/20/20": (SUM, "m.weighted_sum(m.weighted_sum(a, b, alpha=0.25), c, alpha=0.2)"),
    "slerp": ("slerp(a, b, 0.3)", "m.slerp(a, b, alpha=0.3)"),
    # its own wrapper, add_difference_ties, fails in 1.1.8; these are the steps that it takes
    "TIES": (
        "ties(a, [b, c], 0.2)",
        "linear.add_difference(a, m.ties_sum(m.subtract(b, a), m.subtract(c, a), k=0.2), "
        "alpha=1.0)",
    ),
    "model stock": (
        "model_stock(a, [b, c])",
        "linear.add_difference(a, m.model_stock(m.subtract(b, a), m.subtract(c, a)), alpha=1.0)",
    ),
}
MECHA = """
import sys
import sd_mecha as m
from sd_mecha.extensions.builtin.merge_methods import linear
a, b, c = (m.model(path) for path in sys.argv[1:4])
m.merge({recipe}, output=sys.argv[4])
"""
FLOOR = """
import hashlib, sys
*sources, out = sys.argv[1:]
digest = hashlib.sha256()
for i, path in enumerate(sources):
    with open(path, "rb", buffering=0) as file, open(out, "wb", buffering=0) as copy:
        while chunk := file.read(1 << 20):
            if i == len(sources) - 1:
                copy.write(chunk)
                digest.update(chunk)
"""
# A process that has not grown itself measures: the kernel lets a child inherit its parent's peak.
LAUNCHER = """
import os, resource, subprocess, sys, time
start = time.perf_counter()
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
print(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
sys.exit(status)
"""
# Leaves of the deepest recipe of the graph, mix 3.1: six models, three merges one after another.
DEEPEST = "0.6*(0.5*a + 0.5*b + 0.5*(c - d)) + 0.2*e + 0.2*f"
STEPS = (  # name of the result, expression, names of its inputs
    ("hybrid", "0.5*a + 0.5*b", "ab"),
    ("vodka", "hybrid + 0.5*(c - d)", "cd"),
    ("cocktail", "0.6*vodka + 0.2*e + 0.2*f", "ef"),
)
SAMPLED = re.compile(  # some 25 tensors of all parts, among them the largest
    r".*(input_blocks\.(1|4|7)\.0\.in_layers\.2|output_blocks\.\d\.0\.in_layers\.2"
    r"|middle_block\.1\.proj_in|layers\.\d\.mlp\.fc1|decoder\.up\.\d\.block\.0\.conv1)\.weight"
)
MEMORY_MB = re.compile(r"MemTotal:\s+(\d+) kB")


@dataclass(frozen=True, slots=True)
class Run:
    """One process, or the median of several; the largest resident set of all of them."""

    seconds: float
    cpu_seconds: float  # of all cores; other work on the machine changes it little
    peak_mb: float  # of the largest process


def write_models(folder: Path, count: int) -> dict[str, Path]:
    """Write full-size files of random float16 weights, those that are not there yet."""
    paths = {name: folder / f"{name}.safetensors" for name in "abcdef"[:count]}
    shapes = {k: tuple(t.shape) for part in shapes_on_meta().values() for k, t in part.items()}
    for i, path in enumerate(paths.values()):
        if path.is_file():
            continue
        generator = torch.Generator().manual_seed(i)
        tensors = {k: torch.randn(s, generator=generator) * 0.03 for k, s in shapes.items()}
        tensors[POSITION_IDS] = torch.arange(77)[None]
        write_single_file(path, tensors, {}, torch.float16)
    return paths


def timed(command: Sequence[str | Path]) -> Run:
    """Run a process to its end."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return Run(*(float(word) for word in done.stdout.split()))


def median(runs: Sequence[Run]) -> Run:
    """Take the median times, and the largest resident set."""
    return Run(
        statistics.median(run.seconds for run in runs),
        statistics.median(run.cpu_seconds for run in runs),
        max(run.peak_mb for run in runs),
    )


def merge_command(expression: str, paths: Mapping[str, Path], out: Path) -> list[str | Path]:
    named = [f"{name}={path}" for name, path in paths.items()]
    return [sys.executable, "-m", "stages.merge", "--expression", expression, *named, "--out", out]


def time_methods(options: argparse.Namespace, paths: Mapping[str, Path], bare: Run) -> None:
    """Print two lines for each method: ours first and again, the floor, sd-mecha's."""
    out, hashes = options.folder / "out.safetensors", options.folder / ".work"
    for method in options.methods or METHODS:
        expression, recipe = METHODS[method]
        used = {n: path for n, path in paths.items() if n in expression.split("(", 1)[-1]}
        command = merge_command(expression, used, out)
        ways = {
            "floor": [sys.executable, "-S", "-c", FLOOR, *used.values(), out],
            "first time": command,
            "again": command,
        }
        if options.mecha:
            script = MECHA.format(recipe=recipe)
            ways["sd-mecha"] = [options.mecha, "-c", script, *paths.values(), out]
        runs: dict[str, list[Run]] = {way: [] for way in ways}
        for _ in range(options.runs):  # in turn, for the machine's pace drifts
            for way, words in ways.items():
                if way == "first time":
                    shutil.rmtree(hashes, ignore_errors=True)
                runs[way].append(timed(words))
        found = {way: median(of_way) for way, of_way in runs.items()}
        floor, theirs = found["floor"], found.get("sd-mecha")
        print(f"| {method}, floor | {floor.seconds:.1f} s, {floor.cpu_seconds:.1f} s of CPU |||")
        for label in ("first time", "again"):
            ours, other = found[label], "not run"
            if theirs:
                other = f"{described(theirs, bare)} | {ours.seconds / theirs.seconds:.3f} x"
                other += f", {ours.cpu_seconds / theirs.cpu_seconds:.3f} x of CPU"
            spread = ", ".join(f"{run.seconds:.1f}" for run in runs[label])
            print(
                f"| {method}, {label} | {described(ours, bare)} ({spread}) "
                f"| {ours.seconds / floor.seconds:.2f} x | {other} |",
                flush=True,
            )


def described(run: Run, bare: Run) -> str:
    above_mb = run.peak_mb - bare.peak_mb
    return f"{run.seconds:.1f} s, {run.cpu_seconds:.1f} s of CPU, {above_mb:,.0f} MB"


def digests(paths: Mapping[str, Path], folder: Path) -> set[str]:
    """Merge with several chunk sizes and thread counts; the SHA-256 of each file."""
    out = folder / "out.safetensors"
    found = set()
    before = torch.get_num_threads()
    for expression in (SUM, "slerp(a, b, 0.3)"):
        used = {n: path for n, path in paths.items() if n in expression.split("(", 1)[-1]}
        hashes = set()
        for chunk, threads in ((1 << 18, 1), (1 << 18, 2), (1 << 20, 2), (1_000_003, 1)):
            torch.set_num_threads(threads)
            merge_files(used, expression, out, "float16", chunk_elements=chunk)
            hashes.add(sha256_file(out))
        print(f"{expression}: {len(hashes)} SHA-256 of 4 runs, {min(hashes)[:12]}", flush=True)
        found |= hashes
    torch.set_num_threads(before)
    return found


def in_steps(paths: Mapping[str, Path], folder: Path, between: str) -> Path:
    """Merge the deepest recipe as the graph does: through files of `between`."""
    made = dict(paths)
    for name, expression, inputs in STEPS:
        out = folder / f"{name}.safetensors"
        earlier = [known for known in ("hybrid", "vodka") if known in expression]
        used = {n: made[n] for n in (*earlier, *inputs)}
        dtype = "float16" if name == "cocktail" else between
        merge_files(used, expression, out, dtype)  # type: ignore[arg-type]
        made[name] = out
    return made["cocktail"]


def rms_errors(merged: Path, paths: Mapping[str, Path]) -> tuple[float, float, int]:
    """Compare a file of the deepest recipe with float64, over several tensors.

    Returns:
        The root of the mean square of its errors; the same of float64 rounded once to float16;
        how many elements were compared.
    """
    keys = [key for key in read_header(merged).tensors if SAMPLED.fullmatch(key)]
    ours = cast = 0.0
    count = 0
    for key in keys:
        a, b, c, d, e, f = (read(path, key) for path in paths.values())
        exact = 0.6 * (0.5 * a + 0.5 * b + 0.5 * (c - d)) + 0.2 * e + 0.2 * f
        ours += (read(merged, key) - exact).square().sum().item()
        cast += (exact.half().double() - exact).square().sum().item()
        count += exact.numel()
    return (ours / count) ** 0.5, (cast / count) ** 0.5, count


def read(path: Path, key: str) -> torch.Tensor:
    """Read one tensor in double precision."""
    with safe_open(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(key)
    return tensor.double()


def compare_rounding(folder: Path) -> None:
    """Print the rounding errors of the deepest recipe, in one pass and in steps."""
    paths = write_models(folder, 6)
    out = folder / "out.safetensors"
    merge_files(paths, DEEPEST, out, "float16")
    rms, cast, count = rms_errors(out, paths)
    print(f"deepest recipe, RMS error against float64 over {count:,} elements:")
    print(f"  one cast of float64: {cast:.4e}\n  one pass: {rms:.4e} ({rms / cast:.4f} x)")
    for between in ("float32", "float16"):
        rms = rms_errors(in_steps(paths, folder, between), paths)[0]
        print(f"  in steps through {between} files: {rms:.4e} ({rms / cast:.4f} x)", flush=True)
    for name, _, _ in STEPS:
        (folder / f"{name}.safetensors").unlink()


def open_with_diffusers(path: Path, config: Path) -> None:
    """Open a merged file offline, as people will, with SD 1.5's networks built from `config`."""
    from diffusers import StableDiffusionPipeline

    with torch.device("meta"):
        unet, vae, text_encoder = sd15_networks()
    unet.save_config(config / "unet")
    vae.save_config(config / "vae")
    text_encoder.config.save_pretrained(config / "text_encoder")
    write_json(config / "model_index.json", MODEL_INDEX)
    write_json(config / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_tokenizer(config / "tokenizer", *tiny_vocabulary())
    pipeline = StableDiffusionPipeline.from_single_file(
        path, config=str(config), local_files_only=True, torch_dtype=torch.float16
    )
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    count = sum(p.numel() for part in parts for p in part.parameters())
    print(f"diffusers opens {path.name} offline: {count:,} parameters")


def machine() -> str:
    """Say what this was measured on."""
    memory = MEMORY_MB.search(Path("/proc/meminfo").read_text())
    names = ("torch", "safetensors", "diffusers")
    return json.dumps(
        {
            "cores": os.cpu_count(),
            "memory GB": round(int(memory[1]) / 1e6, 1) if memory else None,
            "python": platform.python_version(),
            **{name: version(name) for name in names},
        }
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR")
    parser.add_argument("--mecha", metavar="PYTHON")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="of each way (default: 3)")
    parser.add_argument(
        "--only", choices=("speed", "bytes", "rounding", "open"), help="one question alone"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="to time (default: all)")
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ["DVC_ROOT"] = str(options.folder)  # where hashes are remembered
    paths = write_models(options.folder, 3)
    out = options.folder / "out.safetensors"
    wanted = [options.only] if options.only else ["speed", "bytes", "rounding", "open"]
    print(machine())
    if "speed" in wanted:
        bare = median([timed([sys.executable, "-c", "import torch"]) for _ in range(3)])
        print(f"bare torch import: {bare.seconds:.1f} s, {bare.peak_mb:.0f} MB")
        hashed = timed([sys.executable, "-I", "-S", hash_process.__file__, paths["a"], "0"])
        print(
            f"a process that hashes an input: {hashed.cpu_seconds:.1f} s, {hashed.peak_mb:.0f} MB"
        )
        time_methods(options, paths, bare)
    if "bytes" in wanted:
        digests(paths, options.folder)
    if "rounding" in wanted:
        compare_rounding(options.folder)
    if "open" in wanted:
        merge_files(paths, SUM, out, "float16")
        open_with_diffusers(out, options.folder / "config")
    out.unlink()


if __name__ == "__main__":
    main()
