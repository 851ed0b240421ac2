"""New files: what they may not replace is known before the work that makes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def check_new_files(paths: Sequence[Path], read: Mapping[str, Path]) -> None:
    """Refuse new files where none can be, or in the place of one that is read, or of each other.

    Args:
        paths: of the files to be; those that are there will be replaced.
        read: files by what they are, for messages.

    Raises:
        ValueError: naming the file, and what is in its way.
    """
    others = dict(read)
    for path in paths:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: is no file, and will not be replaced by one. Name another")
        if not (folder := next(p for p in path.absolute().parents if p.exists())).is_dir():
            raise ValueError(f"{path}: {folder} is no folder, so no file can lie in it")
        for what, other in others.items():
            if _is_same(path, other):
                raise ValueError(f"{path}: is also {what}, which would be lost. Name another file")
        others[f"the new {path.name}"] = path


def _is_same(path: Path, other: Path) -> bool:
    """Tell whether two paths lead to one file, be it there or to be."""
    are_there = path.exists() and other.exists()
    return path.samefile(other) if are_there else path.resolve() == other.resolve()
