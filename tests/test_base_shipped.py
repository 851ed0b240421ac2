"""What `models/base` ships: a judge that knows pictures, and a base that draws what it is asked."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stages.diffusion.model import load_models
from stages.diffusion.sample import SamplingParams, draw
from stages.diffusion.scorer import Scorer
from stages.filter import run as filter_export
from stages.harness.params import load_params
from stages.images.mirror import places
from stages.midjourney.reject import FilterParams
from tests.imports import ROOT

PICTURES = 30


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    """Captions and pictures of the sample, as the mini profile keeps them."""
    folder = tmp_path_factory.mktemp("pairs")
    params = load_params("filter", FilterParams, ROOT / "profiles/mini.yaml")
    export = ROOT / "data/sample/messages.csv.gz"
    pairs, report, funnel = (
        folder / name for name in ("pairs.parquet", "report.json", "funnel.csv")
    )
    filter_export(export, pairs, report, funnel, params)
    rows = pq.read_table(pairs, columns=["caption", "url"]).to_pylist()
    found = [
        (row["caption"], path)
        for row in rows
        for path in map(Path, places(row["url"], [str(ROOT / "data/sample/cdn")]))
        if path.is_file() and path.stat().st_size > 500
    ]
    return found[:: len(found) // PICTURES][:PICTURES]


def test_the_judge_prefers_a_picture_s_own_caption(pairs: list[tuple[str, Path]]) -> None:
    scorer = Scorer(ROOT / "models/base/clip")
    captions = [caption for caption, _ in pairs]
    right = 0
    for caption, path in pairs:
        with Image.open(path) as picture:
            scores = {text: scorer.score(picture, text) for text in captions}
        right += max(scores, key=scores.__getitem__) == caption
    assert len(pairs) == PICTURES
    assert right >= 0.8 * PICTURES  # held-out concepts are among them; chance finds one


def test_the_base_draws_what_it_is_asked_for() -> None:
    models = load_models(ROOT / "models/base/base.safetensors", ROOT / "models/base/config")
    params = SamplingParams(sampler="dpmpp_2m", steps=15, guidance=4.0, negative_prompt="")
    prompts = ["red apple", "rocket", "sunflower", "hamburger", "guitar", "umbrella"]
    pictures = draw(models, prompts, range(len(prompts)), 64, 64, params)
    scorer = Scorer(ROOT / "models/base/clip")
    for prompt, picture in zip(prompts, pictures, strict=True):
        scores = {text: scorer.score(picture, text) for text in prompts}
        assert max(scores, key=scores.__getitem__) == prompt


def test_other_programs_open_the_base_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionPipeline

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipeline = StableDiffusionPipeline.from_single_file(
        str(ROOT / "models/base/base.safetensors"),
        config=str(ROOT / "models/base/config"),
        local_files_only=True,
        torch_dtype=torch.float32,
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    drawn = pipeline("red apple", height=64, width=64, num_inference_steps=4, generator=generator)
    assert drawn.images[0].size == (64, 64)


@pytest.mark.parametrize(
    ("key", "reach"),
    [
        ("psnr_64", 31),
        ("psnr_96", 32),
        ("clip_retrieval", 0.95),
        ("generated_retrieval", 0.7),
    ],
)
def test_the_figures_reach_what_was_asked(key: str, reach: float) -> None:
    figures = json.loads((ROOT / "models/base/metrics.json").read_text("utf-8"))
    assert figures[key] >= reach


@pytest.mark.parametrize(("side", "reach"), [("64", -4), ("96", -6)])
def test_the_base_takes_to_fine_tuning_and_the_larger_size_starts_lower(
    side: str, reach: float
) -> None:
    figures = json.loads((ROOT / "models/base/metrics.json").read_text("utf-8"))
    assert figures[f"finetune_gain_{side}"] <= reach
    assert figures["finetune_96"]["loss_of_base"] < figures["finetune_64"]["loss_of_base"]
