"""Measure how far a killed and resumed run on a GPU ends from an unbroken one.

  python -m tests.benchmarks.resume [--folder DIR]

On a CPU both end with the same bits (tests/test_train.py). A GPU adds up in an order that no run
repeats, so two unbroken runs differ already: that is the tolerance. Trains an SD 1.5 with random
weights three times on noise for pictures: unbroken, unbroken again, and killed by SIGKILL within
its second epoch and started again.
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
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from stages.diffusion.model import Base, load_models, save_single_file
from stages.training.encode import Example
from stages.training.loop import Trained, train
from stages.training.ranks import alone
from tests.benchmarks.train import PARAMS, ROOT, sd15
from tests.tiny_training import picture, wait_for

SIDE_PX = 256
RUN = replace(
    PARAMS,
    resolution=SIDE_PX,
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
STEPS_PER_EPOCH = 3
SELDOM_S, ALWAYS_S = 1e9, 0  # least time between checkpoints


def write_base(folder: Path) -> None:
    """Write a single file of random weights and the config folder that describes it."""
    models = sd15(torch.device("cpu"))
    config = folder / "config"
    shutil.copytree(ROOT / "models/base/config", config)
    for name in ("unet", "vae"):
        getattr(models, name).save_config(config / name)
    models.text_encoder.config.save_pretrained(config / "text_encoder")
    path = config / "tokenizer/tokenizer_config.json"
    text = {**json.loads(path.read_text()), "model_max_length": 77}
    path.write_text(json.dumps(text), encoding="utf-8")
    save_single_file(folder / "base.safetensors", models.unet, models.vae, models.text_encoder, {})


def examples(count: int, first: int) -> list[Example]:
    """Give noise for pictures."""
    return [
        Example(f"{i:03}", f"cat {i % 3}", picture(i, SIDE_PX, SIDE_PX))
        for i in range(first, first + count)
    ]


def run(folder: Path, name: str, save_every_s: float) -> Trained:
    """Train, or go on, in a scratch folder of this name."""
    size = RUN.batch_size * RUN.gradient_accumulation * STEPS_PER_EPOCH
    return train(
        Base(folder / "base.safetensors", folder / "config"),
        examples(size, 0),
        examples(8, 500),
        RUN,
        folder / name,
        encoded=folder / "encoded",
        ranks=alone("cuda"),
        say=partial(print, f"{name}:", flush=True),
        save_every_s=save_every_s,
    )


def run_killed(folder: Path, name: str) -> None:
    """Start a run in a process of its own and kill it behind the first step of its second epoch."""
    words = [sys.executable, "-m", "tests.benchmarks.resume", "--folder", str(folder)]
    with subprocess.Popen([*words, "--run", name], cwd=ROOT) as process:
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


def compare(folder: Path) -> None:
    """Train three times and print how far apart the ends are."""
    write_base(folder)
    began = time.monotonic()
    unbroken, again = (run(folder, name, SELDOM_S) for name in ("unbroken", "again"))
    run_killed(folder, "killed")
    killed = run(folder, "killed", SELDOM_S)

    start = load_models(folder / "base.safetensors", folder / "config").unet.parameters()
    way = distance(start, newest_weights(folder, "unbroken"))
    print(f"the weights went {way:.4g} from the base; {time.monotonic() - began:.0f} s in all")
    for name, other in (("again", again), ("killed", killed)):
        apart = distance(newest_weights(folder, "unbroken"), newest_weights(folder, name))
        losses = zip(unbroken.history.means, other.history.means, strict=True)
        loss = max(abs(x / y - 1) for x, y in losses)
        print(
            f"unbroken and {name}: {apart:.3g} apart, {apart / way:.2%} of that way; validation "
            f"losses differ by at most {loss:.2%}",
            flush=True,
        )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, help="where to work, 60 GB free; kept (default: a temporary one)"
    )
    parser.add_argument("--run", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["TRAIN_COMPILE"] = "0"  # three minutes that would change nothing here
    if options.run:
        run(options.folder, options.run, ALWAYS_S)
        return
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        compare(options.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(Path(folder))


if __name__ == "__main__":
    main()
