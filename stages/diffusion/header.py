"""The header of a safetensors file: read with suspicion, written the same way every time."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

MAX_HEADER_BYTES = 25_000_000  # of the library's own 100 MB some take 36 s and 2.5 GB to read
MAX_SIZE = 2**63 - 1
# Bits of one number of each dtype that the format knows.
# Source: https://github.com/huggingface/safetensors, safetensors/src/tensor.rs
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
OTHER_FORMATS = {
    b"PK": "a pickle (.ckpt, .pt), which may run code when it is read",
    b"\x80": "a pickle (.ckpt, .pt), which may run code when it is read",
    b"<": "a web page, as a download without login leaves it",
    b"version https://git-lfs": "a Git LFS pointer; `git lfs pull` fetches the file",
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies: bytes `start` to `stop` of the file."""

    dtype: str  # as safetensors writes it: F16, F32, I64
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says about itself before its first tensor."""

    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]  # by the key as written, sorted


def read_header(path: Path) -> Header:
    """Read what a safetensors file holds, but no tensor.

    Raises:
        ValueError: if it is a pickle, a web page or anything but a whole safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(32)
        length = int.from_bytes(start[:8], "little")
        if start[8:9] != b"{":
            raise ValueError(_other_format(path, start, size))
        if length > MAX_HEADER_BYTES:
            raise ValueError(
                f"{path}: its safetensors header says that it is {length:,} bytes long; at most "
                f"{MAX_HEADER_BYTES:,} are read, and a model of 1,000 tensors takes 0.2 million. "
                "The file is damaged, or made to exhaust memory: fetch it again, from where you "
                "trust it"
            )
        file.seek(8)
        text = file.read(length)
    try:
        header = _parse_header(text)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        what = "is cut short" if size < 8 + length else f"is damaged: {error}"
        raise ValueError(
            f"{path}: the safetensors header {what} (a file of {size:,} bytes). Fetch or make it "
            "again."
        ) from error
    end = max((entry.stop for entry in header.tensors.values()), default=8 + length)
    if size != end:
        what = "cut short" if size < end else "damaged"
        raise ValueError(
            f"{path}: {what}: its header promises {end:,} bytes, it has {size:,}. "
            "Fetch or make it again."
        )
    return header


def header_bytes(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """Write what precedes the tensors in a safetensors file, a multiple of 8 bytes.

    The library's own writer puts metadata in random order; this one sorts it.

    Args:
        shapes: dtype (F16) and shape by key, in the order in which the tensors will follow.
        metadata: strings; `format: pt` is added.

    Source: https://github.com/huggingface/safetensors#format
    """
    if bad := [key for key, value in metadata.items() if not isinstance(value, str)]:
        raise TypeError(f"metadata {bad[0]!r} is no string, and safetensors holds nothing else")
    header: dict[str, Any] = {"__metadata__": dict(sorted({**metadata, "format": "pt"}.items()))}
    start = 0
    for key, (dtype, shape) in shapes.items():
        stop = start + tensor_bytes(dtype, shape)
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Tell how many bytes a tensor takes."""
    return math.prod(shape) * BITS[dtype] // 8


def _parse_header(text: bytes) -> Header:
    """Read a header's JSON.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError: if it is not what the
            format wants: a key twice, offsets that overlap or leave gaps, or a tensor of more
            or fewer bytes than its shape takes.
    """
    header = json.loads(
        text.decode(), object_pairs_hook=_without_repeats, parse_constant=_no_constant
    )
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError(f"__metadata__ is {json.dumps(metadata)[:80]}, not an object of strings")
    start = 8 + len(text)
    for key, entry in header.items():
        shape, offsets = entry["shape"], entry["data_offsets"]
        whole = [*shape, *offsets]
        is_listed = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
        are_sizes = all(type(n) is int and n >= 0 for n in whole)
        if not (isinstance(entry["dtype"], str) and is_listed and are_sizes):
            raise ValueError(f"{key!r} has a dtype, shape or place that is none")
        if max(math.prod(n for n in entry["shape"] if n), *entry["data_offsets"]) > MAX_SIZE:
            raise ValueError(f"{key!r} has a shape or place larger than any computer counts to")
        (key + entry["dtype"]).encode()  # no half of a character, as JSON can spell it
    tensors = {
        key: TensorEntry(
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            start=start + entry["data_offsets"][0],
            stop=start + entry["data_offsets"][1],
        )
        for key, entry in sorted(header.items())
    }
    end = start
    for key, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end or entry.stop < entry.start:
            raise ValueError(f"{key!r} is said to lie where another tensor or nothing is")
        end = entry.stop
        if (bits := BITS.get(entry.dtype)) is None:
            raise ValueError(f"{key!r} is of dtype {entry.dtype!r}, which the format does not know")
        if math.prod(entry.shape) * bits != (entry.stop - entry.start) * 8:
            wanted = tensor_bytes(entry.dtype, entry.shape)
            raise ValueError(
                f"{key!r} is said to have {entry.stop - entry.start:,} bytes, but "
                f"{list(entry.shape)} of {entry.dtype} take {wanted:,}"
            )
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata holds something else than strings")
    "".join((*metadata, *metadata.values())).encode()
    return Header(metadata=metadata, tensors=tensors)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of JSON's pairs: where a key stands twice, programs read different files."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated!r} stands in it twice")
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"it holds {word}, which is no JSON")


def _other_format(path: Path, start: bytes, size: int) -> str:
    """Say what a file is that does not begin as safetensors, and what to do."""
    if size < 9:
        return f"{path}: cut short: {size} bytes. Fetch or make it again."
    kinds = (words for magic, words in OTHER_FORMATS.items() if start.startswith(magic))
    return (
        f"{path}: not a safetensors file but {next(kinds, 'something unknown')}. "
        "Weights are read from safetensors only: fetch the model's .safetensors."
    )
