"""WebDataset shards: tar files that hold, per sample, picture, caption and facts under one name.

The same samples in the same order give the same bytes: no clock, user or machine enters.

Source: https://github.com/webdataset/webdataset, "The WebDataset Format".
"""

import io
import itertools
import json
import os
import re
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.harness.files import sha256_bytes
from stages.images.metadata import without_metadata
from stages.images.outcome import Fetched

COPY_BYTES = 1 << 20
# A name ends at its first dot; slashes would make folders.
SAFE_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


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


def write_shards(samples: Iterable[Sample], folder: Path, shard_size: int) -> int:
    """Write `00000.tar`, `00001.tar` … of `shard_size` samples each, in the order given.

    Pictures are read and checked in threads, a few ahead of the one that is written.

    Returns:
        The number of shards.

    Raises:
        ValueError: if a picture's file is no longer what it was when it was verified.
    """
    ready, shards = _ahead(samples), 0
    while (first := next(ready, None)) is not None:
        with tarfile.open(folder / f"{shards:05}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            tar.copybufsize = COPY_BYTES  # type: ignore[attr-defined]
            for files in itertools.chain([first], itertools.islice(ready, shard_size - 1)):
                for name, content in files:
                    header = tarfile.TarInfo(name)  # mtime 0, nobody's, mode 0644
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))
        shards += 1
    return shards


def _ahead(samples: Iterable[Sample]) -> Iterator[list[tuple[str, bytes]]]:
    """Give the files of each sample, in order."""
    workers = os.cpu_count() or 1
    waiting: deque[Future[list[tuple[str, bytes]]]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        for sample in samples:
            waiting.append(threads.submit(lambda s: list(members(s)), sample))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    """Make the files of a sample: picture, `.txt`, `.json`; the picture's own words stay out."""
    picture, key = sample.fetched.picture, sample_key(sample.id)
    original = sample.fetched.path.read_bytes()
    if sha256_bytes(original) != picture.sha256:
        raise ValueError(
            f"picture {sample.id}: its file changed while this stage ran. Leave mirrors and "
            ".work alone meanwhile, and start again"
        )
    content = without_metadata(original)
    facts = sample.facts | {
        "id": sample.id,
        "caption": sample.caption,
        "width": picture.width,
        "height": picture.height,
        "sha256": picture.sha256 if content == original else sha256_bytes(content),
    }
    yield f"{key}{picture.suffix}", content
    yield f"{key}.txt", sample.caption.encode()
    yield f"{key}.json", json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()


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
