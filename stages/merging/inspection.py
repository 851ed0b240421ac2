"""What a file of weights holds and was made of, in words."""

from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path

from stages.diffusion.header import read_header
from stages.harness.counted import counted
from stages.lineage.ancestry import Lineage
from stages.lineage.in_file import lineage_of
from stages.merging.blocks import part_of
from stages.merging.source import peculiarities

SHOWN_CHARS = 200  # of a metadata value


def described(path: Path) -> Iterator[str]:
    """List lines that tell a file's parts, dtypes, metadata and parents.

    Raises:
        OSError: if there is no such file.
        ValueError: naming it, if it is no whole safetensors file.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name one safetensors file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    header = read_header(path)
    yield f"{path}: {path.stat().st_size / 1e9:.2f} GB, {len(header.tensors):,} tensors"
    parts: dict[str, Counter[str]] = {}
    for key, entry in header.tensors.items():
        parts.setdefault(part_of(key) or "other", Counter())[entry.dtype] += prod(entry.shape)
    for part, dtypes in parts.items():
        kinds = ", ".join(f"{count / 1e6:,.1f} M {dtype}" for dtype, count in dtypes.items())
        yield f"  {part:<13} {kinds}"
    for note in peculiarities(header.tensors):
        yield f"  {note}"
    yield from _told(lineage_of(path, header.metadata))
    yield "metadata:" if header.metadata else "no metadata"
    for key, value in header.metadata.items():
        shown = value if len(value) <= SHOWN_CHARS else f"{value[:SHOWN_CHARS]}… ({len(value):,})"
        yield f"  {key}: {shown}"


def _told(lineage: Lineage) -> Iterator[str]:
    """List what a file was made of, as it tells."""
    if lineage.recipe:
        made = lineage.recipe.get("expression") or lineage.recipe.get("run")
        yield f"made by {lineage.recipe.get('kind')}: {made}"
    if lineage.doubt:
        yield f"made of nobody knows what: {lineage.doubt}"
    for name, sha256 in lineage.inputs().items():
        yield f"  {name} = {_named(lineage, sha256)}"
    others = set(lineage.ancestors) - set(lineage.inputs().values())
    if others:
        where = "before these" if lineage.inputs() else "that it names"
        yield f"  and {counted(len(others), 'ancestor')} {where}:"
        for sha256 in sorted(others, key=lineage.title):
            yield f"    {_named(lineage, sha256)}"


def _named(lineage: Lineage, sha256: str) -> str:
    foreign = lineage.ancestors[sha256].foreign
    told = f", by another program: {foreign}" if foreign else ""
    return f"{lineage.title(sha256)}, SHA-256 {sha256}{told}"
