"""A training run of seconds: random networks, noise for pictures.

  python -m tests.tiny_training BASE SCRATCH PARAMS.yaml

trains in a process of its own, also under torchrun, and prints what the run says. "{rank}" in
SCRATCH gives each process a folder of its own.
"""

import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.diffusion.model import Base, save_single_file
from stages.diffusion.sample import SamplingParams
from stages.harness.files import sha256_file
from stages.harness.params import load_params
from stages.training.encode import Example
from stages.training.loop import Trained, train
from stages.training.params import SamplesParams, TrainParams
from stages.training.ranks import joined
from tests.tiny_sd import make_tiny_sd

ROOT = Path(__file__).parent.parent
PARAMS = TrainParams(
    resolution=16,
    bucket_step_px=8,
    max_aspect=3.0,  # pictures of 2 to 1 have a bucket of their own then
    learning_rate=2e-3,
    text_encoder_learning_rate=0.0,
    optimizer="adamw",
    weight_decay=0.01,
    batch_size=4,
    gradient_accumulation=2,
    max_epochs=3,
    checkpoint_every_epochs=2,
    caption_dropout=0.1,
    validation_timesteps=2,
    stop_patience=0,
    seed=1,
    precision="fp32",
    max_gradient_norm=1.0,
    ema_decay=0.5,
    min_snr_gamma=5.0,
    noise_offset=0.05,
    schedule="constant",
    schedule_epochs=4,
    warmup_steps=0,
    gradient_checkpointing=False,
    activation_memory=1.0,
    max_skipped_share=0.05,
    prediction_type="epsilon",
    zero_terminal_snr=False,
    samples=SamplesParams(
        every_epochs=0,
        prompts=(),
        seed=1,
        sampling=SamplingParams(sampler="ddim", steps=2, guidance=1.0, negative_prompt=""),
    ),
)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep two test processes from waiting for each other's threads; bits depend on the count."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder with base.safetensors and config/."""
    folder = tmp_path_factory.mktemp("base")
    tiny = make_tiny_sd(folder / "config", attention=(True,))
    save_single_file(
        folder / "base.safetensors", tiny.unet, tiny.vae, tiny.text_encoder, {"name": "tiny"}
    )
    return folder


def start_from(base: Path) -> Base:
    return Base(base / "base.safetensors", base / "config")


def v_prediction_config(base: Path, folder: Path) -> Path:
    """Copy the base's config folder, for a UNet that predicts v."""
    config = folder / "config"
    shutil.copytree(base / "config", config)
    path = config / "scheduler/scheduler_config.json"
    text = path.read_text(encoding="utf-8").replace('"epsilon"', '"v_prediction"')
    path.write_text(text, encoding="utf-8")
    return config


def picture(seed: int, width: int = 16, height: int = 16) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pictures(count: int, first: int = 0) -> list[Example]:
    """Make pictures of two shapes."""
    return [
        Example(f"{i:03}", f"cat {i % 3}", picture(i, 32 if i % 3 else 16))
        for i in range(first, first + count)
    ]


EXAMPLES, HELD_OUT = pictures(15), pictures(6, first=100)


def hashes(trained: Trained) -> dict[int, str]:
    return {epoch: sha256_file(path) for epoch, path in trained.weights.items()}


def start(base: Path, scratch: Path, params: TrainParams = PARAMS, **others: object) -> Trained:
    return train(start_from(base), EXAMPLES, HELD_OUT, params, scratch, **others)  # type: ignore[arg-type]


def command(
    base: Path, scratch: Path, params: TrainParams, *more: str, program: str = __name__
) -> list[str]:
    """Write params down and give the command that trains with them."""
    path = scratch.with_suffix(".yaml")
    text = json.dumps({"train": asdict(params)})  # JSON is YAML, and knows no tuples
    path.write_text(text, encoding="utf-8")
    return [sys.executable, *more, "-m", program, str(base), str(scratch), str(path)]


def wait_for(path: Path, process: "subprocess.Popen[bytes]", patience_s: float = 60) -> None:
    """Wait until a file, or one that sorts after it, stands in its folder."""
    deadline = time.monotonic() + patience_s
    while not any(p.name >= path.name for p in path.parent.glob("step_*.safetensors")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, f"no {path.name} in time"
        time.sleep(0.005)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined() as ranks:
        start(
            Path(sys.argv[1]),
            Path(sys.argv[2].format(rank=ranks.rank)),
            load_params("train", TrainParams, Path(sys.argv[3])),
            ranks=ranks,
            save_every_s=0,
            say=partial(print, flush=True),
        )
