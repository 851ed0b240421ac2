"""Manifests: tables that name pictures in shards, as `stages.split` writes them."""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from stages.harness.files import sha256_bytes

Made = TypeVar("Made")
COLUMNS = ("id", "caption", "shard", "member", "sha256")


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of a manifest."""

    id: str
    caption: str
    shard: str  # path of the tar file, from where the stage runs
    member: str  # name of the picture inside
    sha256: str  # of the picture's bytes


@dataclass(frozen=True, slots=True)
class Pictures(Generic[Made]):
    """What is made of the pictures of a manifest, each read only when it is asked for."""

    entries: list[Entry]
    make: Callable[[Entry, bytes], Made]

    def __len__(self) -> int:
        """Count them."""
        return len(self.entries)

    def __getitem__(self, part: slice) -> Iterator[Made]:
        """Read some of them; see `read_pictures` for what may be wrong."""
        return (self.make(entry, image) for entry, image in read_pictures(self.entries[part]))


def read_manifest(path: Path) -> list[Entry]:
    """Read the rows of a manifest, by shard and member.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no manifest, or has no rows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such manifest. `python -m stages.split` makes it")
    try:
        names = pq.read_schema(path).names
        if missing := [name for name in COLUMNS if name not in names]:
            raise ValueError(
                f"{path}: no column {missing[0]!r}, only {', '.join(names)}. Is this a manifest "
                "of `python -m stages.split`?"
            )
        rows = pq.read_table(path, columns=list(COLUMNS)).to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not readable as parquet: {error}") from None
    if not rows:
        raise ValueError(f"{path}: the manifest has no rows. Were all pictures filtered out?")
    return sorted((Entry(**row) for row in rows), key=lambda entry: (entry.shard, entry.member))


def read_pictures(entries: list[Entry]) -> Iterator[tuple[Entry, bytes]]:
    """Read the pictures' files, one after the other, each shard opened once.

    Raises:
        FileNotFoundError: if a shard is missing.
        ValueError: if a picture is missing in its shard, or is not what the manifest says.
    """
    for shard, members in groupby(entries, key=lambda entry: entry.shard):
        try:
            with tarfile.open(shard, "r:") as tar:
                for entry in members:
                    yield entry, _content(tar, entry)
        except tarfile.TarError as error:
            raise ValueError(f"{shard}: not readable as a shard of pictures: {error}") from None


def _content(tar: tarfile.TarFile, entry: Entry) -> bytes:
    """Read one picture and compare its hash."""
    try:
        file = tar.extractfile(entry.member)
    except KeyError:
        file = None
    content = file.read() if file else None
    if content is None or sha256_bytes(content) != entry.sha256:
        what = "is missing" if content is None else "is not the picture that the manifest means"
        raise ValueError(
            f"{entry.shard}: {entry.member} {what} (id {entry.id}). Run download and split again"
        )
    return content
