"""Merges of whole files of weights, streamed: memory does not grow with the files."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stages.diffusion.header import BITS, TensorEntry, header_bytes, tensor_bytes
from stages.diffusion.single_file import POSITION_IDS, TEXT_ENCODER, is_stable_diffusion
from stages.diffusion.writing import Output, writing
from stages.harness.files import scratch_of
from stages.harness.new_file import check_new_files
from stages.lineage.ancestry import Parent, made_from
from stages.lineage.digests import TENSORS_HASH
from stages.lineage.noise_schedule import MARKERS, outweigh
from stages.merging.autoencoder import with_bare_autoencoder
from stages.merging.blocks import check_blocks, part_of, sources_by_key
from stages.merging.expression import parse_expression
from stages.merging.hashing import hashing
from stages.merging.source import (
    CONV_IN,
    FLOATS,
    Source,
    check_alike,
    check_names,
    counts_positions,
    open_source,
    takes_mask,
    with_common_heads,
)
from stages.merging.terms import Weights, model_names, model_weights
from stages.merging.text import format_weight

if TYPE_CHECKING:
    from stages.merging.merger import Merger

Dtype = Literal["float16", "bfloat16", "float32"]
STORED: dict[Dtype, str] = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
CHUNK_ELEMENTS = 1 << 18  # 1 MiB of float32: fits the caches, and a call of torch costs nothing
POSITIONS = TEXT_ENCODER + "embeddings.position_embedding.weight"
NO_HASH = "0" * 64
SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge came to."""

    tensors_hash: str  # SHA-256 of the tensors' bytes
    size: int  # bytes of the file
    parents: dict[str, Parent]


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes where in the new file, in the order of its bytes."""

    shapes: dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape by key
    size: int  # bytes of all tensors

    @property
    def is_inpainting(self) -> bool:
        """Tell whether the new UNet takes a mask too, whichever file it comes from."""
        _, shape = self.shapes.get(CONV_IN, ("", ()))
        return takes_mask(shape)


def merge_files(
    inputs: Mapping[str, Path],
    expression: str,
    out: Path,
    dtype: Dtype,
    *,
    name: str | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
    allow_nonfinite: bool = False,
    advance: Callable[[int, int], None] | None = None,
) -> Merged:
    """Write what an expression makes of files.

    Floating-point tensors are merged, but for CLIP's `logit_scale`. It and integers are taken from
    the expression's first name, and `position_ids`, also SDXL's, count from 0, as they do in every
    sound file. EMA copies, scheduler buffers and the like, which the networks do not use, are left
    out. The empty tensors that mark a noise schedule are those of the models that most of it is
    made of.

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
    check_out(out, inputs)
    plan = plan_file(weights, sources, dtype)
    recipe = {
        "kind": "merge",
        **({"name": name} if name else {}),
        "expression": expression,
        "weights": {key: format_weight(w) for key, w in model_weights(weights).items()},
        "dtype": dtype,
        **({"is_inpainting": True} if plan.is_inpainting else {}),
    }

    def header(parents: Mapping[str, Parent], tensors_hash: str) -> bytes:
        metadata = {**made_from(recipe, parents), TENSORS_HASH: f"0x{tensors_hash}"}
        return header_bytes(plan.shapes, metadata)

    # The parents' hashes stand in the header, before the tensors, and take as long to compute as
    # these: both at once, the header last. What stands for a hash meanwhile is none, for a file
    # may name any; equal parents make the header shorter than what is left free.
    unknown = {
        key: Parent(f"{i:?>64}", "0" * 8, source.metadata)
        for i, (key, source) in enumerate(sources.items())
    }
    room = len(header(unknown, NO_HASH))
    size = room + plan.size
    with hashing(sources) as hashes, writing(out, room, size) as file:
        from stages.merging.merger import Merger  # torch takes a second: hash meanwhile

        merger = Merger(weights, sources, dtype, chunk_elements, allow_nonfinite)
        for written in _write_tensors(plan, merger, file):
            if advance:
                advance(written, plan.size)
        tensors_hash = file.finish()
        parents = hashes()
        file.write_header(widened(header(parents, tensors_hash), room))
    return Merged(tensors_hash, size, parents)


def check_files(expression: str, inputs: Mapping[str, Path]) -> dict[str, Source]:
    """Open the files of an expression and see that they go together.

    Returns:
        The files in the order in which the expression names them.

    Raises:
        ValueError, OSError: see `merge_files`.
    """
    weights = parse_expression(expression)
    names = model_names(weights)
    check_names(expression, names, inputs)
    sources = {name: open_source(inputs[name]) for name in names}
    if any(is_stable_diffusion(source.tensors) for source in sources.values()):
        sources = {name: with_bare_autoencoder(source) for name, source in sources.items()}
        sources = with_common_heads(sources)
    by_key = sources_by_key(weights, {name: source.tensors for name, source in sources.items()})
    for (first, other), keys in _merged_together(by_key, sources).items():
        check_alike(sources[first], sources[other], keys)
    check_blocks(weights, by_key)
    return sources


def _merged_together(
    by_key: Mapping[str, list[str]], sources: Mapping[str, Source]
) -> dict[tuple[str, str], set[str]]:
    """Say which files must be alike in which keys.

    They are those that a tensor is made of, and, where a part is taken from one file alone, that
    one and the first that has the part: it has to fit in where the other was. A UNet's first
    layer may differ there, for that of an inpainting model may be taken whole.
    """
    pairs: dict[tuple[str, str], set[str]] = {}
    taken: dict[str, set[str]] = {}
    for key, names in by_key.items():
        for other in names[1:]:
            pairs.setdefault((names[0], other), set()).add(key)
        if part := part_of(key):
            taken.setdefault(part, set()).update(names)
    for part, names_of_it in taken.items():
        of_part = {n: {k for k in s.tensors if part_of(k) == part} for n, s in sources.items()}
        first = next(name for name in sources if of_part[name])
        for other in (name for name in sources if name in names_of_it - {first}):
            both = (of_part[first] | of_part[other]) - {CONV_IN}
            pairs.setdefault((first, other), set()).update(both)
    return pairs


def check_out(out: Path, inputs: Mapping[str, Path]) -> None:
    """Refuse to write where no file can be, over a file that is read, or under a pickle's name."""
    if out.suffix != SUFFIX:
        raise ValueError(f"{out}: weights are written as *{SUFFIX}; other programs go by the name")
    check_new_files([out], named_inputs(inputs))
    scratch = scratch_of(out)
    for name, path in inputs.items():
        if scratch.exists() and scratch.samefile(path):
            raise ValueError(
                f"{path}: the input {name!r} has the name under which {out} is written until it "
                "is whole. Rename the input, or write to another file"
            )


def named_inputs(inputs: Mapping[str, Path]) -> dict[str, Path]:
    """Say of each file what it is, for messages."""
    return {f"the input {name!r}": path for name, path in inputs.items()}


def plan_file(weights: Weights, sources: Mapping[str, Source], dtype: Dtype) -> Plan:
    """Lay out a new file of one architecture.

    Args:
        weights: of the expression.
        sources: its files; each tensor gets the shape of the first that it is taken from.
        dtype: of floating-point tensors.
    """
    by_key = sources_by_key(weights, {name: source.tensors for name, source in sources.items()})
    entries = {key: sources[names[0]].tensors[key] for key, names in by_key.items()}
    shapes = {
        key: (_stored(entry, dtype), entry.shape)
        for key, entry in entries.items()
        if key != POSITION_IDS
    }
    shares = model_weights(weights)
    for marker in MARKERS:
        marked = [name for name, source in sources.items() if marker in source.markers]
        if outweigh(marked, shares):
            shapes.setdefault(marker, ("F16", (0,)))
    for key in filter(counts_positions, shapes):
        shapes[key] = ("I64", shapes[key][1])
    if POSITIONS in shapes:
        shapes[POSITION_IDS] = ("I64", (1, shapes[POSITIONS][1][0]))
    # Wide elements first, as the library does: every tensor starts at a multiple of its width.
    ordered = dict(sorted(shapes.items(), key=lambda item: (-BITS[item[1][0]], item[0])))
    return Plan(ordered, sum(tensor_bytes(*form) for form in ordered.values()))


def widened(header: bytes, length: int) -> bytes:
    """Fill a safetensors header with blanks, as the format allows, up to a length in bytes."""
    assert len(header) <= length, "equal parents make the header shorter, never longer"
    text = header[8:].ljust(length - 8)
    return len(text).to_bytes(8, "little") + text


def _write_tensors(plan: Plan, merger: "Merger", file: Output) -> Iterator[int]:
    """Merge or copy tensor after tensor; tell how many bytes of them there are by now."""
    written = 0
    with merger.opened():
        for key, (dtype, shape) in plan.shapes.items():
            if not tensor_bytes(dtype, shape):
                pass
            elif counts_positions(key):
                file.write(b"".join(i.to_bytes(8, "little") for i in range(shape[-1])))
            elif dtype not in FLOATS:
                file.write(merger.copied(key))
            else:
                merger.merge(key, file.take)
            written += tensor_bytes(dtype, shape)
            yield written


def _stored(entry: TensorEntry, dtype: Dtype) -> str:
    return STORED[dtype] if entry.dtype in FLOATS else entry.dtype
