"""The corpus in memory: pictures, concepts, words, and who may see what."""

from __future__ import annotations

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from models.base.heldout import heldout_concepts
from stages.harness.params import Params

FLUENT_STYLES = ("fluent-3d", "fluent-color", "fluent-flat")
STYLE_WORDS = {
    "fluent-3d": "glossy 3d style",
    "fluent-color": "fluent style",
    "fluent-flat": "fluent flat style",
    "noto": "noto style",
    "blob": "blob style",
    "twemoji": "twemoji style",
    "emojione": "emojione style",
    "fxemoji": "fxemoji style",
    "streamline": "streamline style",
}
BASE_STYLES = tuple(style for style in STYLE_WORDS if style not in FLUENT_STYLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusParams(Params):
    """Section `corpus`: what is kept from the models, to test them on."""

    seed: int  # of the recipe's split, and of all draws here
    clip_test_concepts: int  # whose glossy picture the CLIP never sees
    heldout_combinations: int  # pairs of concept and style that no model sees together


@dataclass(frozen=True, slots=True)
class Picture:
    """One row of the corpus without its pixels."""

    style: str
    concept: str
    label: str
    tags: tuple[str, ...]
    tone: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """Pictures and their pixels, in the table's order."""

    pictures: list[Picture]
    pixels: np.ndarray  # (N, S, S, 3) uint8
    heldout: frozenset[str]  # concepts that no model of the base may see

    def select(self, keep: list[bool]) -> Corpus:
        """Keep the rows that are marked true."""
        rows = np.flatnonzero(keep)
        return Corpus([self.pictures[i] for i in rows], self.pixels[rows], self.heldout)


def read_corpus(table: Path, seed: int) -> Corpus:
    """Read and decode the corpus that `models.base.collect` drew."""
    rows = pq.read_table(table)
    pictures = [
        Picture(row["style"], row["concept"], row["label"], tuple(row["tags"]), row["tone"])
        for row in rows.drop_columns(["image"]).to_pylist()
    ]
    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(decode, rows["image"].to_pylist())))
    return Corpus(pictures, pixels, frozenset(heldout_concepts(rows, seed)))


def decode(image: bytes) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8."""
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened.convert("RGB"))


def resized(pixels: np.ndarray, side_px: int) -> np.ndarray:
    """Resize (N, S, S, 3) uint8 pictures to (N, side, side, 3), filtered against aliasing."""
    if pixels.shape[1] == side_px:
        return pixels
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    small = F.interpolate(values, (side_px, side_px), mode="bicubic", antialias=True)
    return small.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def as_pixel_values(pixels: np.ndarray, side_px: int) -> Tensor:
    """Resize to (N, 3, side, side) float in [-1, 1]."""
    return torch.from_numpy(resized(pixels, side_px)).permute(0, 3, 1, 2).float() / 127.5 - 1


def rank(*words: str) -> bytes:
    """Order things at random, but the same way every time and whatever else there is."""
    return hashlib.sha256(":".join(words).encode()).digest()


def clip_test_concepts(corpus: Corpus, count: int) -> set[str]:
    """Pick held-in concepts whose glossy picture the CLIP never sees, to test it on."""
    candidates = {
        p.concept
        for p in corpus.pictures
        if p.style == "fluent-3d" and p.concept not in corpus.heldout
    }
    return set(sorted(candidates, key=lambda concept: rank("clip-test", concept))[:count])


def heldout_combinations(corpus: Corpus, count: int) -> set[tuple[str, str]]:
    """Pick pairs of concept and style, both well known apart, that no model sees together.

    Only pairs whose concept still has two other styles of the base to be known by.
    """
    styles: dict[str, set[str]] = {}
    for p in corpus.pictures:
        if p.style in BASE_STYLES and p.concept not in corpus.heldout:
            styles.setdefault(p.concept, set()).add(p.style)
    pairs = [(c, s) for c, known in styles.items() if len(known) >= 3 for s in sorted(known)]
    chosen: dict[str, str] = {}
    for concept, style in sorted(pairs, key=lambda pair: rank("combination", *pair)):
        if len(chosen) < count:
            chosen.setdefault(concept, style)
    return set(chosen.items())


def captions(picture: Picture, rng: np.random.Generator, *, style: bool) -> str:
    """Word a caption: the label, at times some tags, and the style's words when asked for."""
    parts = [picture.label]
    tags = [tag for tag in picture.tags if tag.lower() not in picture.label]
    if tags and rng.random() < 0.4:
        count = int(rng.integers(1, min(3, len(tags)) + 1))
        parts += [tags[i] for i in rng.permutation(len(tags))[:count]]
    if style:
        parts.append(STYLE_WORDS[picture.style])
    return ", ".join(parts)
