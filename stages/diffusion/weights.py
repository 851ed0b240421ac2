"""Weighted sums of whole files of weights, streamed: memory does not grow with the files.

Each tensor is summed in float32 in stretches of 1 Mi elements, in buffers made once, and rounded
once, to the dtype of the file. A stretch is w1*x1, then + w2*x2, then + w3*x3, in the order of
the expression, each product and each sum rounded to float32 by itself: no fused operation, whose
use differs between processors and between the middle and the end of an array. So neither the
stretch, nor the number of threads, nor the machine changes a byte.
"""

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from stages.diffusion.ancestry import Parent, made_from, read_parent
from stages.diffusion.expression import check_sum, format_weight, parse_expression
from stages.diffusion.model import DTYPE_NAMES, TensorEntry, header_bytes, read_header
from stages.diffusion.single_file import (
    OTHER_FILES,
    POSITION_IDS,
    TEXT_ENCODER,
    UNET,
    normal_keys,
)
from stages.harness.files import replacing

TENSORS_HASH = "modelspec.hash_sha256"  # of all that follows the header, "0x" and 64 hex digits
CHUNK_ELEMENTS = 1 << 20  # 4 MiB of float32: fits the caches, and a call of torch costs nothing
POSITIONS = TEXT_ENCODER + "embeddings.position_embedding.weight"
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read tensors from."""

    path: Path
    metadata: Mapping[str, str]
    tensors: dict[str, TensorEntry]  # by normal key, sorted

    def shape(self, key: str) -> str:
        """Tell shape and kind of a tensor, for messages."""
        entry = self.tensors.get(key)
        return f"{list(entry.shape)} {entry.dtype}" if entry else "no such key"


@dataclass(frozen=True, slots=True)
class Term:
    """One open file and its weight in the sum."""

    weight: float
    source: Source
    file: FileIO


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge came to."""

    tensors_hash: str  # SHA-256 of the tensors' bytes
    size: int  # bytes of the file
    parents: dict[str, Parent]


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes where in the new file, in the order of its bytes."""

    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    dtype: torch.dtype  # of the floating-point ones among them
    size: int  # bytes of all tensors


def merge_files(
    inputs: Mapping[str, Path],
    expression: str,
    out: Path,
    dtype: torch.dtype,
    *,
    name: str | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
    advance: Callable[[int, int], None] | None = None,
) -> Merged:
    """Write the weighted sum of files that an expression describes.

    Floating-point tensors are summed. Integers are copied from the expression's first name, and
    `position_ids` count from 0, as they do in every sound file. EMA copies, scheduler buffers
    and the like, which the networks do not use, are left out.

    Args:
        inputs: files of one architecture, in the original layout, by name.
        expression: of all these names; its weights sum to 1.
        out: none of the inputs; an older file there stays whole until the new one is.
        dtype: of the new file's floating-point tensors.
        name: of the recipe, for the ancestry.
        chunk_elements: summed at a time; changes no byte.
        advance: is told the bytes of tensors written, and how many there will be.

    Raises:
        ValueError: if names, keys, shapes or dtypes do not fit, or a value is not finite.
        OSError: if a file is missing or the new one cannot be written, as when the disk is full.
    """
    weights = parse_expression(expression)
    check_sum(expression, weights)
    check_names(expression, weights, inputs)
    sources = {key: open_source(inputs[key]) for key in weights}
    first, *others = sources.values()
    for other in others:
        check_alike(first, other)
    check_not_an_input(out, inputs)
    plan = plan_file(first, dtype)
    terms = [(float(w), sources[key]) for key, w in weights.items() if w]
    recipe = {
        "kind": "merge",
        **({"name": name} if name else {}),
        "expression": expression,
        "weights": {key: format_weight(w) for key, w in weights.items()},
        "dtype": str(dtype).removeprefix("torch."),
    }

    def metadata(parents: Mapping[str, Parent], tensors_hash: str) -> dict[str, str]:
        return {**made_from(recipe, parents), TENSORS_HASH: f"0x{tensors_hash}"}

    # The parents' hashes stand in the header, before the tensors, and take as long to compute as
    # these: both at once, the header last. Equal parents make it shorter than what is left free.
    unknown = {
        key: Parent(f"{i:064x}", "0" * 8, source.metadata)
        for i, (key, source) in enumerate(sources.items())
    }
    room = len(header_bytes(plan.shapes, metadata(unknown, NO_HASH)))
    with (
        ThreadPoolExecutor(1) as pool,
        one_thread(),
        writing(out, room + plan.size) as file,
    ):
        hashing = _start_hashing(pool, sources)
        try:
            file.seek(room)
            tensors_hash = hashlib.sha256()
            written = 0
            for content in _tensor_bytes(plan, first, terms, chunk_elements):
                file.write(content)
                tensors_hash.update(content)
                written += len(content)
                if advance:
                    advance(written, plan.size)
            parents = {key: future.result() for key, future in hashing.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        file.seek(0)
        file.write(
            widened(header_bytes(plan.shapes, metadata(parents, tensors_hash.hexdigest())), room)
        )
    return Merged(tensors_hash.hexdigest(), room + plan.size, parents)


def open_source(path: Path) -> Source:
    """Read a file's header, and give its tensors their normal keys.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a pickle or not whole, or holds tensors of a dtype not known here.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Make it (dvc repro), fetch it (dvc pull), or name another"
        )
    header = read_header(path)
    is_stable_diffusion = any(key.startswith(UNET) for key in header.tensors)
    keys = normal_keys(header.tensors) if is_stable_diffusion else {k: k for k in header.tensors}
    tensors = {normal: header.tensors[key] for normal, key in keys.items()}
    for key, entry in tensors.items():
        if entry.dtype not in DTYPES:
            raise ValueError(
                f"{path}: {key!r} is stored as {entry.dtype}; known here are "
                f"{', '.join(DTYPES)}. Convert the file, or fetch its float16 version"
            )
        if entry.stop - entry.start != prod(entry.shape) * DTYPES[entry.dtype].itemsize:
            raise ValueError(
                f"{path}: damaged: {key!r} has {entry.stop - entry.start:,} bytes, which is not "
                f"what {list(entry.shape)} of {entry.dtype} take. Fetch or make it again"
            )
    if not tensors:
        raise ValueError(f"{path}: holds no weights")
    return Source(path, header.metadata, tensors)


def check_names(expression: str, wanted: Mapping[str, object], given: Mapping[str, Path]) -> None:
    """Refuse names of the expression without a file, and files that it does not name."""
    if missing := [name for name in wanted if name not in given]:
        raise ValueError(
            f"{expression!r} names {missing[0]!r}, but no file is given for it. "
            f"Add {missing[0]}=FILE"
        )
    if unused := [name for name in given if name not in wanted]:
        raise ValueError(
            f"{unused[0]}={given[unused[0]]} is given, but {expression!r} does not name "
            f"{unused[0]!r}; it names {', '.join(wanted)}. Use it there, or leave it away"
        )


def check_alike(first: Source, other: Source) -> None:
    """Refuse to merge files whose keys, shapes or kinds of numbers differ.

    Raises:
        ValueError: naming the first differing key, in sorted order, and both shapes.
    """
    keys = sorted({*first.tensors, *other.tensors})
    differing = [key for key in keys if _form(first, key) != _form(other, key)]
    if differing:
        key, more = differing[0], len(differing) - 1
        raise ValueError(
            f"{other.path}: not the architecture of {first.path}. First differing key: {key!r}, "
            f"{first.shape(key)} there, {other.shape(key)} here"
            + (f" ({more:,} more differ). " if more else ". ")
            + _hint(first, other)
        )


def check_not_an_input(out: Path, inputs: Mapping[str, Path]) -> None:
    """Refuse to write over a file that is read: nobody could make the result again."""
    for name, path in inputs.items():
        if out.exists() and out.samefile(path):
            raise ValueError(f"{out}: is also the input {name!r}. Write to another file")


def plan_file(first: Source, dtype: torch.dtype) -> Plan:
    """Lay out a new file of one architecture.

    Args:
        first: whose keys and shapes it gets.
        dtype: of floating-point tensors.
    """
    shapes = {
        key: (_stored(entry, dtype), entry.shape)
        for key, entry in first.tensors.items()
        if key != POSITION_IDS
    }
    if POSITIONS in shapes:
        shapes[POSITION_IDS] = (torch.int64, (1, shapes[POSITIONS][1][0]))
    # Wide elements first, as the library does: every tensor starts at a multiple of its width.
    ordered = dict(sorted(shapes.items(), key=lambda item: (-item[1][0].itemsize, item[0])))
    size = sum(kind.itemsize * prod(shape) for kind, shape in ordered.values())
    return Plan(ordered, dtype, size)


@contextmanager
def writing(path: Path, size: int) -> Iterator[BinaryIO]:
    """Open a file that is whole in the end, or not there; an older one stays till then.

    Args:
        path: of the file to be.
        size: that it will have; a disk without that much room is known before the work.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    try:
        with replacing(path) as scratch:
            if shutil.disk_usage(path.parent).free < size:
                raise OSError(errno.ENOSPC, f"No room for {size / 1e9:.2f} GB")
            with scratch.open("wb") as file:
                yield file
    except OSError as error:
        if error.filename is not None:  # of a file that was read
            raise
        raise OSError(
            error.errno,
            f"{error.strerror} (writing weights; an older file of this name is as it was)",
            str(path),
        ) from error


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


def widened(header: bytes, length: int) -> bytes:
    """Fill a safetensors header with blanks, as the format allows, up to a length in bytes."""
    text = header[8:].ljust(length - 8)
    return len(text).to_bytes(8, "little") + text


class Summer:
    """Sums one stretch of several tensors after another, in buffers made once."""

    def __init__(self, dtype: torch.dtype, chunk_elements: int) -> None:
        self.dtype = dtype
        self.raw = torch.empty(chunk_elements * 4, dtype=torch.uint8)
        self.raw_bytes = self.raw.numpy().data
        self.total = torch.empty(chunk_elements, dtype=torch.float32)
        self.term = torch.empty(chunk_elements, dtype=torch.float32)
        self.stored = torch.empty(chunk_elements * dtype.itemsize, dtype=torch.uint8)
        self.stored_bytes = self.stored.numpy().data

    def sum(self, terms: Sequence[Term], key: str, start: int, stop: int) -> memoryview:
        """Sum elements `start` to `stop` of one tensor; the bytes live until the next call.

        Raises:
            ValueError: if a value is not finite in the new file's dtype.
        """
        count = stop - start
        total = self.total[:count]
        for i, term in enumerate(terms):
            product = self.term[:count] if i else total
            product.copy_(self._read(term, key, start, count)).mul_(term.weight)
            if i:
                total.add_(product)
        low, high = total.aminmax()  # NaN if any value is, and far quicker than isfinite of each
        if not (low.to(self.dtype).isfinite() and high.to(self.dtype).isfinite()):
            raise ValueError(self._blame(terms, key, start, count))
        size = count * self.dtype.itemsize
        self.stored[:size].view(self.dtype).copy_(total)
        return self.stored_bytes[:size]

    def _read(self, term: Term, key: str, start: int, count: int) -> Tensor:
        entry = term.source.tensors[key]
        dtype = DTYPES[entry.dtype]
        size = count * dtype.itemsize
        read_into(term.file, entry.start + start * dtype.itemsize, self.raw_bytes[:size])
        return self.raw[:size].view(dtype)

    def _blame(self, terms: Sequence[Term], key: str, start: int, count: int) -> str:
        for term in terms:
            if not self._read(term, key, start, count).isfinite().all():
                return (
                    f"{term.source.path}: {key!r} holds NaN or infinity. Did its training "
                    "diverge? Fetch or make it again"
                )
        return (
            f"{key!r}: the sum is too large for {self.dtype}. Write float32, or look at the "
            "weights of the expression"
        )


def read_into(file: FileIO, position: int, buffer: memoryview) -> None:
    """Fill a buffer from a place in a file.

    Raises:
        ValueError: if the file ends before.
    """
    file.seek(position)
    filled = 0
    while filled < len(buffer):
        count = file.readinto(buffer[filled:])
        if not count:
            raise ValueError(f"{file.name}: became shorter while it was read")
        filled += count


def _tensor_bytes(
    plan: Plan, first: Source, terms: Sequence[tuple[float, Source]], chunk_elements: int
) -> Iterator[memoryview | bytes]:
    """Give the new file's tensors piece by piece; a piece lives until the next."""
    with ExitStack() as stack:
        copied_from = stack.enter_context(first.path.open("rb", buffering=0))
        opened = [
            Term(weight, source, stack.enter_context(source.path.open("rb", buffering=0)))
            for weight, source in terms
        ]
        summer = Summer(plan.dtype, chunk_elements)
        for key, (dtype, shape) in plan.shapes.items():
            if key == POSITION_IDS:
                yield torch.arange(shape[1], dtype=dtype).numpy().tobytes()
            elif not dtype.is_floating_point:
                entry = first.tensors[key]
                integers = bytearray(entry.stop - entry.start)
                read_into(copied_from, entry.start, memoryview(integers))
                yield bytes(integers)
            else:
                for start in range(0, prod(shape), chunk_elements):
                    stop = min(start + chunk_elements, prod(shape))
                    yield summer.sum(opened, key, start, stop)


def _start_hashing(
    pool: ThreadPoolExecutor, sources: Mapping[str, Source]
) -> dict[str, Future[Parent]]:
    """Hash each file once, in the background, also one that goes by two names."""
    by_path = {s.path: pool.submit(read_parent, s.path, s.metadata) for s in sources.values()}
    return {key: by_path[source.path] for key, source in sources.items()}


def _form(source: Source, key: str) -> tuple[tuple[int, ...], str] | None:
    """Give what must be equal in all files: the shape, and the kind of integer, if it is one."""
    entry = source.tensors.get(key)
    if entry is None:
        return None
    return entry.shape, "" if DTYPES[entry.dtype].is_floating_point else entry.dtype


def _stored(entry: TensorEntry, dtype: torch.dtype) -> torch.dtype:
    stored = DTYPES[entry.dtype]
    return dtype if stored.is_floating_point else stored


def _hint(first: Source, other: Source) -> str:
    """Say what kind of file the odd one may be."""
    for start, words in OTHER_FILES.items():
        a, b = (any(key.startswith(start) for key in s.tensors) for s in (first, other))
        if a != b:
            return f"{(first if a else other).path}: {words}"
    conv_in = UNET + "input_blocks.0.0.weight"
    for source in (first, other):
        entry = source.tensors.get(conv_in)
        if entry and entry.shape[1:2] == (9,):
            return f"{source.path}: This is an inpainting model."
    return "All inputs of a merge must be of one architecture"
