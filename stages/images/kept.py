"""What a killed download leaves to the next one: pictures, and final answers.

A picture is kept under its own name, whatever the params and the other rows: another threshold,
mirror or row asks for nothing twice. It lies in a file of its own until its shard holds it, and
then in that shard alone: nothing large is stored twice. Folders `pictures` and `packs` may be
deleted whenever no download runs; they only save asking again. Failures are remembered for one
pass over the rows: the next pass asks anew.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path

from stages.harness.files import replacing, sha256_bytes
from stages.images.link import picture_key
from stages.images.numbers import Numbers
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
        self._lines, self._live = Numbers(), Counter[str]()
        if self._read_index():
            self._tidy_index()
            self._read_index()
        self.drop_dead_packs()

    def picture_path(self, link: str) -> Path:
        """Say where the picture of a link is kept, if it is."""
        name = _picture_name(link)
        return self.pictures / name[:2] / name

    def packed(self, link: str) -> Packed | None:
        """Say which pack holds the picture of a link, if one does."""
        name = _picture_name(link)
        at = self._lines.get(name)
        if at is None:
            return None
        try:
            with (self.packs / INDEX).open("rb") as file:
                file.seek(at)
                found = _read_line(file.readline())
        except FileNotFoundError:  # somebody made room
            return None
        return found[1] if found and found[0] == name else None

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
        name, before = _picture_name(link), self.packed(link)
        with (self.packs / INDEX).open("ab") as file:
            # the line break first: a line that a kill cut short must not spoil this one
            file.write(b"\n")
            at = file.tell()
            file.write(json.dumps([name, *astuple(packed)]).encode())
        self._lines.put(name, at)  # first, for another link may look for the picture now
        self.picture_path(link).unlink(missing_ok=True)
        self._live[packed.pack] += 1
        if before:
            self._live[before.pack] -= 1
            if not self._live[before.pack]:
                (self.packs / before.pack).unlink(missing_ok=True)

    def unpack(self, link: str) -> None:
        """Forget a picture whose pack does not hold it any more."""
        if packed := self.packed(link):
            self._live[packed.pack] -= 1
            self._lines.put(_picture_name(link), -1)

    def failure(self, link: str) -> str | None:
        """Give the reason for which a link failed for good in this pass."""
        number = self._failures.get(_name(link))
        return None if number is None else REASONS[number]

    def remember(self, link: str, reason: str) -> None:
        """Write down that a link failed, unless asking again may help."""
        if reason not in PASSING:
            with self._journal.open("a", encoding="ascii") as file:
                file.write(f"{_name(link)} {reason}\n")

    def end_pass(self) -> None:
        """Forget failures, for all rows had their answer: the next pass asks anew."""
        self._journal.unlink(missing_ok=True)
        self._failures = Numbers()

    def _read_index(self) -> bool:
        """Note where the last line of each picture is; say whether there are others, too."""
        self._lines, self._live, is_untidy = Numbers(), Counter[str](), False
        there = {f"{p.parent.name}/{p.name}" for p in self.packs.glob("*/*.tar")}
        for at, line in self._index_lines():
            found = _read_line(line)
            if found and found[1].pack in there:
                name, packed = found
                is_untidy |= self._lines.get(name) is not None
                self._lines.put(name, at)
                self._live[packed.pack] += 1
            else:
                is_untidy |= bool(line.strip())
        return is_untidy

    def _index_lines(self) -> Iterator[tuple[int, bytes]]:
        path, at = self.packs / INDEX, 0
        if path.is_file():
            with path.open("rb") as file:
                for line in file:
                    yield at, line
                    at += len(line)

    def _tidy_index(self) -> None:
        """Write the last line of each picture, and these alone."""
        path = self.packs / INDEX
        with replacing(path) as scratch, path.open("rb") as old, scratch.open("wb") as new:
            for at in self._lines.all().tolist():
                old.seek(at)
                new.write(b"\n" + old.readline().strip())

    def drop_dead_packs(self) -> None:
        """Delete packs that keep nothing; those of this run must be published by then."""
        for folder in [path for path in self.packs.iterdir() if path.is_dir()]:
            for pack in folder.iterdir():
                if not self._live[f"{folder.name}/{pack.name}"]:
                    pack.unlink()
            if not any(folder.iterdir()):
                shutil.rmtree(folder)

    def _read_journal(self) -> Numbers:
        known, numbers = Numbers(), {reason: number for number, reason in enumerate(REASONS)}
        if self._journal.exists():
            with self._journal.open(encoding="ascii") as file:
                for line in file:
                    # a kill may leave half a line, and the next line glued to it
                    fields = line.split()
                    if len(fields) == 2 and len(fields[0]) == 64 and fields[1] in numbers:
                        known.put(fields[0], numbers[fields[1]])
        return known


def _read_line(line: bytes) -> tuple[str, Packed] | None:
    """Read a line of the index: the picture's name, and where it is; None: it is cut short."""
    try:
        name, pack, at, size, original_size, picture = json.loads(line)
        return name, Packed(pack, at, size, original_size, Picture(*picture))
    except (ValueError, TypeError):
        return None


@lru_cache(1024)  # asked several times while its picture comes
def _picture_name(link: str) -> str:
    return sha256_bytes(picture_key(link).encode())


def _name(link: str) -> str:
    """Name the link with its signature: a fresh signature is asked."""
    return sha256_bytes(link.encode())
