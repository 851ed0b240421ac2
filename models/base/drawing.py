"""How well the base draws: its pictures, and whether the CLIP recognises them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from transformers import CLIPModel

from models.base.judge import retrieval
from models.base.pictures import (
    BASE_STYLES,
    STYLE_WORDS,
    Corpus,
    as_pixel_values,
    heldout_combinations,
    rank,
)
from stages.diffusion.model import Models
from stages.diffusion.sample import SamplingParams, draw

SIDE_PX = 64
BATCH = 8  # pictures drawn at once
SAMPLE_PROMPTS = (
    "red apple",
    "cat face",
    "rocket",
    "sunflower",
    "grinning face",
    "blue heart",
    "house with garden",
    "penguin",
    "hamburger",
    "sailboat",
    "guitar",
    "umbrella",
)
PROMPT_PX, STYLE_PX, GAP_PX = 150, 22, 4  # of the contact sheet's labels and rims
CELL_PX = 96


@dataclass(frozen=True, slots=True)
class Request:
    """A concept to draw, and the style to draw it in."""

    label: str
    style: str

    @property
    def prompt(self) -> str:
        """Word it as the training captions do."""
        return f"{self.label}, {STYLE_WORDS[self.style]}"


def held_in_requests(corpus: Corpus, count: int, heldout: int) -> list[Request]:
    """Pick concepts that the UNet saw, each in one style that it saw it in."""
    combinations = heldout_combinations(corpus, heldout)
    seen = {
        p.concept: Request(p.label, p.style)
        for p in sorted(corpus.pictures, key=lambda p: rank("style", p.concept, p.style))
        if p.style in BASE_STYLES
        and p.concept not in corpus.heldout
        and (p.concept, p.style) not in combinations
    }
    chosen = sorted(seen, key=lambda concept: rank("held-in", concept))[:count]
    return [seen[concept] for concept in chosen]


def combination_requests(corpus: Corpus, count: int) -> list[Request]:
    """List the pairs of concept and style that stood together in no training set."""
    labels = {p.concept: p.label for p in corpus.pictures}
    pairs = sorted(heldout_combinations(corpus, count))
    return [Request(labels[concept], style) for concept, style in pairs]


def generated_retrieval(
    models: Models, clip: CLIPModel, requests: list[Request], params: SamplingParams
) -> float:
    """Share of drawn pictures whose label the CLIP finds among the labels of all of them."""
    pixels = draw_all(models, [request.prompt for request in requests], params)
    pixel_values = as_pixel_values(pixels, SIDE_PX)
    labels = [request.label for request in requests]
    return retrieval(clip, models.tokenizer, pixel_values, labels)


def draw_all(models: Models, prompts: list[str], params: SamplingParams) -> np.ndarray:
    """Draw each prompt at SIDE_PX, its place in the list the seed: (N, S, S, 3) uint8."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        seeds = range(start, start + len(batch))
        pictures += draw(models, batch, seeds, SIDE_PX, SIDE_PX, params)
    return np.stack([np.asarray(picture) for picture in pictures])


def seconds_per_picture(models: Models, params: SamplingParams, count: int) -> float:
    """Median time to draw one picture at SIDE_PX on this machine, decoding included."""
    seconds = []
    for seed in range(count):
        started = time.perf_counter()
        draw(models, SAMPLE_PROMPTS[:1], [seed], SIDE_PX, SIDE_PX, params)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def contact_sheet(models: Models, params: SamplingParams) -> Image.Image:
    """Draw the sample prompts, one a row, in each style of the base, one a column."""
    width = PROMPT_PX + len(BASE_STYLES) * (CELL_PX + GAP_PX)
    height = STYLE_PX + len(SAMPLE_PROMPTS) * (CELL_PX + GAP_PX)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 13)
    for column, style in enumerate(BASE_STYLES):
        centre = PROMPT_PX + column * (CELL_PX + GAP_PX) + CELL_PX // 2
        pen.text((centre, STYLE_PX // 2), STYLE_WORDS[style], "black", font, anchor="mm")
    for row, label in enumerate(SAMPLE_PROMPTS):
        top = STYLE_PX + row * (CELL_PX + GAP_PX)
        pen.text((8, top + CELL_PX // 2), label, "black", font, anchor="lm")
        prompts = [Request(label, style).prompt for style in BASE_STYLES]
        drawn = draw(models, prompts, [row] * len(prompts), CELL_PX, CELL_PX, params)
        for column, picture in enumerate(drawn):
            sheet.paste(picture, (PROMPT_PX + column * (CELL_PX + GAP_PX), top))
    return sheet
