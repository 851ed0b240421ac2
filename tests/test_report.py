"""The page: made of what stages truly write, whole without a network, honest about gaps."""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageOps

from stages import grid_sheet, release, select, split
from stages.choice.evidence import Measures
from stages.choice.rule import RuleParams
from stages.choice.scores import Score, write_scores
from stages.diffusion.header import read_header
from stages.diffusion.model import write_single_file
from stages.drawing.cache import CellCache
from stages.drawing.cell import Cell
from stages.drawing.manifest import Entry, Manifest, entry_name, publish
from stages.harness.files import sha256_file, write_json
from stages.images.metadata import without_metadata
from stages.images.outcome import Fetched, Picture
from stages.images.shards import Sample, read_shards, write_shards
from stages.lineage.ancestry import Ancestor, Lineage, made_from, read_parent
from stages.lineage.ingredient import Ingredient
from stages.merging.files import merge_files
from stages.page.descent import BOX_HEIGHT, trace
from stages.page.findings import Named, same_name, sheet_name
from stages.page.numbers import figure, size
from stages.page.samples import copy_sample
from stages.page.site import Sources
from stages.page.tournament import draw_tournament
from stages.releases.modelspec import ReleaseParams
from stages.report import ReportParams, main, run
from stages.sheets.sheet_params import SheetParams
from stages.training.history import History
from stages.training.report import write_reports
from tests.browser import headless, listen
from tests.tiny_training import PARAMS as TRAINING

HOSTILE = '<script>alert("x")</script> & <img src=x onerror=alert(1)> {{ 7 * 7 }}'
CAPTIONS = ["red apple, glossy", HOSTILE, "smiling cat face", "猫 on a “sofa”", "a" * 200]
PROMPTS = ["red apple", HOSTILE]
KEY = "model.diffusion_model.out.2.weight"
RULE = RuleParams(
    min_votes=20, min_score_lead=0.01, min_loss_lead=0, resamples=50, confidence=0.95, seed=1
)
PARAMS = ReportParams(title="A run & more", samples=4, sections=("train", "select", "release"))
ALL_PARAMS = {
    "filter": {"secret_threshold": 5},
    "train": {"64": {"learning_rate": 1.0e-4}},
    "select": {
        "rule": {"min_votes": 20},
        "checkpoint": {"64": {"choice": "auto"}},
        "final": {"choice": "auto"},
    },
    "release": {"title": "Mini", "licence": "CC-BY-4.0", "description": HOSTILE},
}
TRAINED = replace(
    TRAINING,
    resolution=64,
    learning_rate=1e-4,
    gradient_accumulation=1,
    max_epochs=4,
    validation_timesteps=4,
    ema_decay=0.0,
)


def picture(seed: int, side: int = 32) -> Image.Image:
    rng = np.random.default_rng(seed)
    corners = Image.fromarray(rng.integers(0, 255, (3, 3, 3), np.uint8))
    return corners.resize((side, side), Image.Resampling.BICUBIC)


def make_data(folder: Path) -> None:
    """Write shards as download does, and split them."""
    samples = []
    for number, caption in enumerate(CAPTIONS):
        path = folder / f"{number}.png"
        side = 640 if number == 0 else 64
        picture(number, side).save(path)
        fetched = Fetched(path, Picture(".png", side, side, sha256_file(path)), "mirror")
        facts = {"user": 1, "version": "5.2", "aspect": "1:1"}
        samples.append(Sample(str(number), caption, fetched, facts))
    (folder / "images").mkdir()
    write_shards(samples, folder / "images", 3)
    params = split.SplitParams(validation_fraction=0.2, seed=1)
    train, validation = (folder / "split" / f"{s}.parquet" for s in ("train", "validation"))
    split.run(folder / "images", train, validation, params)


def make_counts(reports: Path) -> None:
    dropped = {"not_upscaled": 900, "niji": 0, "short_caption": 40}
    write_json(reports / "filter.json", {"read": 1000, "kept": 60, "users": 7, "dropped": dropped})
    write_json(
        reports / "download.json",
        {
            "rows": 60,
            "fetched": 58,
            "yield": 0.966667,
            "by_source": {"mirror": 58, "link": 0},
            "failed": {"gone": 2, "timeout": 0},
            "shards": 2,
            "bytes": 123_456,
        },
    )


def make_losses(reports: Path) -> None:
    rng = np.random.default_rng(0)
    questions = rng.uniform(0.1, 0.9, (1, 8, 4))
    course = np.array([1.0, 0.95, 0.93, 0.94, 0.97])[:, None, None]
    errors = (questions * course).astype(np.float32)
    ids = tuple(map(str, range(8)))
    history = History(ids, errors, (0.6, 0.5, 0.45, 0.4))
    write_reports(reports / "train" / "64", "64", history, TRAINED)
    samples = reports / "train" / "64" / "samples"
    samples.mkdir()
    picture(7).save(samples / "epoch_002.png")
    write_reports(reports / "ingredients" / "vodka_v1", "vodka_v1", history, TRAINED)


def write_weights(path: Path, value: float, metadata: dict[str, str] | None = None) -> Path:
    tensors = {KEY: torch.full((2, 2), float(value))}
    write_single_file(path, tensors, metadata or {}, torch.float16)
    return path


def make_models(folder: Path) -> None:
    """Make base -> epochs of 64 -> two cocktails with an ingredient."""
    base = write_weights(folder / "base.safetensors", 1)
    write_weights(folder / "other.safetensors", 4)
    parent = read_parent(base, read_header(base).metadata)
    recipe = made_from({"kind": "train", "run": "64"}, {"base": parent})
    for epoch in (2, 4):
        path = folder / "epochs" / f"epoch_{epoch:03}.safetensors"
        path.parent.mkdir(exist_ok=True)
        write_weights(path, epoch, {**recipe, "epoch": str(epoch)})
    for row, share in (("row1", "0.6"), ("row2", "0.8")):
        merge_files(
            {"a": folder / "epochs/epoch_002.safetensors", "b": folder / "other.safetensors"},
            f"{share}*a + {1 - float(share):.1f}*b",
            folder / f"{row}.safetensors",
            "float16",
            name=row,
        )


def make_grid(folder: Path, reports: Path) -> None:
    """Publish cells of both cocktails, one of them failed, their sheet and their scores."""
    models = {row: sha256_file(folder / f"{row}.safetensors") for row in ("row1", "row2")}
    entries: list[Entry] = []
    cells: list[Cell] = []
    cache = CellCache(folder / "cache")
    for row, sha256 in models.items():
        planned = [(prompt, seed) for prompt in PROMPTS for seed in (1, 2)]
        for number, (prompt, seed) in enumerate(planned, start=1):
            cell = Cell(
                weights=sha256,
                config="c",
                prompt=prompt,
                negative_prompt="",
                seed=seed,
                width=32,
                height=32,
                sampler="euler",
                steps=2,
                guidance=3.0,
                clip_skip=1,
                compile=False,
                vae_tile_px=0,
                dtype="float32",
                batch_size=1,
                engine="torch",
                drawing="1",
            )
            failed = "NaN" if (row, number) == ("row1", 4) else None
            file = None if failed else entry_name(row, number)
            if file:
                cache.put(cell, picture(number * 10 + len(cells)))
            entries.append(Entry(row, prompt, seed, 32, 32, cell.address, file, failed))
            cells.append(cell)
    settings = {"sampler": "euler", "steps": 2, "guidance": 3.0}
    manifest = Manifest("cocktails", models, settings, entries)
    target = reports / "cells" / "cocktails"
    target.mkdir(parents=True)
    publish(target, manifest, cache, cells)
    sheets = reports / "sheets" / "cocktails"
    grid_sheet.run(
        target, sheets, [], SheetParams(scale=1, max_side_px=4000, format="png", quality=90)
    )
    write_json(
        reports / "grid" / "cocktails.json",
        {"models": 2, "cells": 8, "failed": 1, "failed_by_model": {"row1": 1}},
    )
    scores = (
        Score(e.model, e.prompt, e.seed, 32, 32, None if e.failed else 20.0 + (e.model == "row2"))
        for e in entries
    )
    write_scores(reports / "scores" / "cocktails.csv", scores)
    means = {"row1": {"cmmd": 7.25, "cmmd_left_out": 1}, "row2": {"cmmd": 0.5}}
    write_json(
        reports / "scores" / "cocktails.json", {"scores": means, "confidence": 0.95, "prompts": 2}
    )


def make_choices(folder: Path, reports: Path) -> None:
    auto = select.OneParams(choice="auto")
    loss = reports / "train" / "64" / "loss.csv"
    select.run(
        "checkpoint.64",
        {f"epoch_{e:03}": folder / f"epochs/epoch_{e:03}.safetensors" for e in (2, 4)},
        Measures([], loss, None, None),
        folder / "vodka.safetensors",
        reports / "select" / "checkpoint_64.json",
        auto,
        RULE,
    )
    select.run(
        "final",
        {row: folder / f"{row}.safetensors" for row in ("row1", "row2")},
        Measures([reports / "scores/cocktails.csv"], None, None, None),
        folder / "winner.safetensors",
        reports / "select" / "final.json",
        auto,
        RULE,
    )


def make_release(folder: Path, reports: Path) -> None:
    known = {
        name: Ingredient(
            path=str(folder / f"{name}.safetensors"),
            licence=f"<b>Licence</b> of {name}",
            merging_allowed=True,
            source="somewhere",
            attribution="somebody",
        )
        for name in ("base", "other")
    }
    params = ReleaseParams(
        name="mini",
        title="Mini",
        author="A. Author",
        description="Draws.",
        date="2026-11-23",
        licence="CC-BY-4.0",
        tags=("a",),
        usage_hint="Plain words",
        resolution=64,
    )
    winner = folder / "winner.safetensors"
    release.run(winner, folder / "release", reports / "release.json", params, known)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make what a small run of all stages leaves."""
    folder = tmp_path_factory.mktemp("recipe")
    reports = folder / "reports"
    make_data(folder)
    make_counts(reports)
    make_losses(reports)
    make_models(folder)
    make_grid(folder, reports)
    make_choices(folder, reports)
    make_release(folder, reports)
    return folder


def sources(recipe: Path) -> Sources:
    return Sources(recipe / "reports", recipe / "images", recipe / "split", recipe / "release")


@pytest.fixture(scope="module")
def site(recipe: Path) -> Path:
    """Make the page where dvc.yaml has it: inside the folder that it reads."""
    out = recipe / "reports" / "site"
    assert run(sources(recipe), out, PARAMS, ALL_PARAMS) == []
    return out


@dataclass
class Page(HTMLParser):
    """The tags, addresses, ids and text of a page."""

    tags: list[str] = field(default_factory=list)
    attributes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes[name].append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(site: Path) -> Page:
    page = Page()
    page.feed((site / "index.html").read_text(encoding="utf-8"))
    return page


def files(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_every_picture_and_link_is_beside_the_page_and_no_file_is_left_over(site: Path) -> None:
    page = parsed(site)
    addresses = page.attributes["src"] + page.attributes["href"]
    outside = {a for a in addresses if urlsplit(a).scheme not in ("", "data") or a[:2] == "//"}
    assert not outside
    inner = {a[1:] for a in addresses if a.startswith("#")}
    assert inner <= set(page.attributes["id"])
    linked = {unquote(a) for a in addresses if a[:1] != "#" and not a.startswith("data:")}
    viewer = (site / "viewer.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', viewer)
    viewed = {
        g["base"] + cell[len(g["axes"])]  # behind its values on the axes
        for g in json.loads(data)
        for cell in g["cells"]
        if cell[len(g["axes"])]
    }
    assert viewed
    beside = {address.partition("#")[0] for address in linked}
    assert beside | viewed | {"index.html"} == set(files(site))


def test_nothing_is_loaded_from_elsewhere_and_no_script_may_run(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    page = parsed(site)
    assert not set(page.tags) & {"script", "iframe", "object", "embed", "base", "form"}
    assert any(value.startswith("default-src 'none'") for value in page.attributes["content"])
    assert page.tags.count("link") == 1  # the empty icon, so that nobody asks for one
    styles = "".join(re.findall(r"<style.*?</style>", text, re.DOTALL))
    assert "@import" not in styles
    assert "url(" not in styles
    for address in re.findall(r"https?://[^\s\"'<]+", text):
        assert address.startswith("http://www.w3.org/")  # names of SVG, which nobody loads


def test_hostile_words_are_shown_and_not_obeyed(site: Path) -> None:
    page = parsed(site)
    assert page.text.count(HOSTILE) >= 3  # caption, prompt, description
    assert not [name for name in page.attributes if name.startswith("on")]
    assert HOSTILE in page.attributes["alt"]
    assert "<b>Licence</b> of other" in page.text
    assert "b" not in page.tags


def test_it_tells_what_happened(site: Path) -> None:
    text = " ".join(parsed(site).text.split())
    for words in (
        "A run & more",
        "Of 1,000 messages in the export, 60 pairs",
        "short caption 40 4.0 %",
        "None: niji.",
        "58 of 60 pictures came: 123.5 kB in 2 shards",
        "5 pictures: 4 to train on and 1 held out for validation (20.0 %)",
        "64 × 64, held out",
        "Picked: epoch 2",
        "1 of 8 cells failed: row1 1",
        "Means by model, with 95 % intervals",
        "modelcmmdcmmd left out row17.2501 row20.50000–",  # cells of a table, without a blank
        "row2: best by score",
        "mini.safetensors",
        "0.8*a + 0.2*b: a 64, epoch 2, b other",
        "learning_rate: 0.0001",
    ):
        assert words in text, words
    assert "secret_threshold" not in text, "a section that is not listed"


def test_a_run_shows_what_it_drew_while_it_trained(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    assert 'src="pictures/training/64-epoch_002.png"' in page
    assert "after epoch 2" in page


def test_on_a_phone_no_text_is_cut_and_no_row_of_the_ancestry_is_a_tower(site: Path) -> None:
    with headless() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        said = listen(page)
        page.goto((site / "index.html").as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        cut = """[...document.querySelectorAll('main p, caption')]
            .filter(text => text.getBoundingClientRect().right > 390).map(text => text.innerText)"""
        assert page.evaluate(cut) == []
        rows = "[...document.querySelectorAll('#ancestry tr')].map(row => row.clientHeight)"
        assert max(page.evaluate(rows)) < 80
        assert said == []


@pytest.mark.parametrize("width", [320, 390])
def test_on_a_phone_every_part_is_a_tap_away_and_its_heading_is_not_covered(
    site: Path, width: int
) -> None:
    with headless() as browser:
        page = browser.new_page(viewport={"width": width, "height": 844})
        page.goto((site / "index.html").as_uri())
        links = page.locator("nav a")
        right = "links => links.map(link => link.getBoundingClientRect().right)"
        assert max(links.evaluate_all(right)) <= width
        for place in [link.get_attribute("href") or "" for link in links.all()]:
            page.locator(f"nav a[href='{place}']").click()
            top = page.locator(f"{place} h2").bounding_box()
            bar = page.locator("nav").bounding_box()
            assert top
            assert bar
            assert top["y"] >= bar["y"] + bar["height"], place


def test_on_a_phone_curves_have_letters_to_read(site: Path) -> None:
    with headless() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto((site / "index.html").as_uri())
        scale = "svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width"
        assert page.locator(".curves svg").first.evaluate(scale) > 0.95


def test_intervals_are_drawn_where_there_is_room_and_told_on_a_phone_too(
    recipe: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recipe, copy)
    path = copy / "reports/select/final.json"
    final = json.loads(path.read_text("utf-8"))
    for figures in final["candidates"].values():
        figures.update(score_low=figures["score"] - 1, score_high=figures["score"] + 1)
    write_json(path, final)
    run(sources(copy), tmp_path / "site", PARAMS, ALL_PARAMS)
    with headless() as browser:
        page = browser.new_page()
        page.goto((tmp_path / "site/index.html").as_uri())
        for width, is_drawn in ((1280, True), (390, False)):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.locator(".whisker").first.is_visible() == is_drawn
            assert page.get_by_text("20.000 to 22.000").is_visible()
            assert page.locator("#choices code").last.is_visible()


def test_the_release_shows_its_own_pictures(recipe: Path, site: Path) -> None:
    cells = recipe / "reports" / "cells" / "cocktails" / "row2"
    shown = files(site / "pictures" / "release")
    assert list(shown.values()) == [(cells / f"{n:04}.png").read_bytes() for n in (1, 3)]


def test_the_ancestry_names_every_file_and_licence(recipe: Path, site: Path) -> None:
    text = parsed(site).text
    for name in ("base", "other", "epochs/epoch_002"):
        assert sha256_file(recipe / f"{name}.safetensors")[:10] in text
    report = json.loads((recipe / "reports" / "release.json").read_text())
    assert report["sha256"] in text
    assert report["leaves"]["other"]["weight"] == 0.2
    page = (site / "index.html").read_text(encoding="utf-8")
    assert 'of base</td><td class="number">trained from</td>' in page
    assert 'of other</td><td class="number">0.2</td>' in page


def test_lines_of_the_ancestry_pass_no_box_of_another_file() -> None:
    """The base is an input of the first and of the last: its long line gets a place of its own."""

    def merge(**inputs: str) -> dict[str, object]:
        expression = " + ".join(f"{1 / len(inputs)}*{name}" for name in inputs)
        return {"kind": "merge", "expression": expression, "inputs": inputs}

    ancestors = {
        "base": Ancestor("base", ""),
        "first": Ancestor("first", "", merge(a="base")),
        "second": Ancestor("second", "", merge(a="first")),
    }
    report: dict[str, object] = {"sha256": "0" * 64, "ingredients": {}}
    descent = trace(Lineage(merge(a="second", b="base"), ancestors), "release", report)
    assert [box.title for box in descent.boxes] == ["release", "base", "first", "second"]
    assert descent.inputs == [("a", "second"), ("b", "base")]
    assert sorted(line.weight for line in descent.lines) == ["", "", "0.5", "0.5", "1", "1"]
    passing = {int(y) for line in descent.lines for y in re.findall(r" (\d+)h", line.path)}
    assert len(passing) == 1
    assert not [box for box in descent.boxes[2:] if box.y <= min(passing) <= box.y + BOX_HEIGHT]
    assert [(share.title, share.weight) for share in descent.shares] == [("base", "1")]


def test_a_large_picture_of_the_data_is_shown_smaller(site: Path) -> None:
    sizes = []
    for path in (site / "pictures" / "samples").iterdir():
        with Image.open(path) as shown:
            sizes.append(max(shown.size))
    assert sorted(sizes) == [64, 64, 64, 512]


@pytest.mark.parametrize("side", [64, 640])
def test_a_picture_of_the_data_that_lies_on_its_side_is_shown_upright(
    side: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "0.png"
    picture(0, side).crop((0, 0, side, side // 2)).save(path, exif=exif)
    content = without_metadata(path.read_bytes())
    path.write_bytes(content)
    fetched = Fetched(path, Picture(".png", side // 2, side, sha256_file(path)), "mirror")
    write_shards([Sample("0", "a tower", fetched, {})], tmp_path, 1)
    (stored,) = read_shards(tmp_path)
    shown, width, height = copy_sample(stored, tmp_path / "site", "0")
    assert width * 2 == height
    with Image.open(shown) as image:
        assert ImageOps.exif_transpose(image).size == (width, height)


def test_the_same_reports_give_the_same_bytes(recipe: Path, site: Path, tmp_path: Path) -> None:
    """Made again in its place, with its own pictures among the reports, and elsewhere."""
    before = files(site)
    run(sources(recipe), site, PARAMS, ALL_PARAMS)
    assert files(site) == before
    run(sources(recipe), tmp_path / "site", PARAMS, ALL_PARAMS)
    assert files(tmp_path / "site") == before


def test_the_headline_is_flat_and_no_report_of_its_own(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recipe, copy)
    metrics = copy / "reports/metrics.json"
    for _ in range(2):  # the second finds the first one's among the reports
        run(sources(copy), tmp_path / "site", PARAMS, ALL_PARAMS, metrics=metrics)
        assert "no report that the page knows" not in capsys.readouterr().out
        figures = json.loads(metrics.read_text("utf-8"))
    summary = json.loads((copy / "reports/train/64/metrics.json").read_text("utf-8"))
    assert figures["loss_64"] == round(summary["minimum"], 5)
    final = json.loads((copy / "reports/select/final.json").read_text("utf-8"))
    assert figures["winner"] == final["choice"]
    assert not [name for name, value in figures.items() if isinstance(value, dict | list)]


@pytest.mark.parametrize(
    ("lost", "names"),
    [
        (
            "reports/release.json",
            ["release", "ancestry of the release"],
        ),
        ("release", ["ancestry of the release"]),
        ("reports/cells", ["pictures of the release"]),
        ("reports/filter.json", ["filter"]),
        ("reports/download.json", ["download"]),
        ("images", ["samples of the data"]),
        ("split/validation.parquet", ["split"]),
        ("reports/train", ["training 64"]),
        ("reports/sheets", ["grids"]),
        ("reports/select/checkpoint_64.json", ["choice checkpoint.64"]),
        ("reports/select", ["pictures of the release", "choice checkpoint.64", "choice final"]),
    ],
)
def test_a_part_that_is_missing_is_named(
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    lost: str,
    names: list[str],
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recipe, copy)
    path = copy / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run(sources(copy), tmp_path / "site", PARAMS, ALL_PARAMS) == names
    said = capsys.readouterr().out
    text = parsed(tmp_path / "site").text
    notes = [line for line in text.splitlines() if line.startswith("Missing: ")]
    for name in names:
        assert f"missing: {name}\n" in said
        assert any(name in note for note in notes)
    assert all(name in text[: text.index("Filter")] for name in names)


def test_a_page_of_one_report_names_all_the_rest(recipe: Path, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    shutil.copy(recipe / "reports/filter.json", reports)
    nowhere = Sources(reports, tmp_path / "images", None, None)
    missing = run(nowhere, tmp_path / "site", PARAMS, {})
    assert {"release", "download", "split", "training", "grids", "choices"} < set(missing)
    assert {"params train", "params select", "params release"} < set(missing)


def test_what_another_profile_left_over_is_named_and_not_shown(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = {
        "train": {"512": {}},
        "grids": {"final": {}},
        "select": {"rule": {}, "final": {"choice": "auto"}},
    }
    reports = recipe / "reports"
    sources = Sources(reports, recipe / "images", None, None)
    missing = run(sources, tmp_path / "site", PARAMS, params)
    told = capsys.readouterr().out
    assert "left over from other params, and not shown: training 64" in told
    assert "not shown: choice checkpoint_64" in told
    assert "training 512" in missing
    assert "checkpoint_64" not in (tmp_path / "site/index.html").read_text("utf-8")


@pytest.fixture
def damaged(recipe: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(recipe / "reports", tmp_path / "reports")
    yield tmp_path / "reports"
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("filter.json", "{", "filter.json: not readable as JSON"),
        ("train/64/loss.csv", "epoch,loss\n1,2\n", "no column 'high'"),
        ("train/64/loss.csv", "epoch,train_loss,val_loss,low,high\n", "no epochs"),
        ("train/64/loss.csv", "epoch,train_loss,val_loss,low,high\n1,,x,,\n", "line 2"),
        ("sheets/cocktails/32x32.png", "<html>", "not a PNG"),
        (
            "old/filter.json",
            '{"read": 1, "kept": 1, "users": 1, "dropped": {}}',
            "a second report of filter",
        ),
    ],
)
def test_a_damaged_report_is_named(
    damaged: Path, tmp_path: Path, file: str, content: str, words: str
) -> None:
    path = damaged / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    place = Sources(damaged, tmp_path / "images", None, None)
    with pytest.raises(ValueError, match=re.escape(words)):
        run(place, tmp_path / "site", PARAMS, ALL_PARAMS)


def test_a_folder_that_is_no_site_is_not_replaced(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds no index\.html"):
        run(sources(recipe), tmp_path, PARAMS, ALL_PARAMS)
    assert (tmp_path / "letter.txt").exists()


def test_no_reports_is_an_error(tmp_path: Path) -> None:
    for name, error in (("absent", FileNotFoundError), ("empty", ValueError)):
        if name == "empty":
            (tmp_path / name).mkdir()
        place = Sources(tmp_path / name, tmp_path, None, None)
        with pytest.raises(error, match="dvc repro"):
            run(place, tmp_path / "site", PARAMS, ALL_PARAMS)


def test_it_runs_from_the_command_line(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    section = {"title": "A run", "samples": 2, "sections": ["train", "absent"]}
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump({**ALL_PARAMS, "report": section}))
    options = {
        "--reports": recipe / "reports",
        "--images": recipe / "images",
        "--out": tmp_path / "site",
        "--params": params,
    }
    words = [str(word) for option in options.items() for word in option]
    monkeypatch.setattr("sys.argv", ["report", *words])
    main()
    assert "missing: params absent\n" in capsys.readouterr().out
    assert parsed(tmp_path / "site").text.lstrip().startswith("A run")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("sheets/train_64", "train_64"),
        ("grid/mixes/sheet", "mixes"),
        ("grid_sheet/final", "final"),
        ("gridlock", "gridlock"),
    ],
)
def test_a_grid_goes_by_its_folder(path: str, name: str) -> None:
    assert sheet_name(PurePosixPath(path)) == name


def test_names_are_one_however_they_are_joined() -> None:
    assert len({same_name(f"row{mark}1") for mark in "./_"}) == 1


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1000, "1.0 kB"), (2_132_625_918, "2.1 GB")]
)
def test_bytes_are_written_as_people_do(count: int, text: str) -> None:
    assert size(count) == text


def test_what_was_counted_has_no_decimals() -> None:
    assert [figure(n) for n in (7, 1234, 7.0, 0.5)] == ["7", "1,234", "7.000", "0.50000"]


def test_both_rounds_are_drawn_as_a_tournament_and_names_of_strangers_are_text() -> None:
    def choice(name: str, candidates: list[str], won: str) -> Named:
        return Named(
            name, {"choice": won, "candidates": dict.fromkeys(candidates), "is_clear": False}
        )

    rows = [choice(f"row.{n}", [f"row{n}_trained", HOSTILE], f"row{n}_trained") for n in (1, 2)]
    drawn = draw_tournament([*rows, choice("final", ["row1", "row2"], "row2")])
    assert drawn
    assert "<script>" not in drawn
    assert drawn.count("row1_trained") == 4, "as a candidate and as the row's winner, with titles"
    assert draw_tournament(rows) is None


def test_the_tournament_marks_each_unclear_choice_and_its_last_box_says_who_won() -> None:
    def choice(name: str, candidates: list[str], *, is_clear: bool) -> Named:
        content = {"choice": candidates[0], "candidates": dict.fromkeys(candidates)}
        return Named(name, {**content, "is_clear": is_clear})

    row1 = choice("row.1", ["hybrid", "vodka"], is_clear=False)
    row2 = choice("row.2", ["gin", "rum"], is_clear=True)
    drawn = draw_tournament([row1, row2, choice("final", ["row1", "row2"], is_clear=True)])
    assert drawn
    boxes = {
        found[1]: "dasharray" in found[2]
        for found in re.finditer(r"<title>([^<]*)</title><rect([^>]*)/>", drawn)
        if "style" in found[2]
    }
    assert boxes == {"hybrid": True, "gin": False, "row 1: hybrid": False}
    assert drawn.count("<title>row 1: hybrid</title>") == 2, "as its row's winner, and as the last"
    assert {"clear winner", "no clear winner"} == set(re.findall(r'"note">([^<]*)<', drawn))
