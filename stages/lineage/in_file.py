"""The ancestry that a file of weights tells, with the file's name where it is damaged."""

from collections.abc import Mapping
from pathlib import Path

from stages.lineage.ancestry import Lineage, Parent, made_from, read_lineage


def lineage_of(path: Path, metadata: Mapping[str, str]) -> Lineage:
    """Read what a file says it was made of.

    Raises:
        ValueError: naming the file, if what it says is damaged.
    """
    try:
        return read_lineage(metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


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
