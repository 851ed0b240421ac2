"""Merges of whole files of weights, streamed: memory does not grow with the files."""

import ctypes
import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch

from stages.diffusion.ancestry import Parent, made_from, read_parent
from stages.diffusion.expression import (
    Call,
    format_weight,
    model_names,
    model_weights,
    parse_expression,
)
from stages.diffusion.header import TensorEntry, header_bytes
from stages.diffusion.merge_source import (
    DTYPES,
    Source,
    check_alike,
    check_names,
    open_source,
)
from stages.diffusion.merger import Merger
from stages.diffusion.single_file import POSITION_IDS, TEXT_ENCODER
from stages.harness.files import replacing

TENSORS_HASH = "modelspec.hash_sha256"  # of all that follows the header, "0x" and 64 hex digits
CHUNK_ELEMENTS = 1 << 20  # 4 MiB of float32: fits the caches, and a call of torch costs nothing
POSITIONS = TEXT_ENCODER + "embeddings.position_embedding.weight"
NO_HASH = "0" * 64
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


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
    allow_nonfinite: bool = False,
    advance: Callable[[int, int], None] | None = None,
) -> Merged:
    """Write what an expression makes of files.

    Floating-point tensors are merged. Integers are copied from the expression's first name, and
    `position_ids` count from 0, as they do in every sound file. EMA copies, scheduler buffers
    and the like, which the networks do not use, are left out.

    Args:
        inputs: files of one architecture, in the original layout, by name.
        expression: of all these names.
        out: none of the inputs; an older file there stays whole until the new one is.
        dtype: of the new file's floating-point tensors.
        name: of the recipe, for the ancestry.
        chunk_elements: summed at a time; changes no byte.
        allow_nonfinite: write NaN and infinity instead of refusing them.
        advance: is told the bytes of tensors written, and how many there will be.

    Raises:
        ValueError: if names, keys, shapes or dtypes do not fit, or a value is not finite.
        OSError: if a file is missing or the new one cannot be written, as when the disk is full.
    """
    weights = parse_expression(expression)
    sources = check_files(expression, inputs)
    first = next(iter(sources.values()))
    check_not_an_input(out, inputs)
    plan = plan_file(first, dtype)
    recipe = {
        "kind": "merge",
        **({"name": name} if name else {}),
        "expression": expression,
        "weights": {key: format_weight(w) for key, w in model_weights(weights).items()},
        "dtype": str(dtype).removeprefix("torch."),
    }

    def metadata(parents: Mapping[str, Parent], tensors_hash: str) -> dict[str, str]:
        return {**made_from(recipe, parents), TENSORS_HASH: f"0x{tensors_hash}"}

    if any(isinstance(term, Call) for term in weights):
        reuse_memory()
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
            merger = Merger(weights, sources, plan.dtype, chunk_elements, allow_nonfinite)
            for content in _tensor_bytes(plan, merger):
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


def check_files(expression: str, inputs: Mapping[str, Path]) -> dict[str, Source]:
    """Open the files of an expression and see that they go together.

    Returns:
        The files in the order in which the expression names them.

    Raises:
        ValueError, OSError: see `merge_files`.
    """
    names = model_names(parse_expression(expression))
    check_names(expression, names, inputs)
    sources = {name: open_source(inputs[name]) for name in names}
    first, *others = sources.values()
    for other in others:
        check_alike(first, other)
    return sources


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
    assert len(header) <= length, "equal parents make the header shorter, never longer"
    text = header[8:].ljust(length - 8)
    return len(text).to_bytes(8, "little") + text


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


def _tensor_bytes(plan: Plan, merger: Merger) -> Iterator[memoryview | bytes]:
    """Give the new file's tensors piece by piece; a piece lives until the next."""
    with merger.opened():
        for key, (dtype, shape) in plan.shapes.items():
            if key == POSITION_IDS:
                yield torch.arange(shape[1], dtype=dtype).numpy().tobytes()
            elif not dtype.is_floating_point:
                yield merger.copied(key)
            else:
                yield from merger.merged(key, prod(shape))


def _start_hashing(
    pool: ThreadPoolExecutor, sources: Mapping[str, Source]
) -> dict[str, Future[Parent]]:
    """Hash each file once, in the background, also one that goes by two names."""
    by_path: dict[Path, Future[Parent]] = {}
    for source in sources.values():
        if source.path not in by_path:
            by_path[source.path] = pool.submit(read_parent, source.path, source.metadata)
    return {key: by_path[source.path] for key, source in sources.items()}


def _stored(entry: TensorEntry, dtype: torch.dtype) -> torch.dtype:
    stored = DTYPES[entry.dtype]
    return dtype if stored.is_floating_point else stored
