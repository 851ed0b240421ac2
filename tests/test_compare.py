"""The page that compares two commits which differ in one learning rate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from PIL import Image

from stages.compare import _value, run
from stages.drawing.manifest import Entry
from stages.page.curves import draw_both
from stages.page.findings import Epoch, Run
from tests.browser import headless, listen
from tests.imports import ROOT

PROMPTS = ("red <apple>", "rocket")
DVC_YAML = {
    "stages": {
        "train": {
            "cmd": f"{sys.executable} draw.py",
            "params": ["train.64.learning_rate"],
            "outs": [
                {"reports/train/64/loss.csv": {"cache": False}},
                {"reports/metrics.json": {"cache": False}},
                "reports/cells/final",
                "reports/cells/mixes",
            ],
        }
    }
}
# What the stages would write: losses, a figure and pictures that depend on the rate, and some
# that do not.
DRAW = """
import json, yaml
from pathlib import Path
from PIL import Image
rate = yaml.safe_load(open("params.yaml"))["train"]["64"]["learning_rate"]
entries = json.loads(Path("entries.json").read_text())
losses = [0.14, 0.14 - 20 * rate, 0.14 - 40 * rate]
rows = [f"{epoch},,{loss:.5f},{loss:.5f},{loss:.5f}" for epoch, loss in enumerate(losses)]
Path("reports/train/64").mkdir(parents=True, exist_ok=True)
Path("reports/train/64/loss.csv").write_text(
    "epoch,train_loss,val_loss,low,high\\n" + "\\n".join(rows) + "\\n"
)
figures = {"loss_64": round(losses[-1], 5), "pictures": 9}
Path("reports/metrics.json").write_text(json.dumps(figures))
for grid in ("final", "mixes"):
    folder = Path("reports/cells", grid)
    for entry in entries:
        by_rate = grid == "final" and entry["model"] == "row1"
        entry["address"] = f"{grid} {entry['file']} {rate if by_rate else ''}"
        place = folder / entry["file"]
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (int(rate * 1e5), 90, 120)).save(place)
    models = [{"name": name, "weights": "0"} for name in ("row1", "row2")]
    manifest = {"group": grid, "models": models, "settings": {}, "cells": entries}
    (folder / "cells.json").write_text(json.dumps(manifest))
"""


def entries() -> list[Entry]:
    return [
        Entry(model, prompt, 1, 16, 16, "", f"{model}/{number:04}.png", None)
        for model in ("row1", "row2")
        for number, prompt in enumerate(PROMPTS, start=1)
    ]


class Repository:
    """A folder under Git and DVC, in which one stage trains and draws."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.call("git", "init", "-q")
        self.call(sys.executable, "-m", "dvc", "init", "-q")
        (folder / "draw.py").write_text(DRAW, "utf-8")
        (folder / "dvc.yaml").write_text(yaml.safe_dump(DVC_YAML), "utf-8")
        (folder / "entries.json").write_text(json.dumps([asdict(e) for e in entries()]), "utf-8")

    def call(self, *command: str) -> None:
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)

    def train(self, rate: float) -> None:
        params = {"train": {"64": {"learning_rate": rate, "seed": 1}}}
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
        self.call(sys.executable, "-m", "dvc", "repro", "-q")

    def commit(self, tag: str) -> None:
        self.call("git", "add", ".")
        self.call(
            "git", "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qm", tag
        )
        self.call("git", "tag", tag)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    made = Repository(tmp_path_factory.mktemp("compared"))
    for tag, rate in (("slow", 0.0005), ("fast", 0.001)):
        made.train(rate)
        made.commit(tag)
    return made


@pytest.fixture(autouse=True)
def inside(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository.folder)


def test_the_learning_rate_is_named_and_so_is_what_came_of_it(tmp_path: Path) -> None:
    found = run("slow", "fast", tmp_path / "page")
    assert [(c.name, c.before, c.after) for c in found.params] == [
        ("train.64.learning_rate", 0.0005, 0.001)
    ]
    assert [(c.name, c.before, c.after) for c in found.metrics] == [("loss_64", 0.12, 0.1)]
    assert found.metrics[0].step == pytest.approx(-0.02)
    assert [name for name, _ in found.curves] == ["64"]
    assert [(grid.name, grid.changed, grid.total) for grid in found.grids] == [("final", 2, 4)]
    assert not found.missing


@pytest.mark.parametrize("width", [1280, 420])
def test_the_page_shows_both_commits_beside_each_other_offline(tmp_path: Path, width: int) -> None:
    run("slow", "fast", tmp_path / "page")
    with headless() as browser:
        page = browser.new_page(viewport={"width": width, "height": 800})
        said = listen(page)
        page.goto((tmp_path / "page/index.html").as_uri())
        rows = page.locator("tbody tr").all_inner_texts()
        assert [row.split() for row in rows] == [
            ["train.64.learning_rate", "0.0005", "0.001", "+0.0005"],
            ["loss_64", "0.12", "0.1", "\N{MINUS SIGN}0.02"],
        ]
        curve = page.locator(".curves svg")
        assert curve.count() == 1
        words = curve.text_content() or ""
        assert "slow: 0.12000 at epoch 2" in words
        assert "fast: 0.10000 at epoch 2" in words
        assert page.locator("figcaption").first.inner_text().startswith("red <apple>")
        pictures = page.locator(".pair img")
        assert pictures.count() == 4
        sizes = page.evaluate(
            "[...document.querySelectorAll('.pair img')].map(i => i.naturalWidth)"
        )
        assert sizes == [16] * 4
        left, right = (pictures.nth(number).bounding_box() for number in range(2))
        assert left
        assert right
        assert left["x"] + left["width"] < right["x"]
        assert left["y"] == right["y"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not said


def test_on_a_phone_no_figure_and_no_name_is_broken_over_two_lines(tmp_path: Path) -> None:
    run("slow", "fast", tmp_path / "page")
    with headless() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.goto((tmp_path / "page/index.html").as_uri())
        heights = "cells => cells.map(cell => cell.getBoundingClientRect().height)"
        assert max(page.locator("tbody th, tbody td").evaluate_all(heights)) < 40


def test_pictures_are_those_of_their_own_commit(tmp_path: Path) -> None:
    run("slow", "fast", tmp_path / "page")
    for side, red in (("before", 50), ("after", 100)):
        with Image.open(tmp_path / "page" / side / "reports/cells/final/row1/0001.png") as picture:
            assert picture.getpixel((0, 0)) == (red, 90, 120)


def test_the_folder_as_it_stands_is_a_side_too(repository: Repository, tmp_path: Path) -> None:
    repository.train(0.002)
    found = run("fast", "workspace", tmp_path / "page")
    assert [c.after for c in found.params] == [0.002]
    assert [grid.changed for grid in found.grids] == [2]
    assert not found.missing
    repository.call("git", "checkout", "-q", ".")
    repository.call(sys.executable, "-m", "dvc", "checkout", "-q")


def test_a_commit_and_itself_do_not_differ(tmp_path: Path) -> None:
    found = run("fast", "HEAD", tmp_path / "page")
    assert (found.params, found.metrics, found.curves, found.grids) == ([], [], [], [])
    assert "No param differs." in (tmp_path / "page/index.html").read_text("utf-8")


def test_of_many_cells_some_are_shown_and_the_rest_are_counted(tmp_path: Path) -> None:
    found = run("slow", "fast", tmp_path / "page", cells=1)
    assert [(len(grid.pairs), grid.changed) for grid in found.grids] == [(1, 2)]
    assert "1 of them are shown" in (tmp_path / "page/index.html").read_text("utf-8")


def test_what_the_cache_lacks_is_named(repository: Repository, tmp_path: Path) -> None:
    cache = repository.folder / ".dvc/cache"
    hidden = cache.rename(tmp_path / "cache")
    found = run("slow", "fast", tmp_path / "page")
    hidden.rename(cache)
    assert "reports/cells/final/cells.json at slow" in found.missing
    assert [c.name for c in found.params] == ["train.64.learning_rate"]
    assert "dvc fetch --all-commits" in (tmp_path / "page/index.html").read_text("utf-8")


def test_grids_that_one_side_lacks_are_named_and_not_called_changed(
    repository: Repository, tmp_path: Path
) -> None:
    """As in a clone before its `make pull`."""
    cells = repository.folder / "reports/cells"
    hidden = cells.rename(tmp_path / "hidden")
    found = run("fast", "workspace", tmp_path / "page")
    hidden.rename(cells)
    assert found.grids == []
    assert found.missing == [
        f"reports/cells/{grid}/cells.json at workspace" for grid in ("final", "mixes")
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema: '2.0'\nstages:\n", "dvc.lock is empty or cut short"),
        ("<<<<<<< HEAD\n=======\n>>>>>>> b\n", "make resolve"),
    ],
)
def test_a_lock_of_the_folder_that_is_damaged_is_named(
    repository: Repository, tmp_path: Path, text: str, words: str
) -> None:
    lock = repository.folder / "dvc.lock"
    whole = lock.read_text("utf-8")
    lock.write_text(text, "utf-8")
    try:
        with pytest.raises(ValueError, match=words):
            run("fast", "workspace", tmp_path / "page")
    finally:
        lock.write_text(whole, "utf-8")


@pytest.mark.parametrize(
    ("value", "shown"), [(True, "true"), ([1, "a", False], '[1, "a", false]'), (5e-05, "5e-05")]
)
def test_a_value_is_shown_as_the_params_have_it(value: object, shown: str) -> None:
    assert _value(value) == shown


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("nowhere", "fast"), "'nowhere' is no commit, branch, tag or experiment here"),
        (("slow", "fast", "--cells", "0"), "--cells must be at least 1, got 0"),
    ],
)
def test_bad_input_ends_with_words_and_a_status(
    repository: Repository, tmp_path: Path, words: tuple[str, ...], status: str
) -> None:
    command = [sys.executable, "-m", "stages.compare", *words, "--out", str(tmp_path / "page")]
    done = subprocess.run(
        command,
        cwd=repository.folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert status in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="will not replace it"):
        run("slow", "fast", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_page_is_replaced_by_the_next_one(tmp_path: Path) -> None:
    run("slow", "fast", tmp_path / "page")
    run("fast", "fast", tmp_path / "page")
    assert "No param differs." in (tmp_path / "page/index.html").read_text("utf-8")


@pytest.mark.parametrize("made_by", ["compare", "somebody"])
def test_a_folder_with_a_page_and_somebody_s_files_is_not_replaced(
    tmp_path: Path, made_by: str
) -> None:
    (tmp_path / "index.html").write_text("a site of mine")
    if made_by == "compare":
        run("slow", "fast", tmp_path / "page")
        (tmp_path / "page").replace(tmp_path / "site")
        (tmp_path / "site/notes.txt").write_text("mine")
        out, strange = tmp_path / "site", "notes.txt"
    else:
        out, strange = tmp_path, "index.html"
    before = sorted(out.rglob("*"))
    with pytest.raises(FileExistsError, match=f"no comparison made .*{strange}"):
        run("slow", "fast", out)
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize("name", ["_slow", "a$b$c"])
def test_a_curve_bears_its_branch_s_name_whatever_matplotlib_reads_into_it(name: str) -> None:
    epochs = [Epoch(number, None, 0.1, 0.1, 0.1) for number in range(2)]
    drawn = draw_both(Run("64", epochs, None, []), Run("64", epochs, None, []), name, "main")
    assert f"{name}: 0.10000 at epoch 0" in drawn
    assert "main: 0.10000 at epoch 0" in drawn


def test_a_config_that_dvc_cannot_read_is_told_in_words(
    repository: Repository, tmp_path: Path
) -> None:
    config = repository.folder / ".dvc/config.local"
    config.write_text("{", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "stages.compare", "slow", "fast", "--out", tmp_path / "page"],
        cwd=repository.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    config.unlink()
    assert done.returncode == 1
    assert "DVC: config file error: Invalid line ('{')" in done.stderr
    assert "Traceback" not in done.stderr
