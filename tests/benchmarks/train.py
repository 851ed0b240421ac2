"""Time training of an SD 1.5 with random weights: ours, the peers' way, and the floor.

  python -m tests.benchmarks.train ROW …

on a machine with an NVIDIA GPU. A ROW is a key of ROWS below; all of one call follow each other,
for absolute times drift: compare within a call. The peers' way is what EveryDream2, kohya's
scripts and diffusers' example do by default: float16 autocast with a scaler, VAE and text encoder
in every step, foreach AdamW, nothing compiled. `mini` runs anywhere: the CPU trainer on the mini
model.
"""

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.diffusion.model import Models, load_models
from stages.harness.params import load_params
from stages.training.dataset import CAPTION, LATENTS, NO_CAPTION, Dataset, ahead
from stages.training.draw import Drawn, draw_training
from stages.training.learner import Learner
from stages.training.params import TrainParams
from stages.training.part import make_parts
from stages.training.ranks import Ranks, alone, joined
from tests.test_single_file import sd15_networks

ROOT = Path(__file__).parents[2]
MODULE = "tests.benchmarks.train"
SECONDS = 3.0  # of each measurement, after its warm-up
TURNS = 3
# TFLOP of the UNet's forward and backward pass for one picture, by resolution
UNET_TFLOP = {512: 2.41, 768: 6.44}
PARAMS = replace(
    load_params("train.512", TrainParams, ROOT / "profiles/sd15.yaml"),
    optimizer="adamw",
    learning_rate=1e-6,
    text_encoder_learning_rate=0.0,
    batch_size=64,
)


def sd15(device: torch.device) -> Models:
    """Build SD 1.5's networks with random weights; no tokenizer, for captions are random too."""
    from diffusers import DDPMScheduler

    torch.manual_seed(0)
    with device:
        networks = sd15_networks()
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return Models(*networks, None, schedule)  # type: ignore[arg-type]


@contextmanager
def random_dataset(resolution: int, count: int, tokens: bool) -> Iterator[Dataset]:
    """Write encoded examples of one bucket, as training reads them."""
    side = resolution // 8
    generator = torch.Generator().manual_seed(0)

    def caption() -> Tensor:
        if tokens:
            return torch.randint(0, 49408, (77,), generator=generator)
        return torch.randn(77, 768, generator=generator).bfloat16()

    tensors = {}
    for i in range(count):
        tensors[f"{LATENTS}{i:05}"] = torch.randn(4, side, side, generator=generator)
        tensors[f"{CAPTION}{i:05}"] = caption()
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder, "000000.safetensors"))
        save_file({CAPTION: caption()}, Path(folder, NO_CAPTION))
        yield Dataset(Path(folder))


def steps_per_second(step: Callable[[], object], ranks: Ranks, warm_up: int = 3) -> float:
    """Take steps for a while and count them."""
    for _ in range(warm_up):
        step()
    _wait(ranks.device)
    began, count = time.perf_counter(), 0
    while ranks.agree(int(time.perf_counter() - began < SECONDS)):
        step()
        count += 1
    _wait(ranks.device)
    return count / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ours(
    params: TrainParams, ranks: Ranks, models: Models | None = None
) -> tuple[float, float, float]:
    """Train; give examples a second, GiB at the peak, and the share of time spent on loading."""
    device = ranks.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    models = models or sd15(device)
    learner = Learner(models, make_parts(models, params, device), params, ranks)
    size = params.batch_size * params.gradient_accumulation
    with random_dataset(params.resolution, size, params.trains_text_encoder) as dataset:
        rows = list(range(size))
        batches = [rows[i : i + params.batch_size] for i in range(0, size, params.batch_size)]
        own = ranks.share(batches)
        total, full = learner.total_timesteps, learner.full_batch
        draw = partial(draw_training, dataset, params, total, full, 1)
        drawn = ahead(draw, cycle(own))

        def with_loading() -> None:
            learner.step(islice(drawn, len(own)), size, 0, 1)

        ready = [draw(rows).to(device) for rows in own]

        def without_loading() -> None:
            learner.step(ready, size, 0, 1)

        rate = without = 0.0
        for _ in range(TURNS):  # in turn, for cards grow hot and slow
            rate += steps_per_second(with_loading, ranks) / TURNS
            without += steps_per_second(without_loading, ranks, warm_up=1) / TURNS
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return rate * size, peak, max(0.0, 1 - rate / without)


def peers(resolution: int, batch_size: int, device: torch.device, *, text: bool) -> float:
    """Train as most scripts do; give examples a second."""
    models = sd15(device)
    trained: list[nn.Module] = [models.unet, *([models.text_encoder] if text else [])]
    for network in (models.unet, models.vae, models.text_encoder):
        network.requires_grad_(network in trained)
    weights = [weight for network in trained for weight in network.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, foreach=True)
    scaler = torch.amp.GradScaler("cuda")
    vae = models.vae.half()
    schedule = models.noise_scheduler

    # as a worker process would hand them over
    pictures = torch.randn(batch_size, 3, resolution, resolution).half().pin_memory()
    texts = torch.randint(0, 49408, (batch_size, 77)).pin_memory()

    def step() -> None:
        pixel_values = pictures.to(device, non_blocking=True)
        input_ids = texts.to(device, non_blocking=True)
        with torch.autocast("cuda", torch.float16):
            with torch.no_grad():
                latents = vae.encode(pixel_values).latent_dist.sample() * 0.18215
            with nullcontext() if text else torch.no_grad():
                captions = models.text_encoder(input_ids).last_hidden_state
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (batch_size,), device=device)
            noisy = schedule.add_noise(latents, noise, timesteps)
            noise_pred = models.unet(noisy, timesteps, captions).sample
        loss = F.mse_loss(noise_pred.float(), noise.float())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(weights, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # for the progress bar

    return steps_per_second(step, alone(device)) * batch_size


def ceiling() -> float:
    """Multiply large bf16 matrices; TFLOP/s."""
    side = 8192
    a, b = (torch.randn(side, side, device="cuda").bfloat16() for _ in range(2))
    return 2 * side**3 / 1e12 * steps_per_second(lambda: a @ b, alone())


def show(label: str, params: TrainParams, baseline: float = 0.0) -> None:
    """Measure ours and print it against a baseline."""
    rate, peak, loading = ours(params, alone())
    flops = rate * UNET_TFLOP[params.resolution]
    against = f" = {rate / baseline:.2f} x {baseline:.1f}" if baseline else ""
    print(
        f"{label}, {params.resolution} px, batch {params.batch_size}: {rate:.1f}/s{against}; UNet "
        f"at {flops:.0f} TFLOP/s, peak {peak:.1f} GiB, loading {loading:.1%}",
        flush=True,
    )
    _tidy()


def _tidy() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def against_peers(resolution: int, batch_size: int, peers_batch: int, *, text: bool) -> None:
    """Print ours and the peers' way."""
    baseline = peers(resolution, peers_batch, torch.device("cuda"), text=text)
    _tidy()
    what = "UNet and text encoder" if text else "UNet alone"
    print(f"peers, {what}, {resolution} px, batch {peers_batch}: {baseline:.1f}/s", flush=True)
    rate = 5e-7 if text else 0.0
    params = replace(
        PARAMS, resolution=resolution, batch_size=batch_size, text_encoder_learning_rate=rate
    )
    show(f"ours, {what}", params, baseline)


def memory() -> None:
    """Print what little memory does."""
    show("memory, AdamW", replace(PARAMS, batch_size=16, activation_memory=0.8))
    small_memory()


def small_memory() -> None:
    """Print what the least memory does."""
    small = replace(PARAMS, batch_size=4, optimizer="adamw8bit", gradient_checkpointing=True)
    show("memory, 8-bit AdamW and checkpointing", small)


def start() -> None:
    """Print how long a fresh process takes to its first step, its code compiled before."""
    for label in ("first start", "second start, compiled code on disk"):
        print(f"{label}:", flush=True)
        subprocess.run([sys.executable, "-m", MODULE, "first-step"], cwd=ROOT, check=True)


def first_step() -> None:
    """Take one step and end."""
    device = torch.device("cuda")
    models = sd15(device)
    learner = Learner(models, make_parts(models, PARAMS, device), PARAMS, alone())
    size = PARAMS.batch_size
    with random_dataset(PARAMS.resolution, size, tokens=False) as dataset:
        drawn = draw_training(dataset, PARAMS, 1000, learner.full_batch, 1, list(range(size)))
        learner.step([drawn], size, 0, 1)
    torch.cuda.synchronize()
    print(f"first step done after {time.time() - psutil.Process().create_time():.1f} s", flush=True)


def two() -> None:
    """Print two GPUs against one, both with the same global batch."""
    rates = {}
    for count in (1, 2):
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        done = subprocess.run(
            [sys.executable, *words, "-m", MODULE, "share"],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,  # what goes wrong is seen on stderr
            text=True,
        )
        rates[count] = float(done.stdout.split()[-1])
    print(
        f"two GPUs, 512 px, 2 x {PARAMS.batch_size} a step: {rates[2]:.1f}/s = "
        f"{rates[2] / rates[1]:.2f} x one's {rates[1]:.1f}/s",
        flush=True,
    )


def share() -> None:
    """Train with whoever torchrun started; the first one prints examples a second."""
    with joined() as ranks:
        rate, _, _ = ours(replace(PARAMS, gradient_accumulation=2), ranks)
        if ranks.is_first:
            print(rate)


def mini() -> None:
    """Print what an example costs on the CPU, optimizer included."""
    base = ROOT / "models/base"
    models = load_models(base / "base.safetensors", base / "config")
    params = replace(PARAMS, resolution=64, batch_size=16, precision="fp32")
    cpu = torch.device("cpu")
    learner = Learner(models, make_parts(models, params, cpu), params, alone(cpu))
    side, width = 64 // 4, models.unet.config.cross_attention_dim
    generator = torch.Generator().manual_seed(0)
    drawn = Drawn(
        tuple(map(str, range(16))),
        torch.randn(16, 4, side, side, generator=generator),
        torch.randn(16, 4, side, side, generator=generator),
        torch.randint(0, 1000, (16,), generator=generator),
        torch.randn(16, models.tokenizer.model_max_length, width, generator=generator),
        torch.ones(16),
    )
    rate = steps_per_second(lambda: learner.step([drawn], 16, 0, 1), alone("cpu"))
    weights = sum(weight.numel() for weight in learner.weights)
    print(f"mini, {weights / 1e6:.1f} M weights, 64 px, batch 16: {1000 / rate / 16:.1f} ms each")


ROWS: dict[str, Callable[[], None]] = {
    "ceiling": lambda: print(f"bf16 matrix product: {ceiling():.0f} TFLOP/s", flush=True),
    "512": lambda: against_peers(512, 64, 16, text=False),
    "768": lambda: against_peers(768, 28, 8, text=False),
    "512-text": lambda: against_peers(512, 64, 16, text=True),
    "768-text": lambda: against_peers(768, 28, 8, text=True),
    "memory": memory,
    "small-memory": small_memory,
    "start": start,
    "two": two,
    "mini": mini,
    "share": share,
    "first-step": first_step,
}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", metavar="ROW", nargs="+", choices=ROWS)
    rows = parser.parse_args().rows
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / ".work/compiled"))
    if torch.cuda.is_available() and rows != ["share"]:
        print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    for row in rows:
        ROWS[row]()


if __name__ == "__main__":
    main()
