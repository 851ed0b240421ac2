"""The pipeline that makes the mini model: what it reads, what it may see, what it shipped."""

import dataclasses
import io
import json
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from models.base.augment import jitter_colours, placed
from models.base.collect import SVG_STYLES, Concept, Drawing, collect, draw
from models.base.heldout import heldout_concepts, planned_caption
from models.base.pace import learning_rate_at, trapezoid_rate_at
from models.base.pictures import (
    BASE_STYLES,
    FLUENT_STYLES,
    Corpus,
    CorpusParams,
    Picture,
    captions,
    clip_test_concepts,
    heldout_combinations,
)
from models.base.train_clip import ConceptSampler, contrastive_loss
from models.base.train_clip import may_see as clip_may_see
from models.base.train_unet import Encoded, UnetParams, train
from models.base.train_unet import may_see as unet_may_see
from stages.images.holdout import validation_rows

SEED = 555
SQUARE = '<rect width="32" height="32" fill="#f00"/>'
APPLE, PEAR = "1f34e", "1f350"
PARAMS = CorpusParams(seed=SEED, clip_test_concepts=10, heldout_combinations=12)


def png(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (256, 256), colour).save(out, "PNG")
    return out.getvalue()


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(json.dumps(content), "utf-8")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder of small packages, as npm leaves it, and their manifest beside it."""
    folder = tmp_path / "node_modules"
    names = ["@lobehub/fluent-emoji-3d", "emojibase-data", *SVG_STYLES.values()]
    for name in names:
        write(folder / name / "package.json", {"version": "1.0.0"})
    for name in SVG_STYLES.values():
        icons = {"red-apple": {"body": SQUARE}, "logo": {"body": SQUARE}}
        write(folder / name / "icons.json", {"icons": icons, "width": 32, "height": 32})
        write(folder / name / "chars.json", {APPLE: "red-apple"})
    words = [
        {"hexcode": "1F34E", "label": "red apple", "tags": ["fruit"], "group": 4},
        {"hexcode": "1F350", "label": "pear", "tags": ["fruit"], "group": 4},
        {"hexcode": "1F1E6", "label": "regional indicator A"},
    ]
    write(folder / "emojibase-data/en/data.json", words)
    write(folder / "emojibase-data/en/shortcodes/cldr.json", {"1F350": "pear"})
    write(folder / f"@lobehub/fluent-emoji-3d/assets/{APPLE}.webp", png())
    write(folder / f"@lobehub/fluent-emoji-3d/assets/{PEAR}.webp", b"no picture")
    write(tmp_path / "package.json", {"dependencies": dict.fromkeys(names, "1.0.0")})
    return folder


def test_icons_of_no_concept_and_pictures_that_do_not_decode_are_counted(packages: Path) -> None:
    table, report = collect(packages, packages.parent / "package.json")
    assert Counter(table["style"].to_pylist()) == dict.fromkeys([*SVG_STYLES, "fluent-3d"], 1)
    assert set(table["concept"].to_pylist()) == {APPLE}
    assert report["undecoded"] == {"fluent-3d": 1}
    assert report["icons_of_no_concept"] == dict.fromkeys(SVG_STYLES, 1)


def test_a_missing_package_is_named_with_the_command_that_installs_it(packages: Path) -> None:
    (packages / "@iconify-json/noto/package.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"@iconify-json/noto@1\.0\.0.*npm ci --prefix"):
        collect(packages, packages.parent / "package.json")


def test_a_package_of_another_version_is_refused_with_both_versions(packages: Path) -> None:
    write(packages / "emojibase-data/package.json", {"version": "2.0.0"})
    with pytest.raises(ValueError, match=r"emojibase-data@1\.0\.0, found version 2\.0\.0"):
        collect(packages, packages.parent / "package.json")


def test_a_drawing_stands_on_white_at_the_larger_resolution() -> None:
    concept = Concept(APPLE, "red apple", (), 4)
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
        '<rect x="8" y="8" width="16" height="16" fill="#00f"/></svg>'
    )
    image = draw(Drawing("noto", concept, 0, "red-apple", svg))
    assert image is not None
    picture = Image.open(io.BytesIO(image))
    assert picture.size == (96, 96)
    assert picture.getpixel((1, 1)) == (255, 255, 255)
    assert picture.getpixel((48, 48)) == (0, 0, 255)


@pytest.fixture
def corpus() -> Corpus:
    """Two hundred concepts in every style, without pixels worth looking at."""
    styles = (*BASE_STYLES, *FLUENT_STYLES)
    pictures = [
        Picture(style, f"{n:x}", f"thing {n}", ("tag", f"kind {n % 7}"), 0)
        for n in range(200)
        for style in styles
    ]
    rows = {
        "concept": [p.concept for p in pictures],
        "label": [p.label for p in pictures],
        "tags": [list(p.tags) for p in pictures],
    }
    heldout = frozenset(heldout_concepts(pa.table(rows), SEED))
    return Corpus(pictures, np.zeros((len(pictures), 2, 2, 3), np.uint8), heldout)


def test_no_model_sees_what_the_recipe_validates_on(corpus: Corpus) -> None:
    glossy = [p for p in corpus.pictures if p.style == "fluent-3d"]
    texts = [planned_caption(p.label, p.tags) for p in glossy]
    validated = {glossy[row].concept for row in validation_rows(texts, 0.15, SEED)}
    assert len(validated) == 30
    for may_see in (clip_may_see, unet_may_see):
        seen = corpus.select(may_see(corpus, PARAMS))
        assert seen.pictures
        assert not validated & {p.concept for p in seen.pictures}


def test_the_unet_sees_nothing_of_the_fluent_family(corpus: Corpus) -> None:
    seen = corpus.select(unet_may_see(corpus, PARAMS))
    assert {p.style for p in seen.pictures} == set(BASE_STYLES)


def test_held_out_combinations_are_known_apart_but_never_together(corpus: Corpus) -> None:
    pairs = heldout_combinations(corpus, PARAMS.heldout_combinations)
    assert len(pairs) == 12
    for may_see in (clip_may_see, unet_may_see):
        seen = {(p.concept, p.style) for p in corpus.select(may_see(corpus, PARAMS)).pictures}
        assert not pairs & seen
        assert {concept for concept, _ in pairs} <= {concept for concept, _ in seen}


def test_the_clip_never_sees_the_glossy_pictures_that_test_it(corpus: Corpus) -> None:
    tests = clip_test_concepts(corpus, PARAMS.clip_test_concepts)
    seen = corpus.select(clip_may_see(corpus, PARAMS)).pictures
    glossy = {p.concept for p in seen if p.style == "fluent-3d"}
    assert len(tests) == 10
    assert not tests & glossy
    assert tests <= {p.concept for p in seen}


def test_captions_name_the_style_only_when_asked(corpus: Corpus) -> None:
    rng = np.random.default_rng(0)
    for picture in corpus.pictures[:50]:
        assert "style" not in captions(picture, rng, style=False)
        assert captions(picture, rng, style=True).startswith(picture.label)


def test_a_batch_holds_no_two_pictures_with_the_same_right_caption() -> None:
    concepts = [str(n % 40) for n in range(100)]
    sampler = ConceptSampler.of(concepts, torch.Generator().manual_seed(0))
    drawn = [concepts[row] for row in sampler.draw(30, 1)]
    assert len(set(drawn)) == 30
    thrice = Counter(concepts[row] for row in sampler.draw(10, 3))
    assert set(thrice.values()) == {3}


def test_the_contrastive_loss_is_least_when_pairs_agree() -> None:
    embeds = torch.eye(8)
    scale = torch.tensor(100.0)
    assert contrastive_loss(embeds, embeds, scale) < 1e-6
    assert contrastive_loss(embeds, embeds.roll(1, 0), scale) > 50


def test_a_placed_picture_keeps_its_ink_and_white_surroundings() -> None:
    ink = torch.ones(4, 3, 32, 32)
    ink[:, :, 8:24, 8:24] = -1
    generator = torch.Generator().manual_seed(0)
    moved = placed(ink, 32, (0.8, 0.8), 0.1, generator)
    dark = (1 - moved).sum((1, 2, 3))
    assert torch.allclose(dark, (1 - ink).sum((1, 2, 3)) * 0.64, rtol=0.02)
    assert (moved[:, :, 0] == 1).all()


def test_jittered_colours_stay_in_range_and_keep_their_hue() -> None:
    red = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None].expand(16, 3, 8, 8)
    jittered = jitter_colours(red, torch.Generator().manual_seed(0))
    assert jittered.abs().max() <= 1
    assert (jittered.mean((2, 3)).argmax(1) == 0).all()


def test_the_learning_rate_rises_to_its_peak_and_ends_near_zero() -> None:
    rates = [learning_rate_at(step, 1.0, 10, 100) for step in range(100)]
    assert max(rates) == rates[9] == 1.0
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] < 0.001


def test_a_run_may_be_lengthened_until_its_learning_rate_falls() -> None:
    def rates(steps: int) -> list[float]:
        return [trapezoid_rate_at(step, 1.0, 10, 40, steps) for step in range(steps)]

    assert rates(100)[:60] == rates(200)[:60]
    assert rates(100)[9:61] == [1.0] * 52
    assert rates(100)[80] == pytest.approx(0.5)
    assert rates(100)[99] == pytest.approx(1 / 40)


UNET = UnetParams(
    channels=[16, 16],
    layers_per_block=1,
    heads=2,
    norm_groups=8,
    batch_size={"64": 4, "96": 2},
    share_96=0.4,
    switch_every_steps=2,
    steps=8,
    learning_rate=1.0e-3,
    warmup_steps=2,
    decay_steps=3,
    weight_decay=0.01,
    ema_decay=0.9,
    caption_dropout=0.1,
    min_snr_gamma=5.0,
    variants_per_picture=2,
    captions_per_picture=3,
)


def test_the_unet_s_training_goes_on_after_a_signal_and_ends_alike(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    encoded = Encoded(
        latents={
            side: torch.randn(2, 5, 4, side // 8, side // 8, generator=generator).half()
            for side in (64, 96)
        },
        captions=torch.randn(5, 3, 6, 16, generator=generator).half(),
        no_caption=torch.zeros(1, 6, 16).half(),
    )
    unbroken = train(encoded, UNET, 1, tmp_path / "unbroken")
    asked = iter([False] * 4 + [True])

    class Stopping(dict[str, int]):
        """A batch size by side that ends the process when it is asked for the fifth time."""

        def __getitem__(self, side: str) -> int:
            if next(asked, False):
                signal.raise_signal(signal.SIGTERM)
            return super().__getitem__(side)

    stopping = dataclasses.replace(UNET, batch_size=Stopping(UNET.batch_size))
    with pytest.raises(SystemExit):
        train(encoded, stopping, 1, tmp_path / "broken")
    again = train(encoded, UNET, 1, tmp_path / "broken")
    for a, b in zip(unbroken.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
