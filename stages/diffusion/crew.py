"""Several processes that share one job, as `torchrun` starts them; one alone is a crew, too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

PATIENCE = timedelta(hours=12)  # of those who are done, for those who are not

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Crew:
    """One process's place among those that share the job."""

    rank: int
    size: int

    def gathered(self, value: T) -> list[T]:
        """Give every process's value to each, by rank; waits until all have come here."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]


@contextmanager
def crew() -> Iterator[Crew]:
    """Join the other processes of the job, if `torchrun` started any, and take a GPU each."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Crew(0, 1)
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Crew(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
