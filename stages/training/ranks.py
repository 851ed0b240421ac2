"""The processes that train one model together, one per GPU: who they are, what they add up.

`torchrun` starts them and names each in its environment. All hold the whole model and take the
same steps; each computes the gradients of its share of a batch.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from math import ceil

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=2)  # one draws pictures or writes a checkpoint while the others wait
LARGE = 1 << 20  # elements; smaller tensors travel together


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among those that train together."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def share(self, batches: Sequence[list[int]]) -> list[list[int]]:
        """Choose this process's rows of a step's batches: whole batches, and parts of the rest.

        >>> Ranks(1, 2, torch.device("cpu")).share([[1, 2], [3, 4], [5, 6, 7]])
        [[3, 4], [6]]
        """
        whole = len(batches) // self.count * self.count
        parts = [rows[self.rank :: self.count] for rows in batches[whole:]]
        return [*batches[self.rank : whole : self.count], *(rows for rows in parts if rows)]

    def largest_share(self, batch_size: int, batches: int) -> int:
        """Give the most rows of one batch that a process ever takes at once."""
        return batch_size if batches >= self.count else ceil(batch_size / self.count)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place."""
        if self.count == 1:
            return
        small = [t for t in tensors if t.numel() < LARGE]
        together = torch.cat([t.reshape(-1) for t in small]) if small else torch.empty(0)
        flat = [_in_memory_order(t) for t in tensors if t.numel() >= LARGE]
        works = [dist.all_reduce(t, async_op=True) for t in (*flat, together) if t.numel()]
        for work in works:
            work.wait()
        for tensor, part in zip(small, together.split([t.numel() for t in small]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def agree(self, number: int) -> int:
        """Give the largest of the processes' numbers to all of them."""
        if self.count == 1:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def all_have(self, number: int) -> bool:
        """Tell whether all processes have the same number."""
        return self.agree(number) == -self.agree(-number)

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.agree(0)


def alone(device: torch.device | str | None = None) -> Ranks:
    """Describe a process that trains by itself, on the first GPU if there is one."""
    return Ranks(0, 1, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))


@contextmanager
def joined() -> Iterator[Ranks]:
    """Find the other processes that torchrun started; a process without torchrun is alone.

    Raises:
        ValueError: if there are more processes than GPUs on a machine that has GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield alone()
        return
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if gpus and local >= gpus:
        raise ValueError(f"process {local} has no GPU: torchrun --nproc-per-node is above {gpus}")
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), count, device)
    finally:
        dist.destroy_process_group()


def _in_memory_order(tensor: Tensor) -> Tensor:
    """View a tensor's elements as they lie in memory, so that nothing is copied."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.view(-1)
