"""What a merge of Git leaves: files that hold both versions of some lines, between marks.

And what a kill leaves of dvc.lock, which stops DVC as marks do.
"""

import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stages.harness.lock_file import is_whole

LOCK = "dvc.lock"
GRAPH = "dvc.yaml"
WRITTEN_BY_HAND = ("params.yaml", GRAPH)  # of what DVC reads
MARK = re.compile(r"<<<<<<< |\|{7} |={7}$|>>>>>>> ")
OPENING, MIDDLE, CLOSING = "<<<<<<< ", "=======", ">>>>>>> "
SIDES = {"2": "ours", "3": "theirs"}  # as the index numbers them


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Lines of a file of which a merge kept both versions."""

    path: Path
    first: int  # line of the first mark, counted from 1
    last: int  # line of the last mark; the same if a person deleted all others

    def __str__(self) -> str:
        """Name the file and the lines."""
        if self.first == self.last:
            return f"{self.path}, line {self.first}"
        return f"{self.path}, lines {self.first} to {self.last}"


def conflicts(path: Path) -> list[Conflict]:
    """Find the lines between Git's marks, some of which a person may have deleted already.

    A line of = alone may be a text's own, such as a title's; with any other mark it is Git's. A
    file that is not there, or no text, has none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    groups: list[dict[int, str]] = [{}]  # marks by line
    for number, line in enumerate(lines, start=1):
        if found := MARK.match(line):
            if found.group() == OPENING:
                groups.append({})
            groups[-1][number] = found.group()
            if found.group() == CLOSING:
                groups.append({})
    return [
        Conflict(path=path, first=min(marks), last=max(marks))
        for marks in groups
        if {*marks.values()} - {MIDDLE}
    ]


def refuse_conflicts(paths: Iterable[Path]) -> None:
    """Stop at files that a merge left in two versions.

    Raises:
        ValueError: if there are any; all of their lines are named.
    """
    if found := [conflict for path in paths for conflict in conflicts(path)]:
        raise ValueError(
            "a merge left both versions of\n"
            + "".join(f"  {conflict}\n" for conflict in found)
            + "Keep what shall hold, delete the lines of marks (<<<<<<<, =======, >>>>>>>, and "
            "|||||||, below which Git may show the common ancestor), then:\n"
            "  make resolve"
        )


def refuse_unresolved(root: Path) -> None:
    """Stop where a merge left something that DVC would read, before it does.

    Raises:
        ValueError: if so; the message tells what, and the way out.
    """
    refuse_conflicts(root / name for name in WRITTEN_BY_HAND)
    sides = {}
    with suppress(ValueError, OSError):  # no Git or no repository of it: then no merge either
        sides = unmerged(root)
    if LOCK in sides or conflicts(root / LOCK):
        raise ValueError(
            f"a merge left two versions of {LOCK}, ours and theirs; nothing of either is lost. "
            "To put them together:\n  make resolve"
        )


def refuse_cut_short(lock: Path) -> None:
    """Stop at a dvc.lock that DVC cannot read.

    Raises:
        ValueError: if it is one; the message tells the way out.
    """
    if lock.exists() and not is_whole(lock.read_text("utf-8", errors="replace")):
        raise ValueError(
            f"{lock} is empty or cut short. To keep its entries that are whole, and to have the "
            "others from the last commit:\n  .venv/bin/python -m stages.ready"
        )


def unmerged(root: Path) -> dict[str, dict[str, bytes]]:
    """Read from Git's index both versions of each file that is not merged yet.

    Returns:
        By path, `ours` and `theirs`; a side that deleted the file is absent.
    """
    listed = git(root, "ls-files", "--unmerged", "-z").decode()
    found: dict[str, dict[str, bytes]] = {}
    for line in filter(None, listed.split("\0")):
        (_, blob, number), path = line.split("\t")[0].split(), line.split("\t", 1)[1]
        sides = found.setdefault(path, {})
        if number in SIDES:
            sides[SIDES[number]] = git(root, "cat-file", "blob", blob)
    return found


def git(root: Path, *words: str) -> bytes:
    """Run Git; give what it prints.

    Raises:
        ValueError: if it fails, with what it says.
    """
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"git {' '.join(words)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
