"""What dvc.lock and the .dvc files record: every object of the outs, and the names it goes by."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientPayloadError
from dvc.output import Output
from dvc.repo import Repo

LISTING = ".dir"  # ends the name of an object that lists the files of a folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One object: the bytes of a file, or the list of a folder's files."""

    name: str  # its hash: 32 hex digits, and `.dir` after those of a folder's list
    path: str  # of the file or folder, from the root of the repository; the first of equal ones
    stage: str  # that made it, as `dvc repro` takes it
    others: int = 0  # more files with the same bytes

    @property
    def is_listing(self) -> bool:
        """Whether it is the list of a folder's files."""
        return self.name.endswith(LISTING)

    @property
    def md5(self) -> str:
        """The hash of its bytes; 32 hex digits."""
        return self.name.removesuffix(LISTING)

    def __str__(self) -> str:
        """Name it as a person knows it."""
        what = f"{self.path}/ (the list of its files)" if self.is_listing else self.path
        return f"{what} and {self.others:,} more of the same bytes" if self.others else what


def recorded_objects(repo: Repo, sources: Iterable[Any]) -> list[Recorded]:
    """List the objects that the outs of the present commit consist of.

    Args:
        repo: this repository.
        sources: object databases in which to look for the lists of folders, the nearest first.
            A folder whose list none of them has whole comes as its list alone.

    Returns:
        Each object once, files before lists, in the order of their paths.
    """
    found: dict[str, list[Recorded]] = defaultdict(list)
    for out in _outs(repo, is_cached=True):
        for recorded in _objects_of(out, Path(repo.root_dir), sources):
            found[recorded.name].append(recorded)
    objects = []
    for same in found.values():
        first = min(same, key=lambda one: one.path)
        objects.append(
            Recorded(name=first.name, path=first.path, stage=first.stage, others=len(same) - 1)
        )
    return sorted(objects, key=lambda one: (one.is_listing, one.path))


def objects_of_runs(repo: Repo) -> list[Recorded]:
    """List the objects of the outs that Git holds: metrics, and small tables beside them.

    DVC keeps them in its cache too, as parts of its records of runs, but does not push them; yet
    without them it takes no run of such a stage from a remote, and runs it again.
    """
    return [
        recorded
        for out in _outs(repo, is_cached=False)
        for recorded in _objects_of(out, Path(repo.root_dir), [])
    ]


def _outs(repo: Repo, *, is_cached: bool) -> Iterator[Output]:
    for out in repo.index.outs:
        if out.use_cache == is_cached and out.hash_info and out.hash_info.value:
            yield out


def _objects_of(out: Output, root: Path, sources: Iterable[Any]) -> Iterator[Recorded]:
    path = Path(out.fs_path).relative_to(root).as_posix()
    stage = out.stage.addressing
    name = out.hash_info.value
    yield Recorded(name=name, path=path, stage=stage)
    if name.endswith(LISTING):
        for entry in _read_listing(name, sources):
            inner = f"{path}/{entry['relpath']}"
            yield Recorded(name=entry["md5"], path=inner, stage=stage)


def _read_listing(name: str, sources: Iterable[Any]) -> list[dict[str, str]]:
    """Read a folder's list from the first source that has it whole."""
    for source in sources:
        try:
            content: bytes = source.fs.fs.cat_file(source.oid_to_path(name))
        except (FileNotFoundError, PermissionError, ClientPayloadError):
            continue
        if hashlib.md5(content).hexdigest() == name.removesuffix(LISTING):
            listing: list[dict[str, str]] = json.loads(content)
            return listing
    return []
