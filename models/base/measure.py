"""Measure the packaged base: does it draw what it is asked for, and does it take to fine-tuning?

--pictures FILE     the corpus that models.base.collect drew
--ingredients DIR   from models.base.make_ingredients
--trained DIR       where the training stages left clip.json and autoencoder.json
--base DIR          base.safetensors, config/ and clip/
--samples FILE      a contact sheet, PNG
--out FILE          all figures, JSON
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPModel

from models.base.drawing import (
    combination_requests,
    contact_sheet,
    generated_retrieval,
    held_in_requests,
    seconds_per_picture,
)
from models.base.pictures import CorpusParams, read_corpus
from models.base.tuning import finetune_gain, glossy_examples, style_shift
from stages.diffusion.model import load_models
from stages.diffusion.sample import SamplingParams
from stages.harness.files import replacing, write_json
from stages.harness.params import Params, load_params
from stages.harness.paths import clear_errors, stage_paths
from stages.training.params import TrainParams

FROM_REPORTS = {
    "clip.json": ("clip_retrieval", "clip_retrieval_heldout"),
    "autoencoder.json": ("psnr_64", "psnr_96"),
}
TIMED_PICTURES = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureParams(Params):
    """Section `measure`."""

    requests: int  # pictures drawn for each retrieval, and captions to tell apart
    style_prompts: int  # pictures drawn before and after each style's training
    sampling: SamplingParams
    finetune: dict[str, TrainParams]  # by resolution
    ingredient: TrainParams


def run(
    pictures: Path,
    ingredients: Path,
    trained: Path,
    base: Path,
    samples: Path,
    out: Path,
    params: MeasureParams,
    corpus_params: CorpusParams,
) -> None:
    """Draw, fine-tune, and write the figures."""
    weights, config = base / "base.safetensors", base / "config"
    corpus = read_corpus(pictures, corpus_params.seed)
    clip = CLIPModel.from_pretrained(base / "clip", local_files_only=True, dtype=torch.float32)
    models = load_models(weights, config)
    figures: dict[str, object] = {}
    for name, keys in FROM_REPORTS.items():
        report = json.loads((trained / name).read_text("utf-8"))
        figures |= {key: report[key] for key in keys}

    figures["seconds_per_picture"] = seconds_per_picture(models, params.sampling, TIMED_PICTURES)
    figures["threads"] = torch.get_num_threads()
    with replacing(samples) as scratch:
        contact_sheet(models, params.sampling).save(scratch, "PNG", optimize=True)
    heldout = corpus_params.heldout_combinations
    held_in = held_in_requests(corpus, params.requests, heldout)
    for name, requests in {
        "generated_retrieval": held_in,
        "generated_retrieval_combinations": combination_requests(
            corpus, corpus_params.heldout_combinations
        ),
    }.items():
        figures[name] = generated_retrieval(models, clip, requests, params.sampling)
        print(name, figures[name], flush=True)

    prompts = [request.label for request in held_in[: params.style_prompts]]
    for path in sorted(ingredients.glob("*.parquet")):
        shift = style_shift(
            weights, config, path, clip, prompts, params.sampling, params.ingredient
        )
        figures[f"style_{path.stem}"] = shift
        print(path.stem, shift, flush=True)
    examples, validation_examples = glossy_examples(corpus, corpus_params.seed)
    for side, train_params in params.finetune.items():
        gain = finetune_gain(weights, config, examples, validation_examples, train_params)
        figures[f"finetune_gain_{side}"] = gain["change_percent"]
        figures[f"finetune_{side}"] = gain
    figures["weights_bytes"] = sum(
        p.stat().st_size for p in (weights, *base.glob("clip/*.safetensors"))
    )
    write_json(out, figures)
    print(json.dumps(figures, indent=2, sort_keys=True))


if __name__ == "__main__":
    with clear_errors():
        pictures, ingredients, trained, base, samples, out, params = stage_paths(
            __doc__, "pictures", "ingredients", "trained", "base", "samples", "out"
        )
        run(
            pictures,
            ingredients,
            trained,
            base,
            samples,
            out,
            load_params("measure", MeasureParams, params),
            load_params("corpus", CorpusParams, params),
        )
