"""Objects of the local cache whose bytes are not those of their name, and how to get them back.

An object of the cache, a file of the working tree and one of the scratch may be one file under
three names (hard links). What spoils one spoils all, so all names of a spoilt file are mended, or
go. The object itself does last: whatever is killed, it is spoilt still, and found again.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.harness.files import link_or_copy, replacing, scratch_of
from stages.harness.progress import Progress
from stages.storage.place import Place
from stages.storage.recorded import LISTING, Recorded

NAME = re.compile(r"[0-9a-f]{32}(\.dir)?")
UNKNOWN = Recorded(name="", path="a file of another commit", stage="")
READ_ONLY = 0o444  # how DVC keeps objects


class _NotSoundEitherError(Exception):
    """What was to mend an object has other bytes than its name tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoilt:
    """An object whose bytes are not those of its name."""

    recorded: Recorded  # its path says so if no file of this commit has that name
    object: Path
    found: str  # what its bytes hash to; 32 hex digits
    links: tuple[Path, ...]  # other names of the same file, in the tree or the scratch

    @property
    def is_of_this_commit(self) -> bool:
        """Whether dvc.lock names it."""
        return bool(self.recorded.stage)

    def keep(self, aside: Path) -> Path:
        """Keep its bytes, which may be a person's work; gives where.

        Args:
            aside: a folder, made if need be. What else was kept there stays.
        """
        kept = aside / f"{self.recorded.name}.{self.found}"
        link_or_copy(self.object, kept)  # where a kill came behind it, too: its scratch file goes
        return kept

    def clear(self, root: Path) -> None:
        """Take away what a killed mending left beside its names.

        Its scratch file is the object's in the cache, too, and would keep the next one waiting;
        beside a file of the working tree that is mended already, one would be a file of an out.
        """
        for path in (*self.links, root / self.recorded.path):
            scratch_of(path).unlink(missing_ok=True)

    def mend_from_tree(self, root: Path) -> bool:
        """Take the bytes from the working tree, where the file may be a sound copy of its own."""
        file = root / self.recorded.path
        if not self.is_of_this_commit or not file.is_file() or _hash(file) != self.recorded.md5:
            return False
        return self._is_mended(lambda scratch: shutil.copyfile(file, scratch))

    def mend_from_remote(self, place: Place) -> bool:
        """Take the bytes from a remote, if they are sound there."""
        there = place.objects.oid_to_path(self.recorded.name)
        return self._is_mended(lambda scratch: place.fs.fs.get_file(there, str(scratch)))

    def _is_mended(self, fetch: Callable[[Path], Any]) -> bool:
        """Put fetched bytes under all its names, if they are the right ones."""
        try:
            with replacing(self.object) as scratch:
                scratch.unlink(missing_ok=True)  # one that a kill left is a file of the tree, too
                fetch(scratch)
                if _hash(scratch) != self.recorded.md5:
                    raise _NotSoundEitherError
                scratch.chmod(READ_ONLY)
                for path in self.links:
                    if not path.is_symlink():  # which shows whatever the object is
                        link_or_copy(scratch, path)
        except (FileNotFoundError, _NotSoundEitherError):
            return False
        return True

    def take_away(self) -> None:
        """Take all its names from the file, so that nobody takes it for good."""
        for path in (*self.links, self.object):
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

    def look(name: str) -> str:
        found = _hash(objects[name])
        progress.advance()
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(objects, pool.map(look, objects), strict=True))
    progress.close()
    bad = [name for name in objects if found[name] != name.removesuffix(LISTING)]
    known = {recorded.name: recorded for recorded in wanted}
    links = _links([objects[name] for name in bad], folders)
    spoilt = [
        Spoilt(
            recorded=known.get(name) or Recorded(name=name, path=UNKNOWN.path, stage=""),
            object=objects[name],
            found=found[name],
            links=tuple(links[objects[name]]),
        )
        for name in bad
    ]
    return len(objects), sorted(spoilt, key=lambda one: one.recorded.path)


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
