"""What a killed download leaves to the next one: pictures, and final answers.

A picture is kept under its own name, whatever the params and the other rows: another threshold,
mirror or row asks for nothing twice. It lies in a file of its own until its shard holds it, and
then in that shard alone: nothing large is stored twice. Folders `pictures` and `packs` may be
deleted at any time; they only save asking again. Failures are remembered for one pass over the
rows: the next pass asks anew.
"""

import json
import shutil
from collections import Counter
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path

from stages.harness.files import replacing, sha256_bytes
from stages.images.link import picture_key
from stages.images.outcome import PASSING, REASONS, Picture

INDEX = "index.txt"


@dataclass(frozen=True, slots=True)
class Packed:
    """Where a shard of this or an earlier run holds a picture."""

    pack: str  # below the folder `packs`
    at: int  # first byte in the pack
    size: int  # in bytes
    original_size: int  # of the file as it came, with its metadata
    picture: Picture


class Kept:
    """Pictures by `picture_key`, and the failures of this pass by link."""

    def __init__(self, folder: Path, pass_name: str) -> None:
        """Read what an earlier process left.

        Args:
            folder: of this machine's scratch; made if missing.
            pass_name: a fingerprint of what decides whether a link fails.
        """
        self.pictures = folder / "pictures"
        self.pictures.mkdir(parents=True, exist_ok=True)
        self._journal = folder / f"failed-{pass_name}.txt"
        self._failures = self._read_journal()
        self.packs = folder / "packs"
        self.packs.mkdir(exist_ok=True)
        self._index = self._read_index()
        self._live = Counter(packed.pack for packed in self._index.values())
        self.drop_dead_packs()

    def picture_path(self, link: str) -> Path:
        """Say where the picture of a link is kept, if it is."""
        name = _picture_name(link)
        return self.pictures / name[:2] / name

    def packed(self, link: str) -> Packed | None:
        """Say which pack holds the picture of a link, if one does."""
        return self._index.get(_picture_name(link))

    def begin_packs(self) -> Path:
        """Make a folder for the shards of this run.

        Shards of earlier runs are never written to: they may be published under a second name.
        """
        numbers = [int(path.name) for path in self.packs.iterdir() if path.name.isdigit()]
        folder = self.packs / f"{max(numbers, default=0) + 1:06}"
        folder.mkdir()
        return folder

    def pack(self, link: str, packed: Packed) -> None:
        """Write down that a pack holds a picture; whatever held it before may go."""
        name = _picture_name(link)
        with (self.packs / INDEX).open("a", encoding="ascii") as file:
            file.write(_index_line(name, packed))
        before = self._index.get(name)
        self._index[name] = packed  # first, for another link may look for the picture now
        self.picture_path(link).unlink(missing_ok=True)
        self._live[packed.pack] += 1
        if before:
            self._live[before.pack] -= 1
            if not self._live[before.pack]:
                (self.packs / before.pack).unlink(missing_ok=True)

    def unpack(self, link: str) -> None:
        """Forget a picture whose pack does not hold it any more."""
        self._live[self._index.pop(_picture_name(link)).pack] -= 1

    def failure(self, link: str) -> str | None:
        """Give the reason for which a link failed for good in this pass."""
        return self._failures.get(_name(link))

    def remember(self, link: str, reason: str) -> None:
        """Write down that a link failed, unless asking again may help."""
        if reason not in PASSING:
            with self._journal.open("a", encoding="ascii") as file:
                file.write(f"{_name(link)} {reason}\n")

    def end_pass(self) -> None:
        """Forget failures, for all rows had their answer: the next pass asks anew."""
        self._journal.unlink(missing_ok=True)
        self._failures.clear()

    def _read_index(self) -> dict[str, Packed]:
        """Read the index, the last line of each picture; then write these alone."""
        path, known = self.packs / INDEX, dict[str, Packed]()
        if not path.is_file():
            return known
        lines = path.read_text("ascii", errors="replace").splitlines()
        for line in lines:
            try:
                name, pack, at, size, original_size, picture = json.loads(line)
                known[name] = Packed(pack, at, size, original_size, Picture(*picture))
            except (ValueError, TypeError):
                continue  # blank, or cut short
        there = {f"{p.parent.name}/{p.name}" for p in self.packs.glob("*/*.tar")}
        known = {name: packed for name, packed in known.items() if packed.pack in there}
        with replacing(path) as scratch:
            scratch.write_text("".join(map(_index_line, known, known.values())), "ascii")
        return known

    def drop_dead_packs(self) -> None:
        """Delete packs that keep nothing; those of this run must be published by then."""
        for folder in [path for path in self.packs.iterdir() if path.is_dir()]:
            for pack in folder.iterdir():
                if not self._live[f"{folder.name}/{pack.name}"]:
                    pack.unlink()
            if not any(folder.iterdir()):
                shutil.rmtree(folder)

    def _read_journal(self) -> dict[str, str]:
        if not self._journal.exists():
            return {}
        # a kill may leave half a line, and the next line glued to it
        lines = (line.split(" ") for line in self._journal.read_text("ascii").splitlines())
        known = {fields[0]: fields[1] for fields in lines if len(fields) == 2}
        return {name: reason for name, reason in known.items() if reason in REASONS}


def _index_line(name: str, packed: Packed) -> str:
    # the line break first: a line that a kill cut short must not spoil this one
    return "\n" + json.dumps([name, *astuple(packed)])


@lru_cache(1024)  # asked several times while its picture comes
def _picture_name(link: str) -> str:
    return sha256_bytes(picture_key(link).encode())


def _name(link: str) -> str:
    """Name the link with its signature: a fresh signature is asked."""
    return sha256_bytes(link.encode())
