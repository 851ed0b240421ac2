"""What is drawn at random for a batch: noise, timesteps, and captions to leave out.

Every draw belongs to a key of (seed, example id, epoch or k), never to a batch, a process or a
device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.diffusion import noise
from stages.training.dataset import Batch, Dataset
from stages.training.params import TrainParams


@dataclass(frozen=True, slots=True)
class Drawn:
    """A batch as the UNet is asked about it."""

    ids: tuple[str, ...]
    latents: Tensor  # (B, 4, h, w) float32
    noise: Tensor  # shape of `latents`
    timesteps: Tensor  # (B,) int64
    captions: Tensor  # (B, L, D) last hidden states, or (B, L) int64 token ids
    counts: Tensor  # (B,) float32: 0 for the rows, behind those of `ids`, that only fill it up

    def to(self, device: torch.device) -> "Drawn":
        """Move it to a device, without waiting for the copy; convolutions want channels last."""
        moved = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.noise, self.timesteps, self.captions, self.counts)
        )
        latents = self.latents.to(device, non_blocking=True)
        return Drawn(self.ids, latents.contiguous(memory_format=torch.channels_last), *moved)


def draw_training(
    dataset: Dataset, params: TrainParams, total: int, size: int, epoch: int, rows: Sequence[int]
) -> Drawn:
    """Collect a batch to learn from.

    Args:
        dataset: the examples.
        params: of the run.
        total: timesteps of the noise schedule, 1000.
        size: a smaller batch is filled up to as many rows.
        epoch: under way.
        rows: of one bucket.
    """
    batch = dataset.take(rows)
    keys = [(params.seed, "train", id_, epoch) for id_ in batch.ids]
    shape = tuple(batch.latents.shape[1:])
    dropped = torch.tensor(
        [noise.draw_uniform(*key, "caption") < params.caption_dropout for key in keys]
    )
    batch.captions[dropped] = dataset.no_caption
    noises = [noise.draw_noise(shape, params.noise_offset, *key) for key in keys]
    timesteps = [int(total * noise.draw_uniform(*key)) for key in keys]
    return _drawn(batch, noises, timesteps, size)


def draw_validation(
    dataset: Dataset, seed: int, count: int, total: int, size: int, rows: Sequence[int], k: int
) -> Drawn:
    """Collect a batch to measure at the k-th of `count` timesteps; the rest as above."""
    batch = dataset.take(rows)
    shape = tuple(batch.latents.shape[1:])
    noises = [noise.draw_noise(shape, 0.0, seed, "validation", id_, k) for id_ in batch.ids]
    timesteps = [stratified_timestep(k, count, total, seed, id_) for id_ in batch.ids]
    return _drawn(batch, noises, timesteps, size)


def stratified_timestep(k: int, count: int, total: int, *key: noise.Key) -> int:
    """Draw a timestep from the k-th of `count` equal parts of [0, total)."""
    offset = noise.draw_uniform(*key, "validation", k)
    return min(int((k + offset) * total / count), total - 1)


def _drawn(batch: Batch, noises: list[Tensor], timesteps: list[int], size: int) -> Drawn:
    rows = torch.arange(max(size, len(batch))) % len(batch)  # more than there are: some twice
    tensors = [
        batch.latents[rows],
        torch.stack(noises)[rows],
        torch.tensor(timesteps)[rows],
        batch.captions[rows],
        (torch.arange(len(rows)) < len(batch)).float(),
    ]
    if torch.cuda.is_available():
        tensors = [tensor.pin_memory() for tensor in tensors]
    return Drawn(batch.ids, *tensors)
