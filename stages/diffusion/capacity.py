"""How many pictures memory holds at once, found out by trying."""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Capacity:
    """How many items of one kind are worked on at once, as far as memory allows it."""

    def __init__(
        self,
        count: int,
        on_less: Callable[[int, int], None] = lambda count, less: None,  # noqa: ARG005
    ) -> None:
        """Begin with a guess.

        Args:
            count: as many as there should be.
            on_less: told how many did not fit, and how many are tried next.
        """
        self.count = count
        self._on_less = on_less

    def fill(
        self, make: Callable[[list[Item]], Sequence[Result]], items: Sequence[Item]
    ) -> Sequence[Result]:
        """Make the results of the first items, as many as are worked on at once.

        If there are fewer, the last one fills the batch up: all are of a size that fits, and a
        result depends on no more than that. Where memory ends, half as many are tried, for good.

        Raises:
            torch.OutOfMemoryError: if not even one fits.
        """
        while True:
            few = list(items[: self.count])
            try:
                return make([*few, *few[-1:] * (self.count - len(few))])[: len(few)]
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                if self.count == 1:
                    raise torch.OutOfMemoryError(str(error)) from None
            less = (self.count + 1) // 2
            self._on_less(self.count, less)
            self.count = less
            _free_memory()  # out here, where the error no longer holds what did not fit


def _is_out_of_memory(error: Exception) -> bool:
    """Tell by torch's error for GPUs, and by its words for the CPU."""
    is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_memory or "can't allocate memory" in str(error)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
