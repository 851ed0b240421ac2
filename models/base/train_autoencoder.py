"""Train the mini autoencoder: pictures to latents of a quarter of their side, and back.

  --pictures FILE   the corpus that models.base.collect drew
  --out DIR         an AutoencoderKL
  --report FILE     PSNR, JSON

It sees every style, for an autoencoder learns to copy and not to draw; but no held-out concept.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from models.base.augment import placed
from models.base.pace import Pace, learning_rate_at
from models.base.pictures import Corpus, CorpusParams, as_pixel_values, read_corpus, resized
from stages.harness.files import write_json
from stages.harness.params import Params, load_params
from stages.harness.paths import clear_errors, stage_paths

SIDES_PX = (64, 96)
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderParams(Params):
    """Section `autoencoder`."""

    channels: list[int]
    latent_channels: int
    norm_groups: int
    batch_px: int
    steps: int
    learning_rate: float
    warmup_steps: int
    kl_weight: float
    switch_every_steps: int


def empty_autoencoder(params: AutoencoderParams) -> AutoencoderKL:
    """Build SD 1.x's autoencoder, with fewer levels, channels and layers."""
    levels = len(params.channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(params.channels),
        layers_per_block=1,
        latent_channels=params.latent_channels,
        norm_num_groups=params.norm_groups,
        sample_size=max(SIDES_PX),
    )


def reconstruction_loss(decoded: Tensor, pixel_values: Tensor) -> Tensor:
    """Weigh squared error (for PSNR), absolute error and the error of edges (for crispness)."""
    error = decoded - pixel_values
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return 10 * error.square().mean() + 0.5 * error.abs().mean() + 0.25 * edges


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Mean over elements of KL(N(mean, variance) || N(0, 1)); arXiv 1312.6114, appendix B."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


@torch.no_grad()
def psnr(vae: AutoencoderKL, pixel_values: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio, in dB, after 8-bit rounding."""
    ratios = []
    for batch in pixel_values.split(128):
        batch = batch.to(vae.device)
        decoded = vae.decode(vae.encode(batch).latent_dist.mode()).sample
        levels = [((x.clamp(-1, 1) + 1) * 127.5).round() for x in (decoded, batch)]
        mse = (levels[0] - levels[1]).square().mean((1, 2, 3)).clamp(min=1e-3)
        ratios.append(10 * torch.log10(255**2 / mse))
    return torch.cat(ratios).mean().item()


@torch.no_grad()
def latent_std(vae: AutoencoderKL, pixel_values: Tensor) -> float:
    """Standard deviation of all latents: SD's scaling_factor is one over it.

    Source: "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752, G.
    """
    means = [vae.encode(p.to(vae.device)).latent_dist.mode() for p in pixel_values.split(128)]
    return torch.cat(means).std().item()


def train(corpus: Corpus, params: AutoencoderParams, seed: int) -> AutoencoderKL:
    """Train on the pictures of `corpus`, all of which it may see."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    vae = empty_autoencoder(params).to(device, memory_format=torch.channels_last).train()
    if device.type == "cuda":
        vae.encoder.compile(dynamic=False)
        vae.decoder.compile(dynamic=False)
    pixels = {side: torch.from_numpy(resized(corpus.pixels, side)).to(device) for side in SIDES_PX}
    optimizer = torch.optim.AdamW(
        vae.parameters(),
        lr=params.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=0.0,
        fused=device.type == "cuda",
    )
    pace = Pace("autoencoder", params.steps)
    for step in range(params.steps):
        side = SIDES_PX[step // params.switch_every_steps % len(SIDES_PX)]
        rows = torch.randint(
            len(pixels[side]), (params.batch_px // side**2,), generator=generator, device=device
        )
        pixel_values = pixels[side][rows].permute(0, 3, 1, 2).float() / 127.5 - 1
        pixel_values = placed(pixel_values, side, (0.75, 1.05), 0.08, generator)
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(
                step, params.learning_rate, params.warmup_steps, params.steps
            )
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            moments = vae.quant_conv(vae.encoder(pixel_values)).float()
            mean, log_variance = moments.chunk(2, dim=1)
            log_variance = log_variance.clamp(-30, 20)
            noise = torch.randn(mean.shape, generator=generator, device=device)
            latents = mean + (0.5 * log_variance).exp() * noise
            decoded = vae.decoder(vae.post_quant_conv(latents)).float()
        loss = reconstruction_loss(decoded, pixel_values)
        (loss + params.kl_weight * kl_divergence(mean, log_variance)).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        pace.tick(step, loss)
    return vae.eval()


def run(
    pictures: Path, out: Path, report: Path, params: AutoencoderParams, corpus_params: CorpusParams
) -> None:
    """Train, test and save the autoencoder."""
    started = time.monotonic()
    corpus = read_corpus(pictures, corpus_params.seed)
    known = corpus.select([p.concept not in corpus.heldout for p in corpus.pictures])
    trained = train(known, params, corpus_params.seed)
    vae = empty_autoencoder(params).to(trained.device).eval()  # without compiled modules
    halves = {key: value.half().float() for key, value in trained.state_dict().items()}
    vae.load_state_dict(halves)  # rounded as it will be stored

    figures: dict[str, float] = {"seconds": round(time.monotonic() - started, 1)}
    unseen = corpus.select(
        [p.style == "fluent-3d" and p.concept in corpus.heldout for p in corpus.pictures]
    )
    for side in SIDES_PX:
        figures[f"psnr_{side}"] = psnr(vae, as_pixel_values(unseen.pixels, side))
    base = known.select([not p.style.startswith("fluent") for p in known.pictures])
    std = latent_std(vae, as_pixel_values(base.pixels[::5], 64))
    vae.register_to_config(scaling_factor=round(1 / std, 4))
    figures["latent_std"] = std
    vae.half().save_pretrained(out)
    write_json(report, figures)
    print(figures)


if __name__ == "__main__":
    with clear_errors():
        pictures, out, report, params = stage_paths(__doc__, "pictures", "out", "report")
        run(
            pictures,
            out,
            report,
            load_params("autoencoder", AutoencoderParams, params),
            load_params("corpus", CorpusParams, params),
        )
