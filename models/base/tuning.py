"""How the base takes to fine-tuning: the gain on glossy pictures, and a style in half a minute."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

from PIL import Image
from transformers import CLIPModel

from models.base.drawing import SIDE_PX, draw_all
from models.base.heldout import planned_caption
from models.base.judge import similarities
from models.base.pictures import BASE_STYLES, STYLE_WORDS, Corpus, as_pixel_values
from stages.diffusion.model import Base, Models, load_models
from stages.diffusion.sample import SamplingParams
from stages.images.holdout import validation_rows
from stages.images.manifest import read_manifest, read_pictures
from stages.training.encode import Example
from stages.training.loop import train
from stages.training.params import TrainParams

VALIDATION_FRACTION = 0.15  # as the recipe's


def glossy_examples(corpus: Corpus, seed: int) -> tuple[list[Example], list[Example]]:
    """Split the glossy pictures into training and validation as the recipe splits its rows."""
    examples = [
        Example(p.concept, planned_caption(p.label, p.tags), webp(corpus, row))
        for row, p in enumerate(corpus.pictures)
        if p.style == "fluent-3d" and not p.tone
    ]
    held_out = set(validation_rows([e.caption for e in examples], VALIDATION_FRACTION, seed))
    return (
        [e for row, e in enumerate(examples) if row not in held_out],
        [e for row, e in enumerate(examples) if row in held_out],
    )


def webp(corpus: Corpus, row: int) -> bytes:
    """Encode a picture as the sample's pictures are."""
    out = io.BytesIO()
    Image.fromarray(corpus.pixels[row]).save(out, "WEBP", quality=90)
    return out.getvalue()


def finetune_gain(
    base: Path,
    config: Path,
    examples: list[Example],
    validation_examples: list[Example],
    params: TrainParams,
) -> dict[str, float]:
    """Fine-tune on glossy pictures.

    Returns:
        The base's validation loss, the best epoch's, that epoch, and the change in per cent.
    """
    with tempfile.TemporaryDirectory() as scratch:
        history = train(
            Base(base, config),
            examples,
            validation_examples,
            params,
            Path(scratch),
            say=lambda line: print(line, flush=True),
        ).history
    start, best = history.means[0], history.means[history.best]
    return {
        "loss_of_base": start,
        "loss_of_best": best,
        "best_epoch": history.best,
        "change_percent": 100 * (best / start - 1),
    }


def style_shift(
    base: Path,
    config: Path,
    ingredient: Path,
    clip: CLIPModel,
    prompts: list[str],
    sampling: SamplingParams,
    params: TrainParams,
) -> dict[str, float]:
    """Fine-tune on one small set and see whether plain prompts are now drawn in its style.

    Args:
        ingredient: a manifest of `models.base.make_ingredients`, named after its style.

    Returns:
        The seconds of training, and the share of pictures that the CLIP finds in the set's
        style, among the base's styles, before and after.
    """
    pictures = read_pictures(read_manifest(ingredient))
    examples = [Example(entry.id, entry.caption, image) for entry, image in pictures]
    style = BASE_STYLES.index(ingredient.stem)
    before = drawn_styles(load_models(base, config), clip, prompts, sampling)
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        trained = train(Base(base, config), examples, examples[:8], params, Path(scratch))
        seconds = time.monotonic() - started
        last = load_models(trained.weights[max(trained.weights)], config)
    after = drawn_styles(last, clip, prompts, sampling)
    return {
        "seconds": round(seconds, 1),
        "share_before": before.count(style) / len(before),
        "share_after": after.count(style) / len(after),
    }


def drawn_styles(
    models: Models, clip: CLIPModel, prompts: list[str], sampling: SamplingParams
) -> list[int]:
    """Draw prompts that name no style; give each picture's style by its number in BASE_STYLES."""
    pixel_values = as_pixel_values(draw_all(models, prompts, sampling), SIDE_PX)
    found = []
    for picture, prompt in zip(pixel_values, prompts, strict=True):
        captions = [f"{prompt}, {STYLE_WORDS[style]}" for style in BASE_STYLES]
        similarity = similarities(clip, models.tokenizer, picture[None], captions)
        found.append(int(similarity[0].argmax()))
    return found
