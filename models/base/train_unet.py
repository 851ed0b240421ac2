"""Train the mini UNet, the part that draws, on every style but the Fluent family.

  --pictures FILE     the corpus that models.base.collect drew
  --clip DIR          from models.base.train_clip
  --autoencoder DIR   from models.base.train_autoencoder
  --out DIR           a UNet2DConditionModel, its weights averaged over the run, and its scheduler
  --report FILE       time and pictures, JSON

Pictures and captions are encoded once, in several crops and wordings, and stay on the GPU.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from models.base.augment import placed
from models.base.pace import Pace, learning_rate_at
from models.base.pictures import (
    BASE_STYLES,
    Corpus,
    CorpusParams,
    captions,
    heldout_combinations,
    read_corpus,
    resized,
)
from stages.diffusion.loss import min_snr_weights, noise_errors, stratified_timesteps
from stages.harness.files import write_json
from stages.harness.params import Params, load_params
from stages.harness.paths import clear_errors, stage_paths

STYLED_SHARE = 0.65  # of captions name their style; the rest draw in any
MAX_GRADIENT_NORM = 1.0
# SD 1.x's noise schedule: configs/stable-diffusion/v1-inference.yaml of CompVis.
NOISE_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "steps_offset": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnetParams(Params):
    """Section `unet`."""

    channels: list[int]
    layers_per_block: int
    heads: int
    norm_groups: int
    batch_size: dict[str, int]
    share_96: float
    switch_every_steps: int
    steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    ema_decay: float
    caption_dropout: float
    min_snr_gamma: float
    variants_per_picture: int
    captions_per_picture: int


def empty_unet(params: UnetParams, cross_attention_dim: int) -> UNet2DConditionModel:
    """Build SD 1.x's UNet with two levels, attention in the lower one alone."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=tuple(params.channels),
        layers_per_block=params.layers_per_block,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=params.heads,  # diffusers' name for the number of heads in SD 1.x
        norm_num_groups=params.norm_groups,
    )


def may_see(corpus: Corpus, params: CorpusParams) -> list[bool]:
    """Mark the pictures that the UNet may be trained on: nothing Fluent, nothing held out."""
    combinations = heldout_combinations(corpus, params.heldout_combinations)
    return [
        p.style in BASE_STYLES
        and p.concept not in corpus.heldout
        and (p.concept, p.style) not in combinations
        for p in corpus.pictures
    ]


@torch.no_grad()
def encode_pictures(
    vae: AutoencoderKL, pixels: np.ndarray, variants: int, generator: torch.Generator
) -> Tensor:
    """Encode each picture once as it is, and `variants - 1` times moved and scaled.

    Args:
        pixels: (N, S, S, 3) uint8.

    Returns:
        Latents (variants, N, 4, S/4, S/4), times the scaling factor, float16.
    """
    device, side = vae.device, pixels.shape[1]
    encoded = []
    for variant in range(variants):
        for batch in torch.from_numpy(pixels).split(512):
            pixel_values = batch.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            if variant:
                pixel_values = placed(pixel_values, side, (0.85, 1.0), 0.05, generator)
            means = vae.encode(pixel_values).latent_dist.mode()
            encoded.append((means * vae.config.scaling_factor).half())
    return torch.cat(encoded).view(variants, len(pixels), *encoded[0].shape[1:])


@torch.no_grad()
def encode_captions(clip: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Encode captions for the UNet: (len(texts), L, D) float16."""
    encoded = []
    for start in range(0, len(texts), 1024):
        tokens = tokenizer(
            texts[start : start + 1024], padding="max_length", truncation=True, return_tensors="pt"
        )
        hidden = clip.text_model(tokens.input_ids.to(clip.device)).last_hidden_state
        encoded.append(hidden.half())
    return torch.cat(encoded)


@torch.no_grad()
def follow(average: list[Tensor], weights: list[Tensor], decay: float) -> None:
    """Move the running average of the weights a step: decay * average + (1 - decay) * weights."""
    torch._foreach_lerp_(average, weights, 1 - decay)


def train(
    corpus: Corpus,
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    params: UnetParams,
    seed: int,
) -> UNet2DConditionModel:
    """Train on the pictures of `corpus`, all of which it may see; give the averaged weights."""
    device = clip.device
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    rng = np.random.default_rng(seed)
    latents = {
        int(side): encode_pictures(
            vae, resized(corpus.pixels, int(side)), params.variants_per_picture, generator
        )
        for side in params.batch_size
    }
    wordings = params.captions_per_picture
    texts = [
        captions(p, rng, style=i < STYLED_SHARE * wordings)
        for p in corpus.pictures
        for i in range(wordings)
    ]
    hidden = encode_captions(clip, tokenizer, texts)
    hidden = hidden.view(len(corpus.pictures), wordings, *hidden.shape[1:])
    no_caption = encode_captions(clip, tokenizer, [""])

    unet = empty_unet(params, hidden.shape[-1]).to(device, memory_format=torch.channels_last)
    noise_scheduler = DDPMScheduler(**NOISE_SCHEDULE)
    noise_scheduler.alphas_cumprod = noise_scheduler.alphas_cumprod.to(device)
    weight_at = min_snr_weights(noise_scheduler, params.min_snr_gamma)
    weights = list(unet.parameters())
    average = [w.detach().clone() for w in weights]
    optimizer = torch.optim.AdamW(
        weights,
        lr=params.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=params.weight_decay,
        fused=device.type == "cuda",
    )
    if device.type == "cuda":
        unet.compile(dynamic=False)
    pace = Pace("unet", params.steps)
    for step in range(params.steps):
        block = step // params.switch_every_steps
        large = int((block + 1) * params.share_96) > int(block * params.share_96)
        side = 96 if large else 64
        count = params.batch_size[str(side)]
        variants, total = latents[side].shape[:2]

        def draw(high: int, count: int = count) -> Tensor:
            return torch.randint(high, (count,), generator=generator, device=device)

        rows = draw(total)
        batch = latents[side][draw(variants), rows].float()
        encoder_hidden_states = hidden[rows, draw(wordings)].float()
        dropped = torch.rand(count, generator=generator, device=device) < params.caption_dropout
        encoder_hidden_states[dropped] = no_caption.float()
        noise = torch.randn(batch.shape, generator=generator, device=device)
        timesteps = stratified_timesteps(count, 1000, generator, device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(
                step, params.learning_rate, params.warmup_steps, params.steps
            )
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            errors = noise_errors(
                unet, noise_scheduler, batch, noise, timesteps, encoder_hidden_states
            )
        (weight_at[timesteps] * errors).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        follow(average, weights, min(params.ema_decay, (1 + step) / (10 + step)))
        pace.tick(step, errors.mean())
    with torch.no_grad():
        for weight, mean in zip(weights, average, strict=True):
            weight.copy_(mean)
    return unet.eval()


def run(
    pictures: Path,
    clip: Path,
    autoencoder: Path,
    out: Path,
    report: Path,
    params: UnetParams,
    corpus_params: CorpusParams,
) -> None:
    """Train and save the UNet."""
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus = read_corpus(pictures, corpus_params.seed)
    judge = CLIPModel.from_pretrained(clip, local_files_only=True, dtype=torch.float32)
    nn.Module.to(judge, device)
    tokenizer = CLIPTokenizer.from_pretrained(clip, local_files_only=True)
    vae = AutoencoderKL.from_pretrained(autoencoder, local_files_only=True)
    known = corpus.select(may_see(corpus, corpus_params))
    unet = train(
        known,
        judge.eval(),
        tokenizer,
        vae.float().to(device).eval(),
        params,
        corpus_params.seed,
    )
    unet.half().save_pretrained(out)
    DDIMScheduler(**NOISE_SCHEDULE).save_pretrained(out)
    write_json(
        report,
        {"seconds": round(time.monotonic() - started, 1), "pictures": len(known.pictures)},
    )


if __name__ == "__main__":
    with clear_errors():
        pictures, clip, autoencoder, out, report, params = stage_paths(
            __doc__, "pictures", "clip", "autoencoder", "out", "report"
        )
        run(
            pictures,
            clip,
            autoencoder,
            out,
            report,
            load_params("unet", UnetParams, params),
            load_params("corpus", CorpusParams, params),
        )
