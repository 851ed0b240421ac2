"""What the stages wrote into the reports folder, found by what the files hold, not where they lie.

Names come from the paths: `select/checkpoint/64.json` and `select_checkpoint/64.json` are both
the choice `checkpoint.64`.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from stages.harness.dvc_command import DVC

Json = dict[str, Any]

# The keys by which a stage's JSON is known.
SIGNS = {
    "filter": {"read", "kept", "dropped"},
    "download": {"rows", "fetched", "by_source", "failed"},
    "summary": {"start", "minimum", "epoch_of_minimum", "change_percent"},
    "grid": {"models", "cells", "failed", "failed_by_model"},
    "drawn": {"drawn", "reused"},
    "scores": {"scores", "confidence", "prompts"},
    "choice": {"choice", "sha256", "by", "is_clear", "reason", "candidates"},
    "merge": {"expression", "weights", "inputs"},
    "release": {"name", "bytes", "ingredients", "sha256"},
}
LOSS_COLUMNS = ("epoch", "train_loss", "val_loss", "low", "high")
LOSS_FILE, SUMMARY_FILE = "loss.csv", "metrics.json"
CELLS_FILE = "cells.json"  # of a grid's pictures, which are read elsewhere
SHEET = re.compile(r"(?P<width>\d+)x(?P<height>\d+)(?:_(?P<page>\d+))?\.(?:png|jpg|webp)")
READERS: dict[str, Callable[[Path], ImageFile]] = {
    ".png": PngImageFile,
    ".jpg": JpegImageFile,
    ".webp": WebPImageFile,
}
UNFINISHED = ".partial"


@dataclass(frozen=True, slots=True)
class Epoch:
    """A row of loss.csv; the interval is of the change from the base."""

    epoch: int
    train_loss: float | None  # none before the first epoch
    val_loss: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Run:
    """A training run."""

    name: str
    epochs: list[Epoch]
    summary: Json | None  # metrics.json
    samples: list[Path]  # drawn while it trained, a row of pictures after an epoch


@dataclass(frozen=True, slots=True)
class SheetPage:
    """A picture of many cells."""

    path: Path
    label: str  # size of its cells, and page
    width: int  # px, of the whole picture
    height: int


@dataclass(frozen=True, slots=True)
class Named:
    """A stage's JSON and what it is about."""

    name: str
    content: Json


@dataclass(slots=True)
class Findings:
    """All that was found; None and empty are what was not."""

    filter: Json | None = None
    download: Json | None = None
    release: Json | None = None
    runs: list[Run] = field(default_factory=list)
    sheets: dict[str, list[SheetPage]] = field(default_factory=dict)  # by grid
    grids: list[Named] = field(default_factory=list)
    scores: list[Named] = field(default_factory=list)  # means by model, of each grid
    choices: list[Named] = field(default_factory=list)
    merges: list[Named] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # JSON files of no stage that we know

    def choice(self, name: str) -> Json | None:
        """Give a choice by its name in the params, as in `checkpoint.64`."""
        found = (c.content for c in self.choices if same_name(c.name) == same_name(name))
        return next(found, None)


def read_findings(folder: Path, *leave_out: Path) -> Findings:
    """Read all reports below a folder, in the order of their paths.

    Args:
        folder: of reports.
        leave_out: files and folders that may lie in it: what an earlier run made of it.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: naming the file that is damaged, or the second of two where one is expected.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of reports. Run `{DVC} repro` first")
    findings = Findings()
    for path in sorted(_files(folder, leave_out)):
        below = PurePosixPath(path.relative_to(folder).as_posix())
        if path.name == LOSS_FILE:
            findings.runs.append(_read_run(path, run_name(below.parent)))
        elif path.suffix == ".json" and path.name != CELLS_FILE:
            _sort_in(findings, path, below)
        elif SHEET.fullmatch(path.name):
            findings.sheets.setdefault(sheet_name(below.parent), []).append(_read_sheet(path))
    for pages in findings.sheets.values():
        pages.sort(key=lambda page: _sheet_order(page.path.name))
    findings.runs.sort(key=lambda run: ("/" in run.name, _natural(run.name)))
    findings.choices.sort(key=lambda choice: _choice_order(choice.name))
    return findings


def run_name(folder: PurePosixPath) -> str:
    """Name a run by its folder: `train/64` is run 64, others keep their group's name."""
    return folder.as_posix().removeprefix("train/")


def sheet_name(folder: PurePosixPath) -> str:
    """Name a grid by the folder of its sheets."""
    name = re.sub(r"^(?:(?:grids?|sheets?)[/_])+", "", folder.as_posix())
    return re.sub(r"[/_]sheets?$", "", name)


def same_name(name: str) -> str:
    """Spell a name so that `checkpoint/64`, `checkpoint_64` and `checkpoint.64` are one."""
    return re.sub(r"[/_]", ".", name)


def _files(folder: Path, leave_out: Sequence[Path]) -> Iterator[Path]:
    made = {path.resolve() for path in leave_out}
    for path in folder.rglob("*"):
        unfinished = any(part.endswith(UNFINISHED) for part in path.relative_to(folder).parts)
        place = path.resolve()
        if path.is_file() and not unfinished and made.isdisjoint([place, *place.parents]):
            yield path


def _sort_in(findings: Findings, path: Path, below: PurePosixPath) -> None:
    content = _read_json(path)
    kind = next((kind for kind, keys in SIGNS.items() if keys <= content.keys()), None)
    name = re.sub(r"^(?:select|merge|grid|scores)(?:_cells)?[/_]", "", str(below.with_suffix("")))
    match kind:
        case "filter" | "download" | "release":
            if getattr(findings, kind) is not None:
                raise ValueError(f"{path}: a second report of {kind}. Remove the one left over")
            setattr(findings, kind, content)
        case "summary":
            if not (path.parent / LOSS_FILE).is_file():
                findings.unknown.append(str(below))
        case "drawn":
            pass  # tells of one run; a page that showed it would differ from one to the next
        case "grid":
            findings.grids.append(Named(name, content))
        case "scores":
            findings.scores.append(Named(name, content))
        case "choice":
            findings.choices.append(Named(name.replace("/", "."), content))
        case "merge":
            findings.merges.append(Named(name.replace("/", "."), content))
        case _:
            findings.unknown.append(str(below))


def _read_json(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON: {error}. Run its stage again") from None
    return content if isinstance(content, dict) else {}


def _read_run(path: Path, name: str) -> Run:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := set(LOSS_COLUMNS) - set(reader.fieldnames or ()):
            raise ValueError(f"{path}: no column {min(missing)!r}. Is this a loss.csv of training?")
        try:
            epochs = [_epoch(row) for row in reader]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}. Train again") from None
    if not epochs:
        raise ValueError(f"{path}: a header and no epochs. Train again")
    summary = path.with_name(SUMMARY_FILE)
    samples = sorted(path.parent.glob("samples/epoch_*.png"))
    return Run(name, epochs, _read_json(summary) if summary.is_file() else None, samples)


def _epoch(row: dict[str, str]) -> Epoch:
    train_loss = float(row["train_loss"]) if row["train_loss"] else None
    val_loss, low, high = (float(row[column]) for column in LOSS_COLUMNS[2:])
    return Epoch(int(row["epoch"]), train_loss, val_loss, low, high)


def _read_sheet(path: Path) -> SheetPage:
    """Read a sheet's size from its first bytes: the whole may be hundreds of megapixels."""
    found = SHEET.fullmatch(path.name)
    assert found
    try:
        # not Image.open, which refuses so many pixels before anybody asks for one
        with READERS[path.suffix](path) as picture:
            width, height = picture.size
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not a picture ({error}). Compose the sheet again") from None
    page = f", page {found['page']}" if found["page"] else ""
    return SheetPage(path, f"{found['width']} × {found['height']} px{page}", width, height)


def _sheet_order(name: str) -> tuple[int, ...]:
    found = SHEET.fullmatch(name)
    assert found
    return tuple(int(number or 0) for number in found.groups())


def _natural(name: str) -> list[tuple[int, str]]:
    """Order names with numbers in them as people do: 64, 96, 512."""
    return [(int(p), "") if p.isdecimal() else (0, p) for p in re.split(r"(\d+)", name)]


def _choice_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Order choices as the recipe makes them."""
    order = ("checkpoint", "ingredients", "mixes", "row", "final")
    place = next((i for i, word in enumerate(order) if name.startswith(word)), len(order))
    return place, _natural(name)
