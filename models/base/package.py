"""Put the trained parts together: one single file, its config folder, and the CLIP.

  --clip DIR      from models.base.train_clip
  --trained DIR   autoencoder/ and unet/, as their training stages left them
  --out DIR       base.safetensors and config/

The base's text encoder is the CLIP's text tower, as in SD 1.5.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel

from stages.diffusion.model import save_single_file
from stages.harness.paths import clear_errors, stage_paths

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
METADATA = {
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.implementation": "diffusers",
    "modelspec.title": "Cosmopolitan mini base",
    "modelspec.author": "Cosmopolitan contributors",
    "modelspec.license": "MIT for the weights; the pictures' licences are in NOTICE",
    "modelspec.resolution": "64x64",
    "modelspec.description": "A Stable Diffusion in miniature, trained on emoji: see models/base",
}


def run(clip_folder: Path, trained: Path, out: Path) -> None:
    """Write the files that the recipe depends on."""
    clip = CLIPModel.from_pretrained(clip_folder, local_files_only=True)
    vae = AutoencoderKL.from_pretrained(trained / "autoencoder", local_files_only=True)
    unet = UNet2DConditionModel.from_pretrained(trained / "unet", local_files_only=True)
    save_single_file(out / "base.safetensors", unet, vae, clip.text_model, METADATA, torch.float16)

    config = out / "config"
    for folder in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        (config / folder).mkdir(parents=True, exist_ok=True)
    unet.save_config(config / "unet")
    vae.save_config(config / "vae")
    text_config = clip.text_model.config
    text_config.architectures = ["CLIPTextModel"]
    text_config.save_pretrained(config / "text_encoder")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(clip_folder / name, config / "tokenizer" / name)
    name = "scheduler_config.json"
    shutil.copyfile(trained / "unet" / name, config / "scheduler" / name)
    index = json.dumps(MODEL_INDEX, indent=2)
    (config / "model_index.json").write_text(index + "\n", "utf-8")


if __name__ == "__main__":
    with clear_errors():
        clip, trained, out, _ = stage_paths(__doc__, "clip", "trained", "out")
        run(clip, trained, out)
