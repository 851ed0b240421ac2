"""The ancestry that a file of weights tells, with the file's name where it is damaged."""

from collections.abc import Mapping
from pathlib import Path

from stages.diffusion.ancestry import Lineage, read_lineage


def lineage_of(path: Path, metadata: Mapping[str, str]) -> Lineage:
    """Read what a file says it was made of.

    Raises:
        ValueError: naming the file, if what it says is damaged.
    """
    try:
        return read_lineage(metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
