"""Encoded examples, read from their files row by row, and the order in which a run takes them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stages.diffusion import noise

SHARDS = "*.safetensors"
LATENTS, CAPTION = "latents/", "caption/"  # before an example's id: the keys of a shard
CUT_CAPTIONS = "cut_captions"  # in a shard's metadata: how many were too long for the text encoder
NO_CAPTION = "no_caption.safetensors"  # the empty caption, under CAPTION

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of one bucket."""

    ids: tuple[str, ...]
    latents: Tensor  # (B, 4, h, w) float32, times the scaling factor
    captions: Tensor  # (B, L, D) last hidden states, or (B, L) int64 token ids

    def __len__(self) -> int:
        return len(self.ids)


class Dataset:
    """The examples of a folder that `encode_examples` filled, by rising id.

    Files are mapped, not loaded: a process reads the rows that it takes.
    """

    def __init__(self, folder: Path) -> None:
        """Open the shards and read their lists.

        Raises:
            ValueError: if an id repeats, or a file is damaged; it is named.
        """
        self._files: dict[str, Any] = {}  # by id
        shapes: dict[str, tuple[int, ...]] = {}
        self.cut_captions = 0
        for path in sorted(folder.glob(SHARDS)):
            file: Any = _opened(path)
            if path.name == NO_CAPTION:
                self.no_caption: Tensor = file.get_tensor(CAPTION)
                continue
            self.cut_captions += int((file.metadata() or {}).get(CUT_CAPTIONS, 0))
            for id_ in (k.removeprefix(LATENTS) for k in file.keys() if k.startswith(LATENTS)):  # noqa: SIM118
                if id_ in self._files:
                    raise ValueError(f"two examples have the id {id_!r}; each needs its own")
                self._files[id_] = file
                shapes[id_] = tuple(file.get_slice(LATENTS + id_).get_shape())
        self.ids = tuple(sorted(self._files))
        self.shapes = tuple(shapes[id_] for id_ in self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> Batch:
        """Collect examples of one bucket."""
        ids = tuple(self.ids[row] for row in rows)
        return Batch(
            ids=ids,
            latents=torch.stack([self._read(LATENTS, id_) for id_ in ids]),
            captions=torch.stack([self._read(CAPTION, id_) for id_ in ids]),
        )

    def _read(self, kind: str, id_: str) -> Tensor:
        tensor: Tensor = self._files[id_].get_tensor(kind + id_)
        return tensor


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove its folder, and its examples are encoded anew"
        ) from error


def epoch_batches(dataset: Dataset, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffle rows within buckets and batches among each other; a pure function of its arguments.

    Returns:
        Rows of each batch, all of one bucket. Each row appears once: a bucket's last batch may
        be smaller.
    """
    rng = noise.generator(seed, "order", epoch)
    batches = []
    for rows in by_shape(dataset):
        shuffled = rng.permutation(rows).tolist()
        batches += _chunks(shuffled, batch_size)
    return [batches[i] for i in rng.permutation(len(batches))]


def by_shape(dataset: Dataset) -> list[list[int]]:
    """Group rows by the shape of their latents, smallest first."""
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, shape in enumerate(dataset.shapes):
        groups[shape].append(row)
    return [groups[shape] for shape in sorted(groups)]


def in_order(dataset: Dataset, batch_size: int) -> list[list[int]]:
    """List the rows of each batch, one bucket after the other, unshuffled."""
    return [chunk for rows in by_shape(dataset) for chunk in _chunks(rows, batch_size)]


def ahead(make: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Make each item's result in a thread, one ahead of the caller, so that the GPU never waits."""
    with ThreadPoolExecutor(1) as thread:
        waiting: Future[Result] | None = None
        for item in items:
            following = thread.submit(make, item)
            if waiting:
                yield waiting.result()
            waiting = following
        if waiting:
            yield waiting.result()


def _chunks(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
