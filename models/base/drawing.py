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
SAMPLE_PROMPTS = (
    "red apple",
    "cat face",
    "rocket",
    "sunflower",
    "grinning face",
    "blue heart",
    "house with garden",
    "octopus",
    "hamburger",
    "sailboat",
    "guitar",
    "snowman",
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


def held_in_requests(corpus: Corpus, count: int) -> list[Request]:
    """Pick concepts that the UNet saw, each in one style that it saw it in."""
    combinations = heldout_combinations(corpus, count)
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
    drawn = [
        np.asarray(draw(models, request.prompt, seed, SIDE_PX, SIDE_PX, params))
        for seed, request in enumerate(requests)
    ]
    pixel_values = as_pixel_values(np.stack(drawn), SIDE_PX)
    labels = [request.label for request in requests]
    return retrieval(clip, models.tokenizer, pixel_values, labels)


def seconds_per_picture(models: Models, params: SamplingParams, count: int) -> float:
    """Median time to draw one picture at SIDE_PX on this machine, decoding included."""
    seconds = []
    for seed in range(count):
        started = time.perf_counter()
        draw(models, SAMPLE_PROMPTS[0], seed, SIDE_PX, SIDE_PX, params)
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
        for column, style in enumerate(BASE_STYLES):
            prompt = Request(label, style).prompt
            picture = draw(models, prompt, row, CELL_PX, CELL_PX, params)
            sheet.paste(picture, (PROMPT_PX + column * (CELL_PX + GAP_PX), top))
    return sheet
