"""How well a picture shows its prompt, as a CLIP sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SCORER_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


class Scorer:
    """A transformers CLIPModel as a judge: the mini CLIP, CLIP itself or PickScore."""

    def __init__(self, folder: Path) -> None:
        """Load the model, its tokenizer and its image processor.

        Args:
            folder: config.json, model.safetensors, preprocessor_config.json and a tokenizer.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if the model is no CLIPModel, or its file does not hold all its weights.
        """
        _check_folder(folder)
        from safetensors import SafetensorError
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        try:
            loaded: Any = CLIPModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (SafetensorError, RuntimeError) as error:  # damaged, or of other shapes
            raise ValueError(f"{folder}/model.safetensors: {error}. Fetch it again") from None
        clip, told = loaded
        if missing := sorted(told["missing_keys"]):  # the library makes them up
            raise ValueError(
                f"{folder}/model.safetensors: not a whole CLIPModel: {missing[0]} is missing, one "
                f"of {len(missing)}"
            )
        self.clip = clip.eval()
        torch.nn.Module.to(self.clip, self.device)
        self._text_embeds: dict[str, Tensor] = {}  # by prompt, each (1, D) of length 1

    @property
    def width(self) -> int:
        """Say how many numbers an embedding has."""
        return int(self.clip.config.projection_dim)

    @torch.inference_mode()
    def embed(self, picture: Image.Image) -> Tensor:
        """Embed one picture, by itself, so that no other picture moves the last digit.

        Returns:
            (1, D), of length 1.
        """
        pixel_values = self.processor(picture.convert("RGB"), return_tensors="pt").pixel_values
        features = self.clip.get_image_features(pixel_values=pixel_values.to(self.device))
        return F.normalize(features.pooler_output)

    @torch.inference_mode()
    def score(self, picture: Image.Image, prompt: str) -> float:
        """Score one picture; see `score_embedding`."""
        return self.score_embedding(self.embed(picture), prompt)

    @torch.inference_mode()
    def score_embedding(self, embedding: Tensor, prompt: str) -> float:
        """Score a picture that `embed` embedded.

        Returns:
            exp(logit_scale) * cosine of picture and prompt: PickScore as its authors compute it
            (arXiv 2305.01569), and CLIP's own logit (arXiv 2103.00020).
        """
        cosine = (embedding * self._embedded(prompt)).sum()
        return float((self.clip.logit_scale.exp() * cosine).item())

    def _embedded(self, prompt: str) -> Tensor:
        """Embed a prompt once."""
        if prompt not in self._text_embeds:
            tokens = self.tokenizer(
                [prompt], padding="max_length", truncation=True, return_tensors="pt"
            )
            features = self.clip.get_text_features(
                input_ids=tokens.input_ids.to(self.device),
                attention_mask=tokens.attention_mask.to(self.device),
            )
            self._text_embeds[prompt] = F.normalize(features.pooler_output)
        return self._text_embeds[prompt]


def _check_folder(folder: Path) -> None:
    missing = [name for name in SCORER_FILES if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        missing.append("tokenizer.json (or vocab.json and merges.txt)")
    if missing:
        raise FileNotFoundError(
            f"{folder}: not a CLIPModel folder: {missing[0]} is missing. A scorer is what "
            "CLIPModel.save_pretrained writes, with its tokenizer and image processor beside it"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder}/config.json: not JSON: {error}") from None
    kind = config.get("model_type")
    if kind != "clip":
        raise ValueError(
            f"{folder}: not a CLIPModel but model_type {kind!r}. CLIP and PickScore can score"
        )
