"""Time the drawing of cells with a full-size SD 1.5 of random weights on this machine's GPUs.

  python -m tests.benchmarks.render --folder DIR [--rows 512,768,company,start,single,gpus]

Writes weights (2 GB), compiled code and pictures into DIR. Rows, each printed when it is known:

  512, 768  pictures a second, compiled, in the batches of the profile, once it is warm
  company   by how many levels of 255 a 512 px picture differs where the rest of its batch does
  start     168 cells of 512 px by `stages.grid_cells`, start included, with a warm compile cache
  single    512 px, one picture at a time, not compiled: what a simple script does
  gpus      two GPUs over one, by `torchrun`; only where there are two

Options of the compiler are weighed with `--compiler`, such as '{"conv_1x1_as_mm": true}', for the
rows 512 and 768.

`--small` uses a tiny model and small pictures, to try the script itself on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from stages.diffusion.easel import Easel
from stages.diffusion.model import Models, save_single_file
from stages.diffusion.sample import SamplingParams, draw
from tests.tiny_sd import MODEL_INDEX, SCHEDULER, tiny_vocabulary, write_json

ROWS = ("512", "768", "company", "start", "single", "gpus")
PROMPTS = [f"a picture of thing number {number}" for number in range(21)]
SAMPLING = SamplingParams(sampler="dpmpp_2m", steps=25, guidance=7.0, negative_prompt="")


@dataclass(frozen=True, slots=True)
class Bench:
    """What is timed, and where."""

    folder: Path
    dtype: str
    steps: int
    batch: int
    side: dict[str, int]
    seeds: int
    compiler: dict[str, bool]

    @property
    def weights(self) -> Path:
        return self.folder / "random.safetensors"

    @property
    def config(self) -> Path:
        return self.folder / "config"

    @property
    def compiled(self) -> Path:
        return self.folder / "compiled"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rows", type=lambda text: text.split(","), default=list(ROWS))
    parser.add_argument(
        "--compiler", type=json.loads, default={}, metavar="JSON", help="its options"
    )
    parser.add_argument("--small", action="store_true", help="to try the script on a CPU")
    options = parser.parse_args()
    bench = Bench(
        folder=options.folder.absolute(),
        dtype="float32" if options.small else "float16",
        steps=2 if options.small else SAMPLING.steps,
        batch=2 if options.small else 42,  # the profile's
        side={"512": 32, "768": 48} if options.small else {"512": 512, "768": 768},
        seeds=1 if options.small else 8,
        compiler=options.compiler,
    )
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(bench.compiled)
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"torch {torch.__version__}, {cards or 'CPU'}", flush=True)
    if not bench.weights.is_file():
        make_model(bench, small=options.small)
    rows: dict[str, Callable[[Bench], str]] = {
        "512": lambda b: throughput(b, b.side["512"]),
        "768": lambda b: throughput(b, b.side["768"]),
        "company": company,
        "start": whole_grid,
        "single": one_by_one,
        "gpus": two_over_one,
    }
    for name in options.rows:
        started = time.perf_counter()
        said = rows[name](bench)
        print(f"{name}: {said} (this row took {time.perf_counter() - started:.0f} s)", flush=True)


def make_model(bench: Bench, *, small: bool) -> None:
    """Write a model of random weights, and the config folder that describes it."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    vocabulary, merges = tiny_vocabulary()
    widths = (32, 64, 64, 64) if small else (320, 640, 1280, 1280)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=widths,
            cross_attention_dim=64 if small else 768,
            attention_head_dim=8,
        )
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 32, 32) if small else (128, 256, 512, 512),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
        )
        text = CLIPTextConfig(
            hidden_size=64 if small else 768,
            intermediate_size=128 if small else 3072,
            num_attention_heads=2 if small else 12,
            num_hidden_layers=2 if small else 12,
            eos_token_id=len(vocabulary) - 1,
            bos_token_id=len(vocabulary) - 2,
            pad_token_id=len(vocabulary) - 1,
        )
        text_encoder = CLIPTextModel(text)
    for part in (unet, vae):
        part.save_config(bench.config / part.__class__.__name__)
    (bench.config / "UNet2DConditionModel").rename(bench.config / "unet")
    (bench.config / "AutoencoderKL").rename(bench.config / "vae")
    text.save_pretrained(bench.config / "text_encoder")
    write_json(bench.config / "model_index.json", MODEL_INDEX)
    write_json(bench.config / "scheduler" / "scheduler_config.json", SCHEDULER)
    tokenizer = bench.config / "tokenizer"
    write_json(tokenizer / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (tokenizer / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    write_json(tokenizer / "tokenizer_config.json", settings)
    save_single_file(bench.weights, unet, vae, text_encoder, {})


def sampling(bench: Bench) -> SamplingParams:
    return SamplingParams(
        sampler=SAMPLING.sampler,
        steps=bench.steps,
        guidance=SAMPLING.guidance,
        negative_prompt="",
    )


def compiled_easel(bench: Bench) -> Easel:
    return Easel(
        bench.config,
        bench.dtype,
        compiled=True,
        tile_px=0,
        cache=bench.compiled,
        options=bench.compiler,
    )


def throughput(bench: Bench, side: int) -> str:
    """Draw full batches with compiled code; the first pays for the compiler."""
    easel = compiled_easel(bench)
    models = easel.put(bench.weights)
    first = timed(lambda: draw_batch(bench, models, side, bench.batch))
    seconds = [timed(lambda: draw_batch(bench, models, side, bench.batch)) for _ in range(4)]
    swapped = timed(lambda: easel.put(bench.weights))
    best = bench.batch / min(seconds)
    mean = bench.batch * len(seconds) / sum(seconds)
    return (
        f"{mean:.2f} pictures/s of {side} px (best batch {best:.2f}); the first batch {first:.1f} "
        f"s, another model in its place {swapped:.1f} s{peak_memory()}"
    )


def peak_memory() -> str:
    """Tell the most of the GPU's memory that this process has held at once."""
    if not torch.cuda.is_available():
        return ""
    return f"; at most {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"


def company(bench: Bench) -> str:
    """Draw one picture in two batches, at another place and with others."""
    models, side = compiled_easel(bench).put(bench.weights), bench.side["512"]
    seen = []
    for at, first in ((0, 1), (bench.batch - 1, 9)):
        prompts = [PROMPTS[(first + i) % len(PROMPTS)] for i in range(bench.batch)]
        seeds = list(range(100 * first, 100 * first + bench.batch))
        prompts[at], seeds[at] = "the same picture", 7
        pictures = draw(models, prompts, seeds, side, side, sampling(bench))
        seen.append(np.asarray(pictures[at]).astype(int))
    gap = np.abs(seen[0] - seen[1])
    return f"at most {gap.max()} levels, {gap.mean():.2g} on average, {(gap > 0).mean():.1%} differ"


def one_by_one(bench: Bench) -> str:
    """Draw single pictures, not compiled."""
    easel = Easel(bench.config, bench.dtype, compiled=False, tile_px=0, cache=bench.compiled)
    models = easel.put(bench.weights)
    rates = []
    for side in bench.side.values():
        draw_batch(bench, models, side, 1)
        count = 2 if bench.seeds == 1 else 6
        one = partial(draw_batch, bench, models, side, 1)
        seconds = sum(timed(one) for _ in range(count))
        rates.append(f"{count / seconds:.2f} pictures/s of {side} px")
    return ", ".join(rates)


def draw_batch(bench: Bench, models: Models, side: int, count: int) -> None:
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(count)]
    draw(models, prompts, list(range(count)), side, side, sampling(bench))


def timed(work: Callable[[], Any]) -> float:
    """Give the seconds that something takes, the GPU's part included."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def whole_grid(bench: Bench) -> str:
    """Draw a whole grid by the stage; once more where the compile cache was cold."""
    said = []
    for label in ("first", "again"):
        seconds, cells = run_grid(bench, [sys.executable, "-m"], bench.seeds)
        said.append(f"{label} {cells} cells in {seconds:.1f} s, {cells / seconds:.2f}/s")
    return "; ".join(said)


def two_over_one(bench: Bench) -> str:
    """Compare one process with two that share the work: all of it, and past the start."""
    if torch.cuda.device_count() < 2 and torch.cuda.is_available():
        return "not measured: this machine has one GPU"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    run_grid(bench, [*torchrun, "2", "-m"], max(1, bench.seeds // 2))  # a full batch for each card
    wholes, rates = {}, {}
    for count in (1, 2):
        wholes[count], cells = run_grid(bench, [*torchrun, str(count), "-m"], 5 * bench.seeds)
        rates[count] = rate_past_start(bench, count)
    return (
        f"{cells} cells, start included: one {wholes[1]:.1f} s, two {wholes[2]:.1f} s, "
        f"{wholes[1] / wholes[2]:.2f} times as fast; past the start {rates[1]:.2f}/s and "
        f"{rates[2]:.2f}/s, {rates[2] / rates[1]:.2f} times"
    )


def rate_past_start(bench: Bench, processes: int) -> float:
    """Tell the pictures a second of the last grid, from the first that was written to the last.

    The first batch of each process is not counted: it was drawn before. What writing the last
    batch takes is, and so is the time by which one process began or ended after another.
    """
    written = sorted(
        path.stat().st_mtime for path in (bench.folder / "run").rglob(".work/**/*.png")
    )
    return (len(written) - processes * bench.batch) / (written[-1] - written[0])


def run_grid(bench: Bench, python: list[str], seeds: int) -> tuple[float, int]:
    """Run `stages.grid_cells` with nothing drawn before; give seconds to its end, and cells."""
    run = bench.folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    params = yaml.safe_load(Path("profiles/sd15.yaml").read_text(encoding="utf-8"))
    side = bench.side["512"]
    params["grid"] |= {"prompts": PROMPTS, "seeds": list(range(seeds)), "sizes": [[side, side]]}
    params["grid"] |= {"steps": bench.steps, "batch_size": bench.batch, "dtype": bench.dtype}
    run.mkdir(parents=True)
    (run / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    words = f"stages.grid_cells model={bench.weights} --group timed --config {bench.config}"
    words += f" --out {run}/cells --report {run}/report.json --drawn {run}/drawn.json"
    words += f" --params {run}/params.yaml"
    environment = {**os.environ, "DVC_ROOT": str(run)}
    started = time.perf_counter()
    done = subprocess.run(
        [*python, *words.split()], env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    cells = json.loads((run / "drawn.json").read_text(encoding="utf-8"))["drawn"]
    return seconds, cells


if __name__ == "__main__":
    main()
