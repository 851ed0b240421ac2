"""Merging one tensor after another: sums in stretches, methods over whole tensors.

A sum of models is computed in float32 in stretches of 256 Ki elements, in buffers made once, and
rounded once, to the dtype of the file. A stretch is w1*x1, then + w2*x2, then + w3*x3, in the
order of the expression, each product and each sum rounded to float32 by itself: no fused
operation, whose use differs between processors and between the middle and the end of an array. So
neither the stretch, nor the number of threads, nor the machine changes a byte.

Methods that look at whole tensors (see merge_methods) hold one tensor of each model that they
are given, in float32, and up to four more; merge_memory counts them, calls within calls too. The
largest tensor of SD 1.5 takes 152 MB: ties of two models and their base holds three, 0.5 GB.
They are computed by one thread, so that on one machine the same merge gives the same bytes.
"""

import hashlib
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from io import FileIO
from math import prod
from typing import Any

import torch
from torch import Tensor

from stages.diffusion.dtypes import TORCH_DTYPES
from stages.diffusion.torch_settings import one_thread, reuse_memory
from stages.merging import methods as merge_methods
from stages.merging.blocks import at_key
from stages.merging.expression import substituted
from stages.merging.source import Source, is_inpainting, is_trained_scale, read_into
from stages.merging.terms import Call, Sum, Term, Weights, model_names, model_weights
from stages.merging.text import format_sum

OTHER_FILES = 100  # open besides the inputs: libraries, pipes, the new file


class Merger:
    """Merges one tensor after another, in buffers made once; its files are open in its block."""

    def __init__(
        self,
        weights: Weights,
        sources: Mapping[str, Source],
        dtype: str,
        chunk_elements: int,
        allow_nonfinite: bool,
    ) -> None:
        """Make the buffers.

        Args:
            weights: of the whole expression.
            sources: that it names, in its order.
            dtype: of torch, by name, as in float16: of what is merged.
            chunk_elements: summed at a time.
            allow_nonfinite: whether NaN and infinity are let pass.
        """
        self.weights, self.sources = weights, sources
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.lowest, self.highest = torch.finfo(self.dtype).min, torch.finfo(self.dtype).max
        self.chunk_elements, self.allow_nonfinite = chunk_elements, allow_nonfinite
        self.files: dict[str, FileIO] = {}
        self.raw = torch.empty(chunk_elements * 4, dtype=torch.uint8)
        self.raw_bytes = self.raw.numpy().data
        self.total = torch.empty(chunk_elements, dtype=torch.float32)
        self.term = torch.empty(chunk_elements, dtype=torch.float32)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the files open, and torch as it computes best meanwhile."""
        if any(isinstance(term, Call) for term in self.weights):
            reuse_memory()
        _allow_open_files(len(self.sources) + OTHER_FILES)
        with ExitStack() as stack:
            stack.enter_context(one_thread())
            for name, source in self.sources.items():
                self.files[name] = stack.enter_context(source.path.open("rb", buffering=0))
            yield

    def copied(self, key: str) -> bytes:
        """Give a tensor of the first model as it is."""
        name = self._taken(key)[0]
        entry = self.sources[name].tensors[key]
        content = bytearray(entry.stop - entry.start)
        read_into(self.files[name], entry.start, memoryview(content))
        return bytes(content)

    def merge(self, key: str, take: Callable[[int], memoryview]) -> None:
        """Merge a tensor into the new file.

        Args:
            key: of the tensor.
            take: gives room for the next bytes, at most so many, to be filled at once.

        Raises:
            ValueError: if a value is not finite, in an input that the expression names for this
                tensor, be it with weight 0, or in the new file's dtype.
        """
        settled = at_key(self.weights, key)
        if is_trained_scale(key):
            settled = {self._taken(key)[0]: Fraction(1)}
        weights = {term: weight for term, weight in settled.items() if weight}
        if not self.allow_nonfinite:
            self._check_weightless(settled, weights, key)
        models = [(n, float(w)) for n, w in weights.items() if isinstance(n, str)]
        shapes = {self.sources[name].tensors[key].shape for name in self._taken(key)}
        whole: Tensor | None = None
        if len(shapes) > 1:
            whole = self._widened(weights, key).flatten()
        elif len(models) < len(weights):
            whole = self._whole(weights, key).flatten()
        count, start = prod(next(iter(shapes))) if whole is None else whole.numel(), 0
        while start < count:
            room = take(min(self.chunk_elements, count - start) * self.dtype.itemsize)
            stored = torch.frombuffer(room, dtype=self.dtype)
            stop = start + len(stored)
            values = self._summed(models, key, start, stop) if whole is None else whole[start:stop]
            self._check_range(values, key)
            stored.copy_(values)
            start = stop

    def _check_weightless(self, settled: Weights, weights: Weights, key: str) -> None:
        """Refuse NaN and infinity in what has weight 0: the sum would not show them."""
        shown = model_names(weights)
        for name in model_names(settled):
            if name not in shown:
                self._check_finite(name, key)

    def _check_finite(self, name: str, key: str) -> None:
        """Refuse NaN and infinity in a model's tensor, stretch by stretch."""
        count = prod(self.sources[name].tensors[key].shape)
        for start in range(0, count, self.chunk_elements):
            values = self.term[: min(self.chunk_elements, count - start)]
            values.copy_(self._read(name, key, start, start + len(values)))
            low, high = values.aminmax()
            if not (low.isfinite() and high.isfinite()):
                raise ValueError(self._nonfinite(name, key))

    def _summed(
        self, models: Sequence[tuple[str, float]], key: str, start: int, stop: int
    ) -> Tensor:
        """Sum a stretch of one tensor over models; the result lives until the next call."""
        total = self.total[: stop - start]
        if not models:
            total.zero_()
        for i, (name, weight) in enumerate(models):
            product = self.term[: stop - start] if i else total
            product.copy_(self._read(name, key, start, stop)).mul_(weight)
            if i:
                total.add_(product)
        return total

    def _whole(self, weights: Mapping[Term, Fraction] | Sum, key: str) -> Tensor:
        """Compute a sum of models and methods over a whole tensor, float32."""
        total: Tensor | None = None
        for term, weight in dict(weights).items():
            value = self._load(term, key) if isinstance(term, str) else self._called(term, key)
            value.mul_(float(weight))
            total = value if total is None else total.add_(value)
        return self._load(self._taken(key)[0], key).zero_() if total is None else total

    def _widened(self, weights: Weights, key: str) -> Tensor:
        """Merge the first layer of an inpainting model: the channels that all models have.

        Those of the mask and the masked picture are merged among the models that have them.
        """
        own = self._read_whole(self._taken(key)[0], key)
        own[:, : self._channels(key)] = self._whole(weights, key)
        self._merge_mask_channels(own, weights, key)
        return own

    def _merge_mask_channels(self, own: Tensor, weights: Weights, key: str) -> None:
        """Take the mean of what several inpainting models have besides, by their weights."""
        shares = {
            name: share
            for name, share in model_weights(weights).items()
            if is_inpainting(self.sources[name])
        }
        total = sum(shares.values(), Fraction())
        if total <= 0:
            return  # nobody has a say: the first model's own stay
        mask = own[:, self._channels(key) :]
        merged = torch.zeros_like(mask)
        for name, share in shares.items():
            whole = self._read_whole(name, key)
            merged.add_(whole[:, self._channels(key) :].mul_(float(share / total)))
        mask.copy_(merged)

    def _channels(self, key: str) -> int:
        return min(self.sources[name].tensors[key].shape[1] for name in self._taken(key))

    def _taken(self, key: str) -> list[str]:
        """Name the models that a tensor is taken from, in the order of the expression."""
        names = list(self.sources)
        taken = model_names(at_key(self.weights, key)) or names[:1]
        return [name for name in names if name in taken]

    def _called(self, call: Call, key: str) -> Tensor:
        """Compute what a method makes of whole tensors."""
        models = {name: [self._whole(model, key) for model in sums] for name, sums in call.models}
        numbers = {name: float(values[0]) for name, values in call.numbers}
        given: dict[str, Any] = {
            **{name: models[name] if name == "models" else models[name][0] for name in models},
            **numbers,
        }
        if call.method == "dare":
            places = {name: f"model{i}" for i, name in enumerate(self.sources)}
            who = substituted(format_sum(call.model("a")), places, brackets=False)
            text = f"{int(given.pop('seed'))}:{who}:{key}"
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")
            given["generator"] = torch.Generator().manual_seed(seed)
        result: Tensor = getattr(merge_methods, call.method)(**given)
        return result

    def _load(self, name: str, key: str) -> Tensor:
        """Read a model's tensor; of an inpainting model's first layer, the common channels."""
        whole = self._read_whole(name, key)
        if not self.allow_nonfinite and whole.numel():
            low, high = whole.aminmax()
            if not (low.isfinite() and high.isfinite()):
                raise ValueError(self._nonfinite(name, key))
        if whole.ndim > 1 and whole.shape[1] > (channels := self._channels(key)):
            return whole[:, :channels].contiguous()
        return whole

    def _read_whole(self, name: str, key: str) -> Tensor:
        entry = self.sources[name].tensors[key]
        count = prod(entry.shape)
        whole = torch.empty(count, dtype=torch.float32)
        for start in range(0, count, self.chunk_elements):
            stop = min(start + self.chunk_elements, count)
            whole[start:stop].copy_(self._read(name, key, start, stop))
        return whole.view(entry.shape)

    def _read(self, name: str, key: str, start: int, stop: int) -> Tensor:
        """Read a stretch of a tensor as it is stored; it lives until the next call."""
        entry = self.sources[name].tensors[key]
        dtype = TORCH_DTYPES[entry.dtype]
        size = (stop - start) * dtype.itemsize
        read_into(self.files[name], entry.start + start * dtype.itemsize, self.raw_bytes[:size])
        return self.raw[:size].view(dtype)

    def _check_range(self, values: Tensor, key: str) -> None:
        """Refuse values that the new file's dtype cannot hold."""
        low, high = values.aminmax()  # NaN if any value is, and far quicker than isfinite of each
        is_safe = self.lowest <= low.item() and high.item() <= self.highest
        if not (is_safe or self.allow_nonfinite or self._fits(low, high)):
            raise ValueError(self._blame(key))

    def _fits(self, low: Tensor, high: Tensor) -> bool:
        """Tell whether what lies just beyond the largest number is still rounded to it."""
        return bool(low.to(self.dtype).isfinite() and high.to(self.dtype).isfinite())

    def _blame(self, key: str) -> str:
        for name in self._taken(key):
            if not self._read_whole(name, key).isfinite().all():
                return self._nonfinite(name, key)
        return (
            f"{key!r}: the result is too large for {self.dtype}. Write float32, or look at the "
            "weights of the expression"
        )

    def _nonfinite(self, name: str, key: str) -> str:
        return (
            f"{self.sources[name].path}: {key!r} holds NaN or infinity. Did its training diverge? "
            "Fetch or make it again; --allow-nonfinite merges it all the same"
        )


def _allow_open_files(count: int) -> None:
    """Let this process open so many files, where a system's default is fewer: 1,024, or 256."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != resource.RLIM_INFINITY and now < count:
        wanted = count if most == resource.RLIM_INFINITY else min(count, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
