"""`dvc plots diff` of two commits, in a real browser and without a network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc_render.image import ImageRenderer
from PIL import Image

from stages import plots_page
from stages.sheets.page_file import SUFFIX
from tests.browser import headless, listen
from tests.imports import ROOT

PAGE = ROOT / ".dvc/plots/page.html"
STEPS = ("read", "not_raw", "repeated_caption")
LOSSES = {"one": (0.14, 0.09, 0.08), "two": (0.14, 0.1, 0.06)}  # by commit


def write_reports(folder: Path, losses: tuple[float, ...], colour: str) -> None:
    rows = [f"{epoch},{loss}" for epoch, loss in enumerate(losses)]
    (folder / "loss.csv").write_text("\n".join(["epoch,val_loss", *rows]) + "\n", "utf-8")
    rows = [f"{m},{measure},{losses[2]},0,1" for m in ("a", "b") for measure in ("score", "cmmd")]
    header = "model,measure,mean,low,high"
    (folder / "means.csv").write_text("\n".join([header, *rows]) + "\n", "utf-8")
    left = [f"{after},{int(1000 * loss)}" for after, loss in zip(STEPS, losses, strict=True)]
    (folder / "funnel.csv").write_text("\n".join(["after,messages", *left]) + "\n", "utf-8")
    Image.new("RGB", (64, 48), colour).save(folder / "64x64.png")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw what differs between two commits of a folder, as this repository's DVC does."""
    folder = tmp_path_factory.mktemp("plots")
    dvc = [sys.executable, "-m", "dvc"]
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org"]

    def call(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    call("git", "init", "-q")
    call(*dvc, "init", "-q")
    (folder / ".dvc/plots").mkdir()
    templates = [f".dvc/plots/{name}" for name in ("page.html", "means.json", "funnel.json")]
    for name in (".dvc/config", *templates):
        shutil.copyfile(ROOT / name, folder / name)
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    plots: list[dict[str, dict[str, str] | None]] = [{"64x64.png": None}]
    drawn_by = {"funnel.csv": "filter", "loss.csv": "train", "means.csv": "grid_score"}
    for name, stage in drawn_by.items():
        (declared,) = stages[stage].get("do", stages[stage])["plots"][0].values()
        del declared["cache"]  # the rest says how it is drawn
        plots.append({name: {key: v.replace("${key}", "64") for key, v in declared.items()}})
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}), "utf-8")
    for (name, losses), colour in zip(LOSSES.items(), ("teal", "peru"), strict=True):
        write_reports(folder, losses, colour)
        call("git", "add", ".")
        call(*git, "commit", "-qm", name)
        call("git", "tag", name)
    call(*dvc, "plots", "diff", "one", "two")
    return folder / "dvc_plots/index.html"


def test_both_commits_curves_are_one_picture_and_their_grids_side_by_side_offline(
    page: Path,
) -> None:
    with headless() as browser:
        shown = browser.new_page(viewport={"width": 1280, "height": 800})
        said = listen(shown)
        asked: list[str] = []
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto(page.as_uri())
        chart = shown.locator(".vega-embed canvas")
        chart.first.wait_for()
        chart.nth(2).wait_for()
        assert chart.count() == 3  # funnel, losses and means
        assert not [line for line in said if not line.startswith("WARN")]  # of DVC's own specs
        assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
        images = shown.locator("img")
        assert images.count() == 2
        boxes = [images.nth(number).bounding_box() for number in range(2)]
        assert boxes[0]
        assert boxes[1]
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_the_page_holds_the_scripts_that_it_names_and_loads_none() -> None:
    text = PAGE.read_text("utf-8")
    wanted = json.loads((PAGE.parent / "package.json").read_text("utf-8"))["dependencies"]
    assert {name: f"// {name} {wanted[name]}, BSD-3-Clause" in text for name in wanted} == (
        dict.fromkeys(plots_page.SCRIPTS, True)
    )
    assert text.count("<script>") == len(wanted)
    assert "<script src" not in text
    before, _, after = plots_page.PAGE.partition("SCRIPTS")
    assert text.startswith(before)
    assert text.endswith(after)


@pytest.mark.parametrize(
    ("version", "error", "words"),
    [
        (None, FileNotFoundError, "vega: no such package. Run `make plots`"),
        ("5.0.0", ValueError, r"vega: version 5\.0\.0, not 5\.33\.1"),
    ],
)
def test_a_package_that_is_missing_or_of_another_version_is_named(
    tmp_path: Path, version: str | None, error: type[Exception], words: str
) -> None:
    shutil.copyfile(PAGE.parent / "package.json", tmp_path / "package.json")
    if version:
        package = tmp_path / "node_modules/vega"
        package.mkdir(parents=True)
        (package / "package.json").write_text(json.dumps({"name": "vega", "version": version}))
    with pytest.raises(error, match=words):
        plots_page.run(tmp_path)


def test_dvc_draws_sheets_of_two_formats_and_the_params_say_of_which_not() -> None:
    assert {suffix for suffix in SUFFIX.values() if suffix in ImageRenderer.EXTENSIONS} == {
        ".png",
        ".jpg",
    }
    for path in (ROOT / "params.yaml", *(ROOT / "profiles").glob("*.yaml")):
        assert "`dvc plots diff` leaves out webp" in path.read_text("utf-8")
