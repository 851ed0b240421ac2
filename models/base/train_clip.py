"""Train the mini CLIP: the base's text encoder and the recipe's scorer.

  --pictures FILE   the corpus that models.base.collect drew
  --tokenizer DIR   from models.base.fit_tokenizer
  --out DIR         a CLIPModel with its tokenizer and image processor
  --report FILE     retrieval, JSON

It may know the Fluent family, as a judge that has seen the internet; but no held-out concept, no
held-out combination, and not the glossy pictures that it is tested on.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from models.base.augment import jitter_colours, placed
from models.base.judge import retrieval, tokenize
from models.base.pace import Pace, learning_rate_at
from models.base.pictures import (
    Corpus,
    CorpusParams,
    Picture,
    as_pixel_values,
    captions,
    clip_test_concepts,
    heldout_combinations,
    read_corpus,
)
from stages.harness.files import write_json
from stages.harness.params import Params, load_params
from stages.harness.paths import clear_errors, stage_paths

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # pixel values run from -1 to 1, as the VAE's
MAX_LOGIT_SCALE = math.log(100)  # arXiv 2103.00020, section 2.5
STYLES_PER_CONCEPT = 3  # in the batches that teach styles


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipParams(Params):
    """Section `clip`."""

    width: int
    layers: int
    heads: int
    image_size: int
    patch_size: int
    batch_size: int
    steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    captions_per_picture: int


def clip_config(params: ClipParams, tokenizer: CLIPTokenizer) -> CLIPConfig:
    """Describe a CLIP whose two towers have the same width and depth."""
    tower = {
        "hidden_size": params.width,
        "intermediate_size": 4 * params.width,
        "num_hidden_layers": params.layers,
        "num_attention_heads": params.heads,
        "projection_dim": params.width,
    }
    text = {
        **tower,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**tower, "image_size": params.image_size, "patch_size": params.patch_size}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=params.width)


def may_see(corpus: Corpus, params: CorpusParams) -> list[bool]:
    """Mark the pictures that the CLIP may be trained on."""
    tests = clip_test_concepts(corpus, params.clip_test_concepts)
    combinations = heldout_combinations(corpus, params.heldout_combinations)
    return [
        p.concept not in corpus.heldout
        and (p.concept, p.style) not in combinations
        and not (p.style == "fluent-3d" and (p.concept in tests or p.tone))
        for p in corpus.pictures
    ]


def tokenized_captions(
    pictures: list[Picture], tokenizer: CLIPTokenizer, count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Word each picture `count` times with its style named and `count` times without.

    Returns:
        Two tensors of input_ids, (N, count, max_length) int64.
    """
    both = [
        tokenize(
            tokenizer, [captions(p, rng, style=style) for p in pictures for _ in range(count)]
        ).view(len(pictures), count, -1)
        for style in (True, False)
    ]
    return both[0], both[1]


@dataclass(slots=True)
class ConceptSampler:
    """Draws batches in which no two pictures have the same right caption."""

    rows: Tensor  # (C, M) pictures of each concept, filled up by repetition
    generator: torch.Generator

    @classmethod
    def of(cls, concepts: list[str], generator: torch.Generator) -> ConceptSampler:
        """Group pictures by the concept that each shows."""
        rows: dict[str, list[int]] = {}
        for row, concept in enumerate(concepts):
            rows.setdefault(concept, []).append(row)
        most = max(map(len, rows.values()))
        device = generator.device
        filled = [(r * math.ceil(most / len(r)))[:most] for r in rows.values()]
        return cls(torch.tensor(filled, device=device), generator)

    def draw(self, concepts: int, pictures: int) -> Tensor:
        """Draw `pictures` pictures, perhaps repeated, of each of `concepts` concepts."""
        device, total = self.rows.device, len(self.rows)
        who = torch.randperm(total, generator=self.generator, device=device)
        who = who.repeat(math.ceil(concepts / total))[:concepts]
        columns = torch.rand(self.rows.shape, generator=self.generator, device=device)[who]
        return self.rows[who].gather(1, columns.argsort(1)[:, :pictures]).flatten()


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of CLIP; arXiv 2103.00020, figure 3."""
    logits = scale * image_embeds @ text_embeds.T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def glossy_tests(corpus: Corpus, concepts: set[str]) -> tuple[np.ndarray, list[str]]:
    """Pick the glossy pictures of some concepts, with their labels."""
    rows = [
        i
        for i, p in enumerate(corpus.pictures)
        if p.style == "fluent-3d" and not p.tone and p.concept in concepts
    ]
    return corpus.pixels[rows], [corpus.pictures[i].label for i in rows]


def train(corpus: Corpus, tokenizer: CLIPTokenizer, params: ClipParams, seed: int) -> CLIPModel:
    """Train on the pictures of `corpus`, all of which it may see."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    clip = CLIPModel(clip_config(params, tokenizer))
    clip.train()
    nn.Module.to(clip, device)
    styled, plain = tokenized_captions(
        corpus.pictures, tokenizer, params.captions_per_picture, np.random.default_rng(seed)
    )
    styled, plain = styled.to(device), plain.to(device)
    pixels = torch.from_numpy(corpus.pixels).to(device)  # (N, S, S, 3) uint8
    sampler = ConceptSampler.of([p.concept for p in corpus.pictures], generator)

    decayed = [p for p in clip.parameters() if p.ndim >= 2]
    others = [p for p in clip.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": params.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=params.learning_rate,
        betas=(0.9, 0.98),
        fused=device.type == "cuda",
    )

    def embeddings(pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        out = clip(pixel_values=pixel_values, input_ids=input_ids)
        return out.image_embeds, out.text_embeds

    if device.type == "cuda":
        embeddings = torch.compile(embeddings, dynamic=False)
    pace = Pace("clip", params.steps)
    for step in range(params.steps):
        teaches_styles = step % 2 == 1
        per_concept = STYLES_PER_CONCEPT if teaches_styles else 1
        rows = sampler.draw(params.batch_size // per_concept, per_concept)
        wording = torch.randint(styled.shape[1], (len(rows),), generator=generator, device=device)
        input_ids = (styled if teaches_styles else plain)[rows, wording]
        pixel_values = pixels[rows].permute(0, 3, 1, 2).float() / 127.5 - 1
        pixel_values = placed(pixel_values, params.image_size, (0.7, 1.12), 0.1, generator)
        pixel_values = jitter_colours(pixel_values, generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(
                step, params.learning_rate, params.warmup_steps, params.steps
            )
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            image_embeds, text_embeds = embeddings(pixel_values, input_ids)
        loss = contrastive_loss(image_embeds.float(), text_embeds.float(), clip.logit_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        pace.tick(step, loss)
    clip.eval()
    return clip


def run(
    pictures: Path,
    tokenizer: Path,
    out: Path,
    report: Path,
    params: ClipParams,
    corpus_params: CorpusParams,
) -> None:
    """Train, test and save the CLIP."""
    started = time.monotonic()
    corpus = read_corpus(pictures, corpus_params.seed)
    words = CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True)
    clip = train(corpus.select(may_see(corpus, corpus_params)), words, params, corpus_params.seed)
    clip = clip.half().float()  # as it will be stored
    tests = clip_test_concepts(corpus, corpus_params.clip_test_concepts)
    figures: dict[str, float] = {"seconds": round(time.monotonic() - started, 1)}
    for name, concepts in {
        "clip_retrieval": tests,
        "clip_retrieval_heldout": corpus.heldout,
    }.items():
        pixels, labels = glossy_tests(corpus, set(concepts))
        found = retrieval(clip, words, as_pixel_values(pixels, params.image_size), labels)
        figures |= {name: found, f"{name}_of": len(labels)}
    clip.half().save_pretrained(out)
    words.save_pretrained(out)
    CLIPImageProcessorPil(
        size={"shortest_edge": params.image_size},
        crop_size={"height": params.image_size, "width": params.image_size},
        image_mean=MEAN,
        image_std=STD,
    ).save_pretrained(out)
    write_json(report, figures)
    print(figures)


if __name__ == "__main__":
    with clear_errors():
        pictures, tokenizer, out, report, params = stage_paths(
            __doc__, "pictures", "tokenizer", "out", "report"
        )
        run(
            pictures,
            tokenizer,
            out,
            report,
            load_params("clip", ClipParams, params),
            load_params("corpus", CorpusParams, params),
        )
