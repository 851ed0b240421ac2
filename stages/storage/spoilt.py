"""Objects of the local cache whose bytes are not those of their name, and how to get them back.

An object of the cache, a file of the working tree and one of the scratch may be one file under
three names (hard links). What spoils one spoils all, so all names of a spoilt file go.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.harness.files import replacing
from stages.harness.progress import Progress
from stages.storage.place import Place
from stages.storage.recorded import LISTING, Recorded
from stages.storage.repair import is_sound

NAME = re.compile(r"[0-9a-f]{32}(\.dir)?")
UNKNOWN = Recorded(name="", path="a file of another commit", stage="")
READ_ONLY = 0o444  # how DVC keeps objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoilt:
    """An object whose bytes are not those of its name."""

    recorded: Recorded  # its path says so if no file of this commit has that name
    object: Path
    links: tuple[Path, ...]  # other names of the same file, in the tree or the scratch

    @property
    def is_of_this_commit(self) -> bool:
        """Whether dvc.lock names it."""
        return bool(self.recorded.stage)

    def take_away(self, aside: Path) -> None:
        """Take all its names from the file, so that nobody takes it for good; keep its bytes.

        Args:
            aside: a folder, made if need be.
        """
        aside.mkdir(parents=True, exist_ok=True)
        shutil.move(self.object, aside / self.recorded.name)
        for path in self.links:
            path.unlink(missing_ok=True)


def spoilt_objects(
    cache: Any, wanted: Sequence[Recorded], folders: Iterable[Path]
) -> tuple[int, list[Spoilt]]:
    """Read and hash every object of a cache.

    Args:
        cache: DVC's local object database.
        wanted: the objects of this commit.
        folders: where other names of objects may lie.

    Returns:
        How many objects there are, and those that are spoilt.
    """
    objects = {name: path for path in Path(cache.path).glob("??/*") if (name := _name(path))}
    progress = Progress("verify cache", len(objects))

    def look(name: str) -> bool:
        is_whole = _hash(objects[name]) == name.removesuffix(LISTING)
        progress.advance()
        return is_whole

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = zip(objects, pool.map(look, objects), strict=True)
        bad = [name for name, is_whole in verdicts if not is_whole]
    progress.close()
    known = {recorded.name: recorded for recorded in wanted}
    links = _links([objects[name] for name in bad], folders)
    spoilt = [
        Spoilt(
            recorded=known.get(name) or Recorded(name=name, path=UNKNOWN.path, stage=""),
            object=objects[name],
            links=tuple(links[objects[name]]),
        )
        for name in bad
    ]
    return len(objects), sorted(spoilt, key=lambda one: one.recorded.path)


def mend_from_tree(spoilt: Spoilt, root: Path, cache: Any) -> bool:
    """Take the bytes from the working tree, where the file may be a sound copy of its own."""
    file = root / spoilt.recorded.path
    if spoilt.is_of_this_commit and file.is_file():
        with replacing(spoilt.object) as scratch:
            shutil.copyfile(file, scratch)
            scratch.chmod(READ_ONLY)
    return _is_mended(spoilt, cache)


def mend_from_remote(spoilt: Spoilt, place: Place, cache: Any) -> bool:
    """Take the bytes from a remote, if they are sound there."""
    there = place.objects.oid_to_path(spoilt.recorded.name)
    try:
        with replacing(spoilt.object) as scratch:
            place.fs.fs.get_file(there, str(scratch))
            scratch.chmod(READ_ONLY)
    except FileNotFoundError:
        return False
    return _is_mended(spoilt, cache)


def _is_mended(spoilt: Spoilt, cache: Any) -> bool:
    """Tell whether an object is sound by now; what is not goes again."""
    if is_sound(cache, spoilt.recorded):
        return True
    spoilt.object.unlink(missing_ok=True)
    return False


def _name(path: Path) -> str | None:
    """Give the name of an object by its path, or None if it is something else there."""
    name = path.parent.name + path.name
    return name if NAME.fullmatch(name) else None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _links(objects: Sequence[Path], folders: Iterable[Path]) -> dict[Path, list[Path]]:
    """Find the other names of files; a symbolic link is one, too."""
    links: dict[Path, list[Path]] = {path: [] for path in objects}
    by_file = {(path.stat().st_dev, path.stat().st_ino): path for path in objects}
    if by_file:
        for other in _files(folders):
            status = other.stat()
            if found := by_file.get((status.st_dev, status.st_ino)):
                links[found].append(other)
    return links


def _files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in [folder, *folder.rglob("*")] if path.is_file())
