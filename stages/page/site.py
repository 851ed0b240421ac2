"""The page: what was found, put into words, figures and pictures that stand beside it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from stages.choice.loss import CHECKPOINT
from stages.images.shards import read_shards
from stages.page.bars import Bar, card_bars, funnel, outcomes
from stages.page.chosen import Choice, shown_choice
from stages.page.curves import draw_run
from stages.page.data_card import Card, describe
from stages.page.descent import Descent, read_release, trace
from stages.page.expected import drop_left_over, expected_choices, expected_grids
from stages.page.findings import Findings, Json, Run
from stages.page.numbers import change, count, figure, percent, size, weight
from stages.page.pictures import PICTURES, Picture, beside, plain
from stages.page.samples import (
    Split,
    copy_sample,
    find_cells,
    one_per_prompt,
    pick_samples,
    read_split,
)
from stages.page.template import open_template
from stages.page.tournament import draw_tournament
from stages.page.viewer import VIEWER, write_viewer

PAGE = "index.html"
HASHES = {
    "sha256": "SHA-256",
    "auto_v1": "AutoV1",
    "auto_v2": "AutoV2",
    "auto_v3": "AutoV3",
    "crc32": "CRC32",
    "tensors_sha256": "SHA-256 of the tensors",
}


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the page's parts come from; None is not given."""

    reports: Path
    images: Path
    split: Path | None
    release: Path | None  # folder


@dataclass(frozen=True, slots=True)
class Curve:
    """A run's graph and the words beside it."""

    run: Run
    svg: Markup
    picked: int | None
    start: float
    best: float
    best_epoch: int
    samples: list[Picture]  # rows drawn after some epochs

    @property
    def is_side(self) -> bool:
        """Whether it is no run of the recipe's own, but of an ingredient."""
        return "/" in self.run.name


@dataclass(slots=True)
class Site:
    """All that the template asks for."""

    title: str
    findings: Findings
    sections: Mapping[str, str]  # params in force, as YAML
    release_params: Mapping[str, Any] = field(default_factory=dict)
    release_pictures: list[Picture] = field(default_factory=list)
    release_settings: str = ""
    left_over: list[str] = field(default_factory=list)  # of other params, and not shown
    descent: Descent | None = None
    funnel: list[Bar] = field(default_factory=list)
    outcomes: list[Bar] = field(default_factory=list)
    samples: list[Picture] = field(default_factory=list)
    card: Card | None = None
    card_bars: dict[str, list[Bar]] = field(default_factory=dict)  # by title
    split: Split | None = None
    curves: list[Curve] = field(default_factory=list)
    sheets: dict[str, list[Picture]] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    tournament: Markup | None = None
    viewed: list[str] = field(default_factory=list)  # grids that the viewer shows
    missing: list[str] = field(default_factory=list)


def make_site(
    folder: Path,
    findings: Findings,
    sources: Sources,
    params: Mapping[str, Any],
    title: str,
    samples: int,
    sections: Mapping[str, str],
) -> Site:
    """Put everything that was found into an empty folder.

    Args:
        folder: becomes the site.
        findings: from the reports.
        sources: of the rest.
        params: the sections in force, which say what to expect.
        title: of the page.
        samples: pictures of the data to show.
        sections: the sections as text.

    Raises:
        ValueError, OSError: if a source is damaged.
    """
    left_over = drop_left_over(findings, params)
    site = Site(title, findings, sections, left_over=left_over)
    site.release_params = params.get("release") or {}
    site.split = read_split(sources.split) if sources.split else None
    if findings.filter:
        site.funnel = funnel(findings.filter)
    if findings.download:
        site.outcomes = outcomes(findings.download)
    site.samples = _samples(folder, sources.images, samples, site.split)
    if findings.filter and findings.download and site.samples:
        site.card = describe(sources.images, findings.filter, findings.download)
        site.card_bars = card_bars(site.card)
    site.curves = [_curve(folder, run, findings) for run in findings.runs]
    site.choices = [shown_choice(c.name, c.content) for c in findings.choices]
    site.tournament = draw_tournament(findings.choices)
    order = expected_grids(params)  # others after
    by_order = sorted(findings.sheets, key=lambda g: order.index(g) if g in order else len(order))
    for grid in by_order:
        pages = findings.sheets[grid]
        for number, page in enumerate(pages):
            picture = beside(folder, page.path, f"sheets/{plain(grid)}-{number:02}.png")
            shown = Picture(picture, page.width, page.height, page.label)
            site.sheets.setdefault(grid, []).append(shown)
    gone = [name.removeprefix("grid ") for name in left_over if name.startswith("grid ")]
    site.viewed = write_viewer(folder, sources.reports, order, gone, title)
    _add_release_pictures(site, folder, findings, sources.reports)
    if findings.release and sources.release:
        path = sources.release / f"{findings.release['name']}.safetensors"
        if path.is_file():
            site.descent = trace(read_release(path), path.stem, findings.release)
    site.missing = list(missing_parts(site, params))
    (folder / PAGE).write_text(render(site), encoding="utf-8")
    return site


def missing_parts(site: Site, params: Mapping[str, Any]) -> Iterable[str]:
    """Name what a page of a finished recipe would have and this one has not."""
    found = site.findings
    parts = {
        "release": found.release,
        "pictures of the release": site.release_pictures,
        "ancestry of the release": site.descent,
        "filter": found.filter,
        "download": found.download,
        "samples of the data": site.samples,
        "split": site.split,
    }
    yield from (name for name, value in parts.items() if not value)
    runs = {run.name for run in found.runs}
    yield from (f"training {run}" for run in params.get("train", {}) if str(run) not in runs)
    if not runs and not params.get("train"):
        yield "training"
    grids = list(params.get("grids", {}))
    yield from (f"grid {grid}" for grid in grids if str(grid) not in site.sheets)
    if not site.sheets and not grids:
        yield "grids"
    expected = list(expected_choices(params))
    yield from (f"choice {name}" for name in expected if found.choice(name) is None)
    if not found.choices and not expected:
        yield "choices"
    yield from (f"params {name}" for name, text in site.sections.items() if not text)


def render(site: Site) -> str:
    """Fill the template; all text is escaped but the curves, which are ours."""
    filters = {
        **{f.__name__: f for f in (count, percent, change, figure, weight, size)},
        "words": lambda name: str(name).replace("_", " "),
        "anchor": plain,
    }
    template = open_template("page.html.j2", filters)
    return template.render(site=site, hashes=HASHES, viewer=VIEWER, measures=measures)


def measures(report: Json) -> list[str]:
    """List what models were measured by, without the ends of intervals."""
    names = dict.fromkeys(name for figures in report["scores"].values() for name in figures)
    return [name for name in names if not name.endswith(("_low", "_high"))]


def _samples(folder: Path, images: Path, count: int, split: Split | None) -> list[Picture]:
    if not any(images.glob("*.tar")):
        return []
    pictures = []
    for number, stored in enumerate(pick_samples(read_shards(images), count), start=1):
        path, width, height = copy_sample(stored, folder / PICTURES / "samples", f"{number:02}")
        facts = stored.facts
        held_out = split is not None and facts["id"] in split.held_out
        src = path.relative_to(folder).as_posix()
        note = f"{facts['width']} × {facts['height']}{', held out' if held_out else ''}"
        pictures.append(Picture(src, width, height, facts["caption"], note))
    return pictures


def _add_release_pictures(site: Site, folder: Path, findings: Findings, reports: Path) -> None:
    """Show what the released model drew in the grid in which it won."""
    final = findings.choice("final")
    if not final:
        return
    grid = find_cells(reports, final["sha256"])
    if not grid:
        return
    cells, entries, manifest = grid
    settings = manifest.settings
    site.release_settings = (
        f"{settings['sampler']}, {settings['steps']} steps, guidance {settings['guidance']:g}"
    )
    for number, entry in enumerate(one_per_prompt(entries), start=1):
        assert entry.file
        src = beside(folder, cells / entry.file, f"release/{number:02}.png")
        note = f"seed {entry.seed}"
        site.release_pictures.append(Picture(src, entry.width, entry.height, entry.prompt, note))


def _curve(folder: Path, run: Run, findings: Findings) -> Curve:
    choice = findings.choice(f"checkpoint.{run.name}")
    found = CHECKPOINT.fullmatch(choice["choice"]) if choice else None
    picked = int(found[1]) if found else None
    later = [row for row in run.epochs if row.epoch > 0] or run.epochs
    best = min(later, key=lambda row: row.val_loss)
    svg = Markup(draw_run(run, picked))
    samples = []
    for path in run.samples:
        with Image.open(path) as row:
            width, height = row.size
        epoch = int(path.stem.removeprefix("epoch_"))
        src = beside(folder, path, f"training/{plain(run.name)}-{path.name}")
        samples.append(Picture(src, width, height, f"after epoch {epoch}"))
    start = run.epochs[0].val_loss
    return Curve(run, svg, picked, start, best.val_loss, best.epoch, samples)
