"""Train the mini UNet, the part that draws, on every style but the Fluent family.

  --pictures FILE     the corpus that models.base.collect drew
  --clip DIR          from models.base.train_clip
  --autoencoder DIR   from models.base.train_autoencoder
  --out DIR           a UNet2DConditionModel, its weights averaged over the run, and its scheduler
  --report FILE       time and pictures, JSON

Pictures and captions are encoded once, in several crops and wordings, and stay on the GPU. A run
that is killed goes on from its last checkpoint in .work/train_unet; on SIGTERM it saves first. A
run may be lengthened as long as its learning rate has not begun to fall: `steps` is not among what
names it.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from models.base.augment import placed
from models.base.pace import Pace, trapezoid_rate_at
from models.base.pictures import (
    BASE_STYLES,
    Corpus,
    CorpusParams,
    captions,
    heldout_combinations,
    read_corpus,
    resized,
)
from stages.harness.files import sha256_file, sha256_json, write_json
from stages.harness.params import Params, load_params
from stages.harness.paths import clear_errors, stage_paths
from stages.harness.scratch import exclusive, work_dir
from stages.training.checkpoint import (
    load_checkpoint,
    load_optimizer_state,
    optimizer_state,
    save_checkpoint,
)
from stages.training.interruption import AskedToStopError, Interruptions
from stages.training.loss import min_snr_weights, prediction_errors, stratified_timesteps
from stages.training.ranks import alone

STYLED_SHARE = 0.65  # of captions name their style; the rest draw in any
MAX_GRADIENT_NORM = 1.0
SAVE_EVERY_S = 120.0
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
    decay_steps: int
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


def half_precision(device: torch.device) -> torch.autocast:
    """Compute in bfloat16 on a GPU; a CPU is no faster in it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


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
            with half_precision(device):
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


@dataclass(frozen=True, slots=True)
class Encoded:
    """The corpus as the UNet meets it, on the GPU."""

    latents: dict[int, Tensor]  # by side in px: (variants, N, 4, side / 4, side / 4)
    captions: Tensor  # (N, wordings, L, D)
    no_caption: Tensor  # (1, L, D)


def encode_corpus(
    corpus: Corpus,
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    params: UnetParams,
    seed: int,
) -> Encoded:
    """Encode all that the UNet learns from; the same seed gives the same."""
    generator = torch.Generator(clip.device).manual_seed(seed)
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
    return Encoded(
        latents=latents,
        captions=hidden.view(len(corpus.pictures), wordings, *hidden.shape[1:]),
        no_caption=encode_captions(clip, tokenizer, [""]),
    )


class Run:
    """A run in memory: it is at any moment described by `state`."""

    def __init__(self, encoded: Encoded, params: UnetParams, seed: int) -> None:
        self.encoded, self.params = encoded, params
        self.device = encoded.captions.device
        torch.manual_seed(seed)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.unet = empty_unet(params, encoded.captions.shape[-1]).to(
            self.device, memory_format=torch.channels_last
        )
        self.noise_scheduler = DDPMScheduler(**NOISE_SCHEDULE)
        self.noise_scheduler.alphas_cumprod = self.noise_scheduler.alphas_cumprod.to(self.device)
        self.weight_at = min_snr_weights(self.noise_scheduler, params.min_snr_gamma)
        self.weights: list[Tensor] = list(self.unet.parameters())
        self.average = [w.detach().clone() for w in self.weights]
        self.optimizer = torch.optim.AdamW(
            self.weights,
            lr=params.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=params.weight_decay,
            fused=self.device.type == "cuda",
        )
        self.step = 0

    def state(self) -> dict[str, Any]:
        """Give all that changes, for a checkpoint."""
        return {
            "step": self.step,
            "generator": self.generator.get_state(),
            "optimizer": optimizer_state(self.optimizer),
            "weights": self.weights,
            "average": self.average,
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self.step = state["step"]
        self.generator.set_state(state["generator"].cpu())
        load_optimizer_state(self.optimizer, state["optimizer"])
        for name in ("weights", "average"):
            for kept, saved in zip(getattr(self, name), state[name], strict=True):
                kept.copy_(saved)

    def advance(self) -> Tensor:
        """Move the weights once; give the batch's mean error."""
        params, step = self.params, self.step
        latents, encoder_hidden_states = self._batch()
        noise = torch.randn(latents.shape, generator=self.generator, device=self.device)
        timesteps = stratified_timesteps(len(latents), 1000, self.generator, self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = trapezoid_rate_at(
                step, params.learning_rate, params.warmup_steps, params.decay_steps, params.steps
            )
        with half_precision(self.device):
            errors = prediction_errors(
                self.unet, self.noise_scheduler, latents, noise, timesteps, encoder_hidden_states
            )
        (self.weight_at[timesteps] * errors).mean().backward()
        nn.utils.clip_grad_norm_(self.weights, MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(params.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1 - decay)
        self.step += 1
        return errors.detach().mean()

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Draw latents of one size and a wording of each, float32."""
        params, encoded = self.params, self.encoded
        block = self.step // params.switch_every_steps
        large = int((block + 1) * params.share_96) > int(block * params.share_96)
        side = 96 if large else 64
        count = params.batch_size[str(side)]
        variants, total = encoded.latents[side].shape[:2]

        def draw(high: int) -> Tensor:
            return torch.randint(high, (count,), generator=self.generator, device=self.device)

        rows = draw(total)
        latents = encoded.latents[side][draw(variants), rows].float()
        encoder_hidden_states = encoded.captions[rows, draw(encoded.captions.shape[1])].float()
        left_out = torch.rand(count, generator=self.generator, device=self.device)
        dropped = (left_out < params.caption_dropout)[:, None, None]
        return latents, torch.where(dropped, encoded.no_caption.float(), encoder_hidden_states)

    @torch.no_grad()
    def averaged(self) -> UNet2DConditionModel:
        """Give the UNet with its averaged weights; the run is over."""
        for weight, mean in zip(self.weights, self.average, strict=True):
            weight.copy_(mean)
        return self.unet.eval()


def train(encoded: Encoded, params: UnetParams, seed: int, scratch: Path) -> UNet2DConditionModel:
    """Train on what is encoded, from where `scratch` left off; give the averaged weights.

    Args:
        scratch: for checkpoints of this run alone.

    Raises:
        KeyboardInterrupt, SystemExit: after SIGINT or SIGTERM, with a checkpoint written.
    """
    run = Run(encoded, params, seed)
    if state := load_checkpoint(scratch, print):
        run.load_state(state)
    if run.device.type == "cuda":
        run.unet.compile(dynamic=False)
    pace = Pace("unet", params.steps, run.step)
    saved = time.monotonic()
    with Interruptions(alone()) as interruptions:
        while run.step < params.steps:
            pace.tick(run.step, run.advance())
            try:
                is_due = interruptions.heed(time.monotonic() - saved >= SAVE_EVERY_S)
            except AskedToStopError as request:
                save_checkpoint(scratch, run.step, run.state())
                print(f"saved at step {run.step}; start again to go on", flush=True)
                raise request.end from None
            if is_due:
                save_checkpoint(scratch, run.step, run.state())
                saved = time.monotonic()
    return run.averaged()


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
    encoded = encode_corpus(
        known, judge.eval(), tokenizer, vae.float().to(device).eval(), params, corpus_params.seed
    )
    course = {k: v for k, v in asdict(params).items() if k != "steps"}
    inputs = [
        sha256_file(p) for p in (pictures, *sorted(clip.iterdir()), *sorted(autoencoder.iterdir()))
    ]
    scratch = work_dir("train_unet") / sha256_json([course, asdict(corpus_params), inputs])[:16]
    with exclusive(scratch):
        unet = train(encoded, params, corpus_params.seed, scratch)
    unet.half().save_pretrained(out)
    DDIMScheduler(**NOISE_SCHEDULE).save_pretrained(out)
    write_json(
        report,
        {"seconds": round(time.monotonic() - started, 1), "pictures": len(known.pictures)},
    )
    shutil.rmtree(scratch)


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
