"""Measure how far a killed and resumed run on a GPU ends from an unbroken one.

  python -m tests.benchmarks.resume [ROW …] [--folder DIR]

On a CPU both end with the same bits (tests/test_train.py). A GPU adds up in an order that no run
repeats, so two unbroken runs differ already: that is the tolerance. Each ROW trains three times on
noise for pictures: unbroken, unbroken again, and killed by SIGKILL within its second epoch and
started again. `sd15` trains a network of SD 1.5's size with random weights and AdamW, in minutes
and 60 GB; the others, named after their optimizers, train the mini model in seconds, with an EMA
where the optimizer allows one. By default all rows follow each other.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from stages.diffusion.model import Base, load_models, save_single_file
from stages.training.encode import Example
from stages.training.loop import Trained, train
from tests.benchmarks.train import PARAMS, ROOT, sd15
from tests.tiny_training import picture, wait_for

SD15_PARAMS = replace(
    PARAMS,
    resolution=256,
    learning_rate=1e-5,
    optimizer="adamw",
    batch_size=8,
    gradient_accumulation=2,
    max_epochs=3,
    checkpoint_every_epochs=3,
    stop_patience=0,
    validation_timesteps=2,
    ema_decay=0.0,
    samples=replace(PARAMS.samples, every_epochs=0),
)
MINI_PARAMS = replace(
    SD15_PARAMS,
    resolution=64,
    learning_rate=1e-4,
    ema_decay=0.9,
    schedule="cosine",
    schedule_epochs=4,
    warmup_steps=2,
)
ROWS = {
    "sd15": SD15_PARAMS,
    "adamw": MINI_PARAMS,
    "adamw8bit": replace(MINI_PARAMS, optimizer="adamw8bit"),
    "dadaptation": replace(MINI_PARAMS, optimizer="dadaptation", learning_rate=1.0),
    "prodigy": replace(MINI_PARAMS, optimizer="prodigy", learning_rate=1.0),
    "schedulefree": replace(
        MINI_PARAMS, optimizer="schedulefree", schedule="constant", ema_decay=0.0
    ),
}
STEPS_PER_EPOCH = 3
SELDOM_S, ALWAYS_S = 1e9, 0  # least time between checkpoints


def make_base(row: str, folder: Path) -> Base:
    """Find the mini model, or write a file of random weights and the folder that describes it."""
    if row != "sd15":
        return Base(ROOT / "models/base/base.safetensors", ROOT / "models/base/config")
    config = folder / "config"
    base = Base(folder / "base.safetensors", config)
    if base.weights.is_file():
        return base
    models = sd15(torch.device("cpu"))
    shutil.copytree(ROOT / "models/base/config", config)
    for name in ("unet", "vae"):
        getattr(models, name).save_config(config / name)
    models.text_encoder.config.save_pretrained(config / "text_encoder")
    path = config / "tokenizer/tokenizer_config.json"
    text = {**json.loads(path.read_text()), "model_max_length": 77}
    path.write_text(json.dumps(text), encoding="utf-8")
    save_single_file(base.weights, models.unet, models.vae, models.text_encoder, {})
    return base


def examples(count: int, first: int, side_px: int) -> list[Example]:
    """Give noise for pictures."""
    return [
        Example(f"{i:03}", f"cat {i % 3}", picture(i, side_px, side_px))
        for i in range(first, first + count)
    ]


def run(row: str, folder: Path, name: str, save_every_s: float) -> Trained:
    """Train, or go on, in a scratch folder of this name."""
    params = ROWS[row]
    size = params.batch_size * params.gradient_accumulation * STEPS_PER_EPOCH
    return train(
        make_base(row, folder),
        examples(size, 0, params.resolution),
        examples(8, 500, params.resolution),
        params,
        folder / name,
        encoded=folder / "encoded",
        say=partial(print, f"{row}, {name}:", flush=True),
        save_every_s=save_every_s,
    )


def run_killed(row: str, folder: Path, name: str) -> None:
    """Start a run in a process of its own and kill it behind the first step of its second epoch."""
    words = [sys.executable, "-m", "tests.benchmarks.resume", "--folder", str(folder)]
    with subprocess.Popen([*words, row, "--run", name], cwd=ROOT) as process:
        step = STEPS_PER_EPOCH + 1
        try:
            wait_for(folder / name / f"checkpoints/step_{step:09}.safetensors", process, 400)
        finally:
            process.kill()


def newest_weights(folder: Path, name: str) -> Iterator[Tensor]:
    """Read the UNet's weights of a run's last checkpoint, in the network's order."""
    path = max((folder / name / "checkpoints").glob("step_*.safetensors"))
    with safe_open(path, "pt") as file:
        prefix = "state/parts/unet/weights/"
        count = sum(key.startswith(prefix) for key in file.keys())  # noqa: SIM118
        for i in range(count):
            yield file.get_tensor(f"{prefix}{i}")


def distance(a: Iterable[Tensor], b: Iterable[Tensor]) -> float:
    """Give the Euclidean distance of two networks."""
    pairs = zip(a, b, strict=True)
    return math.hypot(*(float((x.detach() - y.detach()).double().norm()) for x, y in pairs))


def compare(row: str, folder: Path) -> None:
    """Train three times and print how far apart the ends are."""
    if ROWS[row].optimizer == "adamw8bit" and find_spec("bitsandbytes") is None:
        print(f"{row}: not measured, for bitsandbytes is not installed", flush=True)
        return
    base = make_base(row, folder)
    began = time.monotonic()
    unbroken, again = (run(row, folder, name, SELDOM_S) for name in ("unbroken", "again"))
    run_killed(row, folder, "killed")
    killed = run(row, folder, "killed", SELDOM_S)

    start = load_models(base.weights, base.config).unet.parameters()
    way = distance(start, newest_weights(folder, "unbroken"))
    print(f"{row}: the weights went {way:.4g} from the base; {time.monotonic() - began:.0f} s")
    for name, other in (("again", again), ("killed", killed)):
        apart = distance(newest_weights(folder, "unbroken"), newest_weights(folder, name))
        losses = zip(unbroken.history.means, other.history.means, strict=True)
        loss = max(abs(x / y - 1) for x, y in losses)
        print(
            f"{row}, unbroken and {name}: {apart:.3g} apart, {apart / way:.2%} of that way; "
            f"validation losses differ by at most {loss:.4%}",
            flush=True,
        )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "rows", metavar="ROW", nargs="*", help=f"of {', '.join(ROWS)} (default: all)"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to work, 60 GB free; kept (default: a temporary one)"
    )
    parser.add_argument("--run", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["TRAIN_COMPILE"] = "0"  # three minutes that would change nothing here
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    if options.run:
        (row,) = options.rows
        run(row, options.folder, options.run, ALWAYS_S)
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"torch {torch.__version__}, {device}", flush=True)
    for row in options.rows or ROWS:
        if options.folder:
            compare(row, options.folder / row)
        else:
            with tempfile.TemporaryDirectory() as folder:
                compare(row, Path(folder))


if __name__ == "__main__":
    main()
