"""Fixture `tiny_sd`: Stable Diffusion's real classes with few channels and random weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

MAX_LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@dataclass
class TinySD:
    """Random networks, and the config folder that describes them."""

    unet: "UNet2DConditionModel"
    vae: "AutoencoderKL"
    text_encoder: "CLIPTextModel"
    config: Path


@pytest.fixture
def tiny_sd(tmp_path: Path) -> TinySD:
    return make_tiny_sd(tmp_path / "config")


def make_tiny_sd(
    config: Path, *, layers_per_block: int = 1, attention: tuple[bool, ...] = (True, False)
) -> TinySD:
    """Make networks and their config folder.

    Args:
        config: the folder to write.
        layers_per_block: of UNet and VAE.
        attention: whether the UNet's blocks attend to the caption, from the outer to the inner.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    vocabulary, merges = tiny_vocabulary()
    widths = tuple(16 * (i + 1) for i in range(len(attention)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=4,
            layers_per_block=layers_per_block,
            block_out_channels=widths,
            norm_num_groups=8,
            down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
            up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attention[::-1]],
            cross_attention_dim=32,
            attention_head_dim=2,
        )
        vae = AutoencoderKL(
            sample_size=32,
            layers_per_block=layers_per_block,
            block_out_channels=(8, 8, 16, 16),
            norm_num_groups=4,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            latent_channels=4,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                intermediate_size=64,
                num_attention_heads=2,
                num_hidden_layers=2,
                max_position_embeddings=MAX_LENGTH,
                bos_token_id=vocabulary[START],
                eos_token_id=vocabulary[END],
                pad_token_id=vocabulary[END],
            )
        )
        for part in (unet, vae, text_encoder):
            for parameter in part.parameters():
                # biases and scales start at 0 and 1; values that float16 holds round-trip exactly
                parameter.data.normal_(std=0.1).copy_(parameter.data.half())
            part.eval()
    unet.save_config(config / "unet")
    vae.save_config(config / "vae")
    text_encoder.config.save_pretrained(config / "text_encoder")
    write_json(config / "model_index.json", MODEL_INDEX)
    write_json(config / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_tokenizer(config / "tokenizer", vocabulary, merges)
    return TinySD(unet, vae, text_encoder, config)


def tiny_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Give the printable characters of ASCII, alone and at a word's end, and one merged word."""
    characters = [chr(code) for code in range(33, 127)]
    merges = [("c", "a"), ("ca", "t</w>")]
    tokens = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in merges)]
    return {token: i for i, token in enumerate([*tokens, START, END])}, merges


def write_tokenizer(
    folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]]
) -> None:
    write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH}
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
