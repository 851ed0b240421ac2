"""Time what grids, sheets, votes and the viewer do on this machine's CPU.

  python -m tests.benchmarks.grids --folder DIR [--rows rerun,viewer,sheet,votes,coverage,mini]

Writes pictures into DIR. Rows, each printed when it is known; `grids.md` holds the figures:

  rerun     2,184 cells with nothing new, in a process of its own, start included
  viewer    5,184 pictures of 512 px: the first to be seen, and gaps between frames
  sheet     286 megapixels as PNG and JPEG: the largest resident set of the process
  votes     10,000 votes on 13 models fitted, with 1,000 resamplings
  coverage  how often 95 % intervals hold the truth, where prompts differ by a spread
  mini      the mini model, 64 px, 15 steps with guidance, a picture
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from stages.choice.scores import interval, resampled_prompts
from stages.choice.strengths import resampled_strengths
from stages.diffusion import engine
from tests.imports import ROOT
from tests.test_sheet import LARGE
from tests.test_strengths import coverage, simulated_votes
from tests.test_viewer import FIRST_PICTURE, FRAMES, MAX_FRAME_MS, go, make_large, until
from tests.tiny_grid import PARAMS, draw_grid, fake_model

MODELS, REPEATS, WIDEST = 13, 3, (1280, 800)
SIMULATED_VOTES = 600_000  # for each row of `coverage`; 400 elections leave it uncertain by 1 %


def rerun(folder: Path) -> str:
    """Draw 2,184 cells of 13 models with one colour each; time the stage when it has them all."""
    os.environ["DVC_ROOT"] = str(folder)
    params = dataclasses.replace(
        PARAMS, prompts=[f"prompt {n}" for n in range(21)], seeds=[1, 2, 3, 4]
    )
    (folder / "params.yaml").write_text(json.dumps({"grid": dataclasses.asdict(params)}))
    weights = {f"epoch_{n:03}": folder / f"{n}.safetensors" for n in range(MODELS)}
    for number, path in enumerate(weights.values()):
        path.write_bytes(b"%d" % number)
    config, out = folder / "config", folder / "out"
    config.mkdir()
    (config / "model_index.json").write_text("{}")
    engine.open_model = fake_model
    draw_grid(weights, config, out, params)
    words = f"--group test --config {config} --out {out} --report {out}.json --params "
    command = [sys.executable, "-m", "stages.grid_cells", *words.split()]
    command += [str(folder / "params.yaml"), *(f"{n}={path}" for n, path in weights.items())]
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        said = subprocess.run(command, check=True, capture_output=True, cwd=ROOT, text=True).stdout
        seconds.append(time.perf_counter() - started)
        assert "2,184 drawn before, 0 to draw" in said
    return f"{_listed(seconds)} s"


def viewer(folder: Path) -> str:
    """Open the large page and scroll through it."""
    from tests.browser import headless

    site, said = make_large(folder), []
    with headless() as browser:
        for _ in range(REPEATS):
            page = browser.new_page(viewport={"width": WIDEST[0], "height": WIDEST[1]})
            go(page, site)
            first_ms = until(page, FIRST_PICTURE)
            gaps = page.evaluate(FRAMES, [20_000, 120])
            over = sum(gap > MAX_FRAME_MS for gap in gaps)
            said.append(
                f"first picture {first_ms:.0f} ms; {len(gaps)} frames, worst {max(gaps):.1f} ms, "
                f"99 of 100 within {np.quantile(gaps, 0.99):.1f} ms, {over} over {MAX_FRAME_MS} ms"
            )
            page.close()
    return "; again: ".join(said)


def sheet(folder: Path) -> str:
    """Compose the large sheet."""
    cell, said = folder / "cell.png", []
    Image.linear_gradient("L").convert("RGB").resize((512, 512)).save(cell)
    for kind in ("png", "jpeg"):
        command = [sys.executable, "-c", LARGE, str(cell), str(folder / f"sheet.{kind}"), kind]
        started = time.perf_counter()
        ran = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        pixels, kilobytes = map(int, ran.stdout.split())
        seconds = time.perf_counter() - started
        said.append(f"{kind}: {pixels / 1e6:.0f} MP, {kilobytes / 1e3:.0f} MB, {seconds:.1f} s")
    return "; ".join(said)


def votes(folder: Path) -> str:
    """Fit many votes."""
    del folder
    strengths = {f"m{i}": i / 10 for i in range(MODELS)}
    drawn, seconds = simulated_votes(strengths, prompts=21, votes=10_000, seed=1), []
    for _ in range(REPEATS):
        started = time.perf_counter()
        _, resampled = resampled_strengths(drawn, list(strengths), 1000, seed=1)
        for row in resampled:
            interval(row, 0.95, 21)
        seconds.append(time.perf_counter() - started)
    return f"{_listed(seconds)} s"


def coverages(folder: Path) -> str:
    """Simulate many elections."""
    del folder
    rows = []
    for prompts, number in ((6, 24), (21, 84), (6, 100), (21, 400), (21, 2000)):
        for spread in (0.0, 0.5, 1.0):
            runs = min(max(400, SIMULATED_VOTES // number), 6000)
            bare, floored = coverage(prompts, number, spread, runs)
            told = f"{bare:.1%}, with the floor {floored:.1%}"
            rows.append(f"{prompts} prompts, {number} votes, spread {spread:g}: {told}")
    for prompts in (6, 21):
        rows.append(f"mean score, {prompts} prompts: {_coverage_of_means(prompts, 3000):.1%}")
    return "; ".join(rows)


def _coverage_of_means(prompts: int, runs: int) -> float:
    rng, held = np.random.default_rng(1), 0
    for number in range(runs):
        means = rng.normal(size=prompts)
        low, high = interval(
            resampled_prompts(prompts, 400, number) @ means / prompts, 0.95, prompts
        )
        held += low <= 0 <= high
    return held / runs


def mini(folder: Path) -> str:
    """Draw with the shipped mini model, as the mini profile does."""
    from stages.diffusion.easel import Easel
    from stages.diffusion.sample import SamplingParams, draw

    base = ROOT / "models/base"
    easel = Easel(base / "config", "float32", compiled=False, tile_px=0, cache=folder)
    models = easel.put(base / "base.safetensors")
    sampling = SamplingParams(sampler="dpmpp_2m", steps=15, guidance=4.0, negative_prompt="")
    said = []
    for batch in (1, 3, 8):
        seconds, work = [], []
        for _ in range(1 + REPEATS):
            started, before = time.perf_counter(), time.process_time()
            draw(models, ["red apple"] * batch, list(range(batch)), 64, 64, sampling)
            seconds.append((time.perf_counter() - started) / batch)
            work.append((time.process_time() - before) / batch)
        said.append(
            f"batch {batch}: {_listed(seconds[1:])} s a picture, {min(work):.2f} s of CPU time"
        )
    return "; ".join(said)


ROWS: dict[str, Callable[[Path], str]] = {
    "rerun": rerun,
    "viewer": viewer,
    "sheet": sheet,
    "votes": votes,
    "coverage": coverages,
    "mini": mini,
}


def _listed(seconds: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in seconds)


def machine() -> str:
    """Say what machine this is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    when = time.strftime("%d %B %Y")
    return f"{when}, {os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="scratch")
    parser.add_argument("--rows", default=",".join(ROWS), metavar="ROW,…", help="which; see above")
    options = parser.parse_args()
    print(machine(), flush=True)
    for row in options.rows.split(","):
        folder = options.folder.absolute() / row
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"{row}: {ROWS[row](folder)}", flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
