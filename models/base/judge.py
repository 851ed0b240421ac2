"""The CLIP as a judge: which caption is a picture's?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Encode texts to input_ids, (len(texts), max_length) int64."""
    input_ids: Tensor = tokenizer(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return input_ids


@torch.no_grad()
def similarities(
    clip: CLIPModel, tokenizer: CLIPTokenizer, pixel_values: Tensor, texts: list[str]
) -> Tensor:
    """Compare pictures with texts: (pictures, texts), the cosine of their embeddings.

    Args:
        pixel_values: (N, 3, S, S) float in [-1, 1], S the CLIP's own size.
    """
    device = clip.device
    image_embeds = torch.cat(
        [clip.get_image_features(p.to(device)).pooler_output for p in pixel_values.split(256)]
    )
    text_embeds = clip.get_text_features(tokenize(tokenizer, texts).to(device)).pooler_output
    return F.normalize(image_embeds.float()) @ F.normalize(text_embeds.float()).T


def retrieval(
    clip: CLIPModel, tokenizer: CLIPTokenizer, pixel_values: Tensor, texts: list[str]
) -> float:
    """Share of pictures whose own text is nearest among all the texts."""
    nearest = similarities(clip, tokenizer, pixel_values, texts).argmax(1).cpu()
    return (nearest == torch.arange(len(texts))).double().mean().item()
