"""What the stages before know of a release: its pictures, its data, the cocktail before it."""

import base64
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pyarrow import ArrowInvalid
from pyarrow.parquet import read_metadata

from stages.diffusion.header import read_header
from stages.drawing.manifest import Entry, read_manifest
from stages.harness.dvc_command import DVC
from stages.harness.files import sha256_file
from stages.lineage.in_file import lineage_of
from stages.releases.card import Sample
from stages.releases.comparison import Reference

SAMPLES = 12  # pictures on the card
THUMBNAIL_PX = 256  # longer side; ModelSpec asks for a small picture


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the stages before know of the winner."""

    cells: Path  # the last grid, in which the winner drew
    choice: Path  # the report of the last choice
    reports: Path  # folder of the stages' counts
    split: Path  # folder of the manifests, train.parquet and validation.parquet
    reference: Path  # the cocktail before, with which the choice compares


def winner_samples(evidence: Evidence) -> list[tuple[Path, Entry]]:
    """Find pictures that the winner drew, at the largest size, one per prompt."""
    name = read_choice(evidence.choice)["choice"]
    manifest = read_manifest(evidence.cells)
    drawn = [entry for entry in manifest.entries if entry.model == name and entry.file]
    if not drawn:
        raise ValueError(
            f"{evidence.cells}: no picture by {name!r}, which {evidence.choice} chose; the grid "
            f"holds {', '.join(manifest.models)}. Draw it again: {DVC} repro grid_cells_final"
        )
    largest = max(entry.width * entry.height for entry in drawn)
    by_prompt = {e.prompt: e for e in reversed(drawn) if e.width * e.height == largest}
    chosen = list(reversed(by_prompt.values()))[:SAMPLES]
    return [(evidence.cells / str(entry.file), entry) for entry in chosen]


def publish_samples(samples: Sequence[tuple[Path, Entry]], folder: Path) -> list[Sample]:
    """Copy pictures beside the card."""
    folder.mkdir(parents=True, exist_ok=True)
    published = []
    for number, (path, entry) in enumerate(samples, start=1):
        shutil.copyfile(path, folder / f"{number:02}.png")
        published.append(Sample(f"{folder.name}/{number:02}.png", entry.prompt, entry.seed))
    return published


def thumbnail(path: Path) -> str:
    """Make a small JPEG of a picture, as a data: URL."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def data_counts(evidence: Evidence) -> dict[str, dict[str, int]]:
    """Collect whole numbers from the reports of filter and download, and the split's rows."""
    counts = {}
    for stage in ("filter", "download"):
        report = _read_object(evidence.reports / f"{stage}.json")
        counts[stage] = {key: value for key, value in report.items() if type(value) is int}
    counts["split"] = {
        what: _rows(evidence.split / f"{name}.parquet")
        for what, name in (("trained_on", "train"), ("held_out", "validation"))
    }
    return counts


def read_reference(evidence: Evidence, names: Mapping[str, str]) -> Reference:
    """Read what the cocktail before this one was made of, and how both did in the last choice.

    Raises:
        FileNotFoundError: if its file is missing.
        ValueError: naming the file, if it is damaged.
    """
    path = evidence.reference
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it is the reference cocktail (dvc pull)")
    sha256 = sha256_file(path)
    choice = read_choice(evidence.choice)
    ours = choice.get("candidates", {}).get(choice["choice"], {})
    theirs = choice.get("reference", {})
    figures = {
        what: (ours.get(what), theirs.get(what))
        for what in dict.fromkeys((*ours, *theirs))
        if what not in ("name", "label") and not what.endswith(("_low", "_high", "_lead"))
    }
    lineage = lineage_of(path, read_header(path).metadata)
    return Reference(names.get(sha256, path.stem), sha256, lineage, figures)


def read_choice(path: Path) -> dict[str, Any]:
    """Read the report of the last choice.

    Raises:
        FileNotFoundError, ValueError: naming it, if it is missing or names no choice.
    """
    return _read_object(path, "choice", "reason")


def _read_object(path: Path, *keys: str) -> dict[str, Any]:
    """Read a report that is an object and says some things in words."""
    report = read_report(path)
    lack = "no object"
    if isinstance(report, dict):
        missing = [key for key in keys if not isinstance(report.get(key), str)]
        if not missing:
            return report
        lack = f"an object without {missing[0]!r}"
    raise ValueError(f"{path}: not the report of a stage, but {lack}. Run `{DVC} repro` again")


def _rows(path: Path) -> int:
    """Count the rows of a manifest.

    Raises:
        FileNotFoundError, ValueError: naming it, if it is missing or damaged.
    """
    try:
        return int(read_metadata(path).num_rows)
    except ArrowInvalid as error:
        raise ValueError(f"{path}: not readable as parquet ({error}). Split again") from error


def read_report(path: Path) -> Any:
    """Read an earlier stage's report.

    Raises:
        FileNotFoundError, ValueError: naming it, if it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file. Run `{DVC} repro` first") from None
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
