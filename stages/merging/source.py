"""The files that a merge reads: opened, normalised, and compared before any work."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from stages.diffusion.header import TensorEntry, read_header
from stages.diffusion.single_file import (
    POSITION_IDS,
    TEXT_ENCODER,
    UNET,
    is_stable_diffusion,
    normal_keys,
    other_file,
)
from stages.harness.counted import counted
from stages.harness.dvc_command import DVC
from stages.lineage.in_file import check_can_be_told
from stages.lineage.noise_schedule import MARKERS, ZERO_TERMINAL_SNR, zero_terminal_snr
from stages.merging.blocks import part_of

FLOATS = ("F32", "F16", "BF16")
READABLE = (*FLOATS, "BOOL", "U8", "I8", "I16", "I32", "I64")
CONV_IN = UNET + "input_blocks.0.0.weight"
INPAINTING_CHANNELS = 9
CONVERT = "Convert the file, or fetch its float16 version"
SHOWN_KEYS = 5  # of those that differ
OPENCLIP = "cond_stage_model.model."  # SD 2.x's text encoder
CLIP_HEADS = tuple(OPENCLIP + name for name in ("logit_scale", "text_projection"))


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read tensors from."""

    path: Path
    metadata: Mapping[str, str]
    tensors: dict[str, TensorEntry]  # by normal key, sorted
    markers: frozenset[str] = frozenset()  # of the noise schedule that it learnt on

    def shape(self, key: str) -> str:
        """Tell shape and kind of a tensor, for messages."""
        entry = self.tensors.get(key)
        return f"{list(entry.shape)} {entry.dtype}" if entry else "no such key"


def open_source(path: Path) -> Source:
    """Read a file's header, and give its tensors their normal keys.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is a pickle or not whole, its header is too long, its metadata are
            damaged, or it holds tensors of a dtype not known here.
    """
    if path.is_dir():
        raise IsADirectoryError(
            f"{path}: is a folder. Name one safetensors file, in the original layout as A1111 and "
            "ComfyUI load it; a diffusers folder is none"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Make it ({DVC} repro), fetch it ({DVC} pull), or name another"
        )
    header = read_header(path)
    check_can_be_told(path, header.metadata)
    keys = {key: key for key in header.tensors}
    if _is_checkpoint(header.tensors):
        keys = normal_keys(header.tensors)
    tensors = {normal: header.tensors[key] for normal, key in keys.items()}
    for key, entry in tensors.items():
        if entry.dtype not in READABLE:
            raise ValueError(
                f"{path}: {key!r} is stored as {entry.dtype}; known here are "
                f"{', '.join(READABLE)}. {CONVERT}"
            )
    if not tensors:
        raise ValueError(f"{path}: holds no weights")
    metadata = dict(header.metadata)
    markers = frozenset(MARKERS) & header.tensors.keys()
    if zero_terminal_snr(metadata, header.tensors):  # another program may have said it
        metadata[ZERO_TERMINAL_SNR] = "true"
        markers = frozenset(MARKERS)
    return Source(path, metadata, tensors, markers)


def peculiarities(tensors: Mapping[str, TensorEntry]) -> list[str]:
    """Tell what a file holds besides weights that are merged, and what hinders a merge."""
    notes = []
    if averages := [key for key in tensors if key.startswith("model_ema.")]:
        notes.append(
            f"averages (EMA), for where the UNet is missing: {counted(len(averages), 'key')}"
        )
    if entry := tensors.get(POSITION_IDS):
        sound = "" if entry.dtype == "I64" else ", not as the integers that they are"
        notes.append(f"position_ids are stored as {entry.dtype}{sound}")
    if _is_checkpoint(tensors):
        read = {*normal_keys(tensors).values(), *MARKERS, *filter(counts_positions, tensors)}
        if unread := [key for key in tensors if key not in read and key not in averages]:
            notes.append(f"left out of merges: {counted(len(unread), 'key')}, such as {unread[0]}")
    for dtype, count in sorted(Counter(entry.dtype for entry in tensors.values()).items()):
        if dtype not in READABLE:
            notes.append(f"{counted(count, 'tensor')} of {dtype}, which is not merged: {CONVERT}")
    return notes


def check_names(expression: str, wanted: Sequence[str], given: Mapping[str, Path]) -> None:
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


def with_common_heads(sources: Mapping[str, Source]) -> dict[str, Source]:
    """Leave the half of SD 2.x's text encoder that no picture needs away where a file lacks it.

    Stability's files hold it, and those that went through diffusers do not: they still merge.
    """
    encoders = [s for s in sources.values() if any(key.startswith(OPENCLIP) for key in s.tensors)]
    lacking = {key for key in CLIP_HEADS if not all(key in s.tensors for s in encoders)}
    return {
        name: replace(
            source,
            tensors={key: entry for key, entry in source.tensors.items() if key not in lacking},
        )
        for name, source in sources.items()
    }


def check_alike(first: Source, other: Source, keys: Iterable[str]) -> None:
    """Refuse to merge files whose keys, shapes or kinds of numbers differ.

    One difference is let pass: the five more channels that an inpainting model's first layer
    takes, if it is the first; what is merged with it has nothing to say of them.

    Args:
        first, other: files.
        keys: of the tensors that the expression takes from both.

    Raises:
        ValueError: naming the first differing keys, in sorted order, and both shapes.
    """
    keys = sorted(keys)
    if CONV_IN in keys and is_inpainting(other) and not is_inpainting(first):
        raise ValueError(
            f"{other.path}: an inpainting model, whose first layer takes 9 channels, must be the "
            "first that the expression names"
        )
    differing = [key for key in keys if _form(first, key) != _form(other, key)]
    if is_inpainting(first) and not is_inpainting(other):
        differing = [key for key in differing if key != CONV_IN]
    if differing:
        shown = "".join(
            f"\n  {key}: {first.shape(key)} there, {other.shape(key)} here"
            for key in differing[:SHOWN_KEYS]
        )
        more = len(differing) - SHOWN_KEYS
        raise ValueError(
            f"{other.path}: not the architecture of {first.path}; {len(differing):,} of "
            f"{len(keys):,} keys differ:{shown}"
            + (f"\n  and {more:,} more" if more > 0 else "")
            + f"\n{_hint(first, other)}"
        )


def is_inpainting(source: Source) -> bool:
    """Tell an inpainting model by the mask and the picture that its first layer takes too."""
    entry = source.tensors.get(CONV_IN)
    return entry is not None and takes_mask(entry.shape)


def takes_mask(shape: tuple[int, ...]) -> bool:
    """Tell an inpainting model's first layer by its shape."""
    return shape[1:2] == (INPAINTING_CHANNELS,)


def counts_positions(key: str) -> bool:
    """Tell a text encoder's `position_ids`: integers, though some programs store them otherwise."""
    return key.endswith(POSITION_IDS.removeprefix(TEXT_ENCODER))


def is_trained_scale(key: str) -> bool:
    """Tell CLIP's `logit_scale`: one number of its training, no picture depends on it."""
    return key.rpartition(".")[2] == "logit_scale"


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


def _is_checkpoint(keys: Iterable[str]) -> bool:
    """Tell the original layout, also of one network alone."""
    return is_stable_diffusion(keys) or any(map(part_of, keys))


def _form(source: Source, key: str) -> tuple[tuple[int, ...], str] | None:
    """Give what must be equal in all files: the shape, and the kind of integer, if it is one."""
    entry = source.tensors.get(key)
    if entry is None:
        return None
    return entry.shape, "" if entry.dtype in FLOATS or counts_positions(key) else entry.dtype


def _hint(first: Source, other: Source) -> str:
    """Say what kind of file the odd one may be."""
    kinds = other_file(first.tensors), other_file(other.tensors)
    if kinds[0] != kinds[1]:
        odd = 1 if kinds[1] else 0
        return f"{(first, other)[odd].path}: {kinds[odd]}"
    return "All inputs of a merge must be of one architecture"
