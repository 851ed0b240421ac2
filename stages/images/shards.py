"""WebDataset shards: tar files that hold, per sample, picture, caption and facts under one name.

The same samples in the same order give the same bytes: no clock, user or machine enters.

Source: https://github.com/webdataset/webdataset, "The WebDataset Format".
"""

import itertools
import json
import os
import re
import struct
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

from stages.harness.files import sha256_bytes
from stages.images.metadata import Piece, plain_parts, sha256_parts
from stages.images.outcome import Fetched

# A name ends at its first dot; slashes would make folders.
SAFE_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
WRITTEN_OUT_BYTES = 16 << 20  # of a shard, at once


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture that was fetched, and what is known about it."""

    id: str
    caption: str
    fetched: Fetched
    facts: dict[str, Any]  # beside id, caption, width, height and sha256


@dataclass(frozen=True, slots=True)
class Stored:
    """A sample in a shard; its picture is left there."""

    shard: Path
    member: str  # name of the picture inside
    facts: dict[str, Any]


def sample_key(sample_id: str) -> str:
    """Name the members of a sample: its id, or a hash where an id makes no plain file name.

    >>> sample_key("1141181543921971739"), sample_key("../../x")
    ('1141181543921971739', '9cdf6a50100a862e1428')
    """
    return sample_id if SAFE_KEY.fullmatch(sample_id) else sha256_bytes(sample_id.encode())[:20]


def write_shards(
    samples: Iterable[Sample],
    folder: Path,
    shard_size: int,
    written: Callable[[Sample, Path, int, int], None] = lambda *_: None,
) -> int:
    """Write `00000.tar`, `00001.tar` … of `shard_size` samples each, in the order given.

    Args:
        samples: may come slowly; each is in its shard's file before the next is asked for.
        folder: of the shards.
        shard_size: samples in a shard.
        written: called after each sample, with the shard, and the place and size of the picture.

    Returns:
        The number of shards.

    Raises:
        ValueError: if a picture's file is no longer what it was when it was verified.
    """
    waiting, shards = iter(samples), 0
    while (first := next(waiting, None)) is not None:
        path = folder / f"{shards:05}.tar"
        with path.open("wb") as file:
            unsent = 0
            for sample in itertools.chain([first], itertools.islice(waiting, shard_size - 1)):
                start = file.tell()
                files = list(members(sample))
                for name, parts in files:
                    file.writelines(_blocks(name, parts))
                file.flush()
                unsent = _write_out(file, unsent)
                written(sample, path, start + tarfile.BLOCKSIZE, _size(files[0][1]))
            file.write(bytes(2 * tarfile.BLOCKSIZE))  # the end of a tar file, then a full record
            file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
        shards += 1
    return shards


def _write_out(file: BufferedWriter, start: int) -> int:
    """Have the system write a shard to the disk bit by bit, and forget what is written.

    Else gigabytes gather in memory, and when the system writes them it stops all that write, and
    writes the pictures' own files, too, which are gone a moment later.

    Args:
        file: flushed.
        start: of what was not asked for yet.

    Returns:
        The next start.
    """
    end = file.tell()
    if end - start < WRITTEN_OUT_BYTES or not hasattr(os, "posix_fadvise"):  # macOS has none
        return start
    # what an earlier call sent to the disk is there by now, and is forgotten by this one
    os.posix_fadvise(file.fileno(), 0, end, os.POSIX_FADV_DONTNEED)
    return end


def _blocks(name: str, parts: list[Piece]) -> list[Piece]:
    """Make a member of a tar file: header, content, and zeros up to a whole block."""
    header = tarfile.TarInfo(name)  # mtime 0, nobody's, mode 0644
    header.size = _size(parts)
    head = header.tobuf(tarfile.USTAR_FORMAT)
    return [head, *parts, bytes(-header.size % tarfile.BLOCKSIZE)]


def _size(parts: list[Piece]) -> int:
    return sum(map(len, parts))


def members(sample: Sample) -> Iterator[tuple[str, list[Piece]]]:
    """Make the files of a sample: picture, `.txt`, `.json`; the picture's own words stay out."""
    picture, key = sample.fetched.picture, sample_key(sample.id)
    parts = sample.fetched.parts
    if parts is None:
        try:
            parts = plain_parts(sample.fetched.read())
        except (struct.error, IndexError):  # of what is no picture any more
            parts = []
        if sha256_parts(parts) != picture.sha256:
            raise ValueError(
                f"picture {sample.id}: its file changed while this stage ran. Leave mirrors and "
                ".work alone meanwhile, and start again"
            )
    facts = sample.facts | {
        "id": sample.id,
        "caption": sample.caption,
        "width": picture.width,
        "height": picture.height,
        "sha256": picture.sha256,
    }
    yield f"{key}{picture.suffix}", parts
    yield f"{key}.txt", [sample.caption.encode()]
    yield f"{key}.json", [json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()]


def read_shards(folder: Path) -> Iterator[Stored]:
    """List the samples of all shards, in order, without reading a picture.

    Raises:
        FileNotFoundError: if there is no shard.
        ValueError: naming the shard that is no tar file, or holds no whole samples.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise FileNotFoundError(
            f"{folder}: no shards (00000.tar …) here. `python -m stages.download` makes them"
        )
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as tar:
                yield from _read_shard(tar, shard)
        except (tarfile.TarError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{shard}: not readable as a shard of pictures: {error}") from None


def _read_shard(tar: tarfile.TarFile, shard: Path) -> Iterator[Stored]:
    pictures: dict[str, str] = {}
    for header in tar:
        key, _, kind = header.name.partition(".")
        if kind not in ("txt", "json"):
            pictures[key] = header.name
        elif kind == "json":
            file = tar.extractfile(header)
            if file is None or key not in pictures:
                raise tarfile.ReadError(f"{header.name} stands there without its picture before it")
            yield Stored(shard, pictures.pop(key), json.loads(file.read()))
    if pictures:
        raise tarfile.ReadError(f"{next(iter(pictures.values()))} has no .json")
