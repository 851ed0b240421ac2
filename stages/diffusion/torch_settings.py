"""How torch is to compute."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CODES = 64  # of one network: sizes of picture, each with and without gradients
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_code_of_all_sizes() -> None:
    """Let the compiler keep code for many sizes: after eight it would go on without, in silence."""
    import torch._dynamo  # seconds, and only what is compiled needs it

    torch._dynamo.config.recompile_limit = CODES


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: calls this short lose more by waiting for others than they gain.

    Where other work keeps the cores busy, they took twenty times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reuse_memory() -> None:
    """Let glibc keep what is freed: fresh pages for each tensor cost more than the arithmetic.

    Elsewhere nothing happens.
    """
    keep_below = 1 << 30  # bytes; the library's own limit is lower on some systems
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, keep_below)
    mallopt(M_TRIM_THRESHOLD, keep_below)
