"""Pictures for the page: some of the data, and those of the released model."""

import hashlib
import heapq
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from stages.drawing.manifest import MANIFEST, Entry, Manifest, read_manifest
from stages.images.shards import Stored

LONGEST_PX = 512  # a picture of the data that is larger is shown smaller
JPEG_QUALITY = 90
SUFFIXES = (".png", ".jpg", ".webp")


@dataclass(frozen=True, slots=True)
class Split:
    """The two sides of the data."""

    train: int  # pictures
    validation: int
    train_captions: int  # different ones
    validation_captions: int
    held_out: frozenset[str]  # ids of the validation side


def read_split(folder: Path) -> Split | None:
    """Count the rows of train.parquet and validation.parquet; None if they are not both there.

    Raises:
        ValueError: naming the file that is no manifest.
    """
    paths = [folder / f"{side}.parquet" for side in ("train", "validation")]
    if not all(path.is_file() for path in paths):
        return None
    sides = []
    for path in paths:
        try:
            sides.append(pq.read_table(path, columns=["id", "caption"]))
        except (pa.ArrowInvalid, KeyError) as error:
            raise ValueError(f"{path}: not a manifest of stages.split: {error}") from None
    train, validation = sides
    return Split(
        train=len(train),
        validation=len(validation),
        train_captions=len(train["caption"].unique()),
        validation_captions=len(validation["caption"].unique()),
        held_out=frozenset(validation["id"].to_pylist()),
    )


def pick_samples(stored: Iterable[Stored], count: int) -> list[Stored]:
    """Pick some as if at random: those whose ids hash lowest, so that few change with the data."""
    return heapq.nsmallest(count, stored, key=lambda sample: _rank(str(sample.facts["id"])))


def _rank(sample_id: str) -> bytes:
    return hashlib.sha256(sample_id.encode()).digest()


def copy_sample(sample: Stored, folder: Path, name: str) -> tuple[Path, int, int]:
    """Write a sample's picture, smaller if it is large.

    Args:
        sample: in its shard.
        folder: to write to.
        name: of the file, without suffix; the member's own name is not trusted.

    Returns:
        The file, and width and height of what it shows, px.

    Raises:
        ValueError: if the member is no picture.
    """
    with tarfile.open(sample.shard, "r:") as tar:
        file = tar.extractfile(sample.member)
        content = file.read() if file else b""
    suffix = Path(sample.member).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{sample.shard}: {sample.member!r} is none of {', '.join(SUFFIXES)}")
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(content)) as stored:
        picture = ImageOps.exif_transpose(stored)  # as browsers show the file itself
        if max(picture.size) <= LONGEST_PX:
            path = folder / f"{name}{suffix}"
            path.write_bytes(content)
            return path, *picture.size
        smaller = picture.convert("RGB")
    smaller.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.LANCZOS)
    path = folder / f"{name}.jpg"
    smaller.save(path, quality=JPEG_QUALITY)
    return path, *smaller.size


def find_cells(folder: Path, weights: str) -> tuple[Path, list[Entry], Manifest] | None:
    """Find the grid that drew a model: of several, the one with most of its pictures.

    Args:
        folder: grids lie in it, or below.
        weights: SHA-256 of the model's file.

    Returns:
        The grid's folder, the model's cells, and the grid; None if no grid drew it.
    """
    found = []
    for path in sorted(folder.rglob(MANIFEST)):
        manifest = read_manifest(path.parent)
        names = {name for name, sha256 in manifest.models.items() if sha256 == weights}
        entries = [e for e in manifest.entries if e.model in names and e.file]
        if entries:
            found.append((path.parent, entries, manifest))
    return max(found, key=lambda grid: len(grid[1]), default=None)


def one_per_prompt(entries: Iterable[Entry]) -> list[Entry]:
    """Take of each prompt the largest picture, of the first seed."""
    best: dict[str, Entry] = {}
    for entry in entries:
        shown = best.setdefault(entry.as_written, entry)
        if entry.width * entry.height > shown.width * shown.height:
            best[entry.as_written] = entry
    return list(best.values())
