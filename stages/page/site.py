"""The page: what was found, put into words, figures and pictures that stand beside it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from stages.choice.loss import CHECKPOINT
from stages.harness.files import link_or_copy
from stages.images.shards import read_shards
from stages.page.curves import draw_run
from stages.page.data_card import Card, describe
from stages.page.descent import Descent, read_release, trace
from stages.page.expected import drop_left_over, expected_choices, expected_grids
from stages.page.findings import Findings, Json, Run
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
PICTURES = "pictures"
MEASURES = ("votes", "score", "validation_loss")  # of a candidate, in the order of the rule
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
class Picture:
    """A picture beside the page."""

    src: str  # from the page
    width: int
    height: int
    caption: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """A number, and how long its bar is."""

    label: str
    count: int
    share: float  # 0 to 1, of all
    is_good: bool = False


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


@dataclass(frozen=True, slots=True)
class Whisker:
    """A value and its interval, as places in a drawing 100 wide."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row of a choice."""

    name: str
    place: str  # for which it was chosen; empty: it was not
    sha256: str  # of the weights, where it was chosen
    figures: Json
    whisker: Whisker | None
    is_reference: bool = False

    @property
    def is_chosen(self) -> bool:
        """Whether it went on."""
        return bool(self.place)


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice, as the page shows it."""

    name: str
    content: Json
    measures: list[str]
    ruler: str | None  # the measure whose intervals are drawn
    candidates: list[Candidate]


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
        site.card_bars = _card_bars(site.card)
    site.curves = [_curve(folder, run, findings) for run in findings.runs]
    site.choices = [_choice(c.name, c.content) for c in findings.choices]
    site.tournament = draw_tournament(findings.choices)
    order = expected_grids(params)  # others after
    by_order = sorted(findings.sheets, key=lambda g: order.index(g) if g in order else len(order))
    for grid in by_order:
        pages = findings.sheets[grid]
        for number, page in enumerate(pages):
            picture = _beside(folder, page.path, f"sheets/{_plain(grid)}-{number:02}.png")
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
        "count": lambda number: f"{number:,}",
        "percent": lambda share: f"{100 * share:.1f} %" if share < 0.9995 else "100 %",
        "change": lambda percent: f"{percent:+.2f}".replace("-", "\N{MINUS SIGN}"),
        "figure": lambda number: f"{number:.{5 if abs(number) < 1 else 3}f}",
        "weight": lambda number: f"{number:.4g}".replace("-", "\N{MINUS SIGN}"),
        "size": size,
        "words": lambda name: str(name).replace("_", " "),
        "anchor": _plain,
    }
    template = open_template("page.html.j2", filters)
    return template.render(site=site, hashes=HASHES, viewer=VIEWER, measures=measures)


def measures(report: Json) -> list[str]:
    """List what models were measured by, without the ends of intervals."""
    names = dict.fromkeys(name for figures in report["scores"].values() for name in figures)
    return [name for name in names if not name.endswith(("_low", "_high"))]


def size(count: int) -> str:
    """Write a number of bytes as people do.

    >>> size(999), size(2_723_840)
    ('999 B', '2.7 MB')
    """
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    return f"{value:.3g} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def funnel(report: Json) -> list[Bar]:
    """Show what was kept, then each reason, most frequent first."""
    read = report["read"]
    kept = Bar("kept", report["kept"], report["kept"] / read, is_good=True)
    return [kept, *_reasons(report["dropped"], read)]


def outcomes(report: Json) -> list[Bar]:
    """Show where pictures came from, then why the others did not come."""
    rows = report["rows"]
    fetched = [
        Bar(f"fetched from {'a mirror' if source == 'mirror' else 'its link'}", n, n / rows, True)
        for source, n in sorted(report["by_source"].items(), reverse=True)
        if n
    ]
    return [*fetched, *_reasons(report["failed"], rows)]


def _card_bars(card: Card) -> dict[str, list[Bar]]:
    """Draw each count of the data card against the sum, or words against all captions."""
    drawn = {
        "Letters of a caption": card.lengths,
        "Aspect as asked for": card.aspects,
        "Width x height, px": card.sizes,
        "Users of the export, by their upscales": card.upscales,
        "Pairs, by the user's rank (1 upscaled most)": card.ranks,
    }
    return {
        title: [Bar(label, n, n / sum(count for _, count in counts)) for label, n in counts]
        for title, counts in drawn.items()
        if counts
    }


def _reasons(counts: Mapping[str, int], total: int) -> list[Bar]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [Bar(name, count, count / total) for name, count in ordered]


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
        src = _beside(folder, cells / entry.file, f"release/{number:02}.png")
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
        src = _beside(folder, path, f"training/{_plain(run.name)}-{path.name}")
        samples.append(Picture(src, width, height, f"after epoch {epoch}"))
    start = run.epochs[0].val_loss
    return Curve(run, svg, picked, start, best.val_loss, best.epoch, samples)


def _choice(name: str, content: Json) -> Choice:
    rows: dict[str, Json] = dict(content["candidates"])
    reference = content.get("reference") or {}
    if reference:
        rows.setdefault(reference["name"], reference)
    chosen, hashes = content["choice"], content["sha256"]
    if isinstance(chosen, str):
        chosen, hashes = {"chosen": chosen}, {"chosen": hashes}
    places = {candidate: place for place, candidate in chosen.items()}
    measures = [m for m in MEASURES if any(m in figures for figures in rows.values())]
    ruler = next((m for m in measures if any(f"{m}_low" in f for f in rows.values())), None)
    scale = _scale(rows.values(), ruler) if ruler else None
    candidates = [
        Candidate(
            row,
            places.get(row, ""),
            hashes.get(places.get(row), ""),
            figures,
            _whisker(figures, ruler, scale) if ruler and scale else None,
            row == reference.get("name"),
        )
        for row, figures in rows.items()
    ]
    return Choice(name, content, measures, ruler, candidates)


def _scale(rows: Iterable[Json], measure: str) -> tuple[float, float]:
    ends = [row[f"{measure}_{end}"] for row in rows for end in ("low", "high") if measure in row]
    return min(ends), max(ends)


def _whisker(figures: Json, measure: str, scale: tuple[float, float]) -> Whisker | None:
    if measure not in figures:
        return None
    low, span = scale[0], (scale[1] - scale[0]) or 1.0
    at = [
        round(4 + 92 * (figures[key] - low) / span, 2)
        for key in (measure, f"{measure}_low", f"{measure}_high")
    ]
    return Whisker(*at)


def _beside(folder: Path, source: Path, name: str) -> str:
    """Put a picture beside the page; give its address from there."""
    link_or_copy(source, folder / PICTURES / name)
    return f"{PICTURES}/{name}"


def _plain(name: str) -> str:
    """Spell a name with letters that every file system and address takes."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)
