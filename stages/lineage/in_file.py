"""The ancestry that a file of weights tells, with the file's name where it is damaged."""

from collections.abc import Mapping
from pathlib import Path

from stages.lineage.ancestry import RECIPE, Lineage, Parent, made_from, read_lineage
from stages.lineage.digests import hash_tensors


def lineage_of(
    path: Path, metadata: Mapping[str, str], tensors_sha256: str | None = None
) -> Lineage:
    """Read what a file says it was made of, and see whether it is this file that it tells of.

    Args:
        path: of the file.
        metadata: from its header.
        tensors_sha256: of its tensors, if they were hashed already.

    Raises:
        ValueError: naming the file, if what it says is damaged.
    """
    try:
        if tensors_sha256 is None and RECIPE in metadata:
            tensors_sha256 = hash_tensors(path)
        return read_lineage(metadata, tensors_sha256)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def doubt_warning(path: Path, parent: Parent) -> str | None:
    """Say so, naming the file, if the recipe that an input holds is not believed to be its own."""
    doubt = read_lineage(parent.metadata, parent.tensors_sha256).doubt
    if doubt is None:
        return None
    return (
        f"{path}: {doubt}. What went into it counts as unknown, and a release will want to know "
        "its licence"
    )


def check_can_be_told(path: Path, metadata: Mapping[str, str]) -> None:
    """Refuse metadata that a file made of this one could not pass on, before the work.

    Raises:
        ValueError: naming the file, if what it says of its making is damaged or no text.
    """
    try:
        for text in made_from({}, {"a": Parent("", "", metadata)}).values():
            text.encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise ValueError(
            f"{path}: its metadata hold {half!r}, half a character, which no file can hold. "
            "Write the file again without it"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
