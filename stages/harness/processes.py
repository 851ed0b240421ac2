"""Processes of a working tree: DVC at work, and stages that a killed DVC left running.

DVC tells each stage its name and root in the environment, DVC_STAGE and DVC_ROOT; its lock files
name the processes that hold them, even after their death. Whoever holds one is DVC, be it by the
command, by a module's option or by a program of one's own.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil

READER_OR_WRITER = re.compile(r'"pid": (\d+)')  # in .dvc/tmp/rwlock
HOLDER = re.compile(r"(\d+) \(.+ on (.+)\)")  # in a lock of scratch: process, user, machine
SCRATCH_LOCKS = ("*/lock", "*/*/lock", "*/*/*/lock")  # below .work
SHELLS = ("sh", "ash", "bash", "dash", "fish", "ksh", "zsh")
POLL_S = 0.05
CLOCK_S = 1.0  # a process's start is counted from the machine's, known to a second


def dvc_at_work(root: Path) -> psutil.Process | None:
    """Find a living DVC that holds the locks of a working tree."""
    return next(iter(_lock_holders(root / ".dvc/tmp")), None)


def _lock_holders(folder: Path) -> list[psutil.Process]:
    """Find the living processes that DVC's lock files name.

    `lock` is held by flock, and goes on naming whoever let go of it; what holds files while a
    stage runs is in `rwlock` until it lets go. A number in there may be that of a dead DVC, and
    meanwhile of another program: one that began after the file was written, and is no DVC.
    """
    whole, by_file = folder / "lock", folder / "rwlock"
    holders = []
    if is_held(whole):
        numbers = re.findall(r"\d+", whole.read_text("utf-8", errors="replace"))
        holders += _living(numbers, time.time())
    if by_file.is_file():
        numbers = READER_OR_WRITER.findall(by_file.read_text("utf-8", errors="replace"))
        holders += _living(numbers, by_file.stat().st_mtime)
    return holders


def _living(numbers: Iterable[str], named_at: float) -> list[psutil.Process]:
    """Find the processes that still are those whom somebody named at a time."""
    found = []
    for number in dict.fromkeys(map(int, numbers)):
        with suppress(psutil.Error):
            process = psutil.Process(number)
            is_older = process.create_time() <= named_at + CLOCK_S
            # a clock that was set may have a living DVC seem younger
            if _is_alive(process) and (is_older or _is_dvc(process)):
                found.append(process)
    return found


def is_held(path: Path) -> bool:
    """Tell whether anybody holds a lock file."""
    if not path.is_file():
        return False
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def orphans(root: Path) -> list[psutil.Process]:
    """Find stages of a working tree whose DVC is dead; of a stage's processes the topmost."""
    copies = (root / ".dvc/tmp/exps").glob("*/.dvc/tmp")  # where queued experiments run
    holders = [one for folder in (root / ".dvc/tmp", *copies) for one in _lock_holders(folder)]
    return [process for process in psutil.process_iter() if _is_orphan(process, root, holders)]


def orphans_of_others(root: Path) -> Iterator[tuple[psutil.Process, Path]]:
    """Find other users' processes that hold scratch of a working tree though their DVC is dead.

    Their environment is not ours to read, but the locks that they hold are. A stage that works
    without scratch is not found; it is short.

    Yields:
        Each process, and the folder that it holds.
    """
    for pattern in SCRATCH_LOCKS:
        for lock in (root / ".work").glob(pattern):
            try:
                named = HOLDER.fullmatch(lock.read_text("utf-8")) if is_held(lock) else None
                if named and named[2] == os.uname().nodename:
                    process = psutil.Process(int(named[1]))
                    is_attended = any(map(_is_dvc, process.parents()))
                    if process.uids().real != os.getuid() and not is_attended:
                        yield process, lock.parent
            except (psutil.Error, PermissionError):
                continue


def stage_of(process: psutil.Process) -> str | None:
    """Name the stage that a process works for; None if it works for none, or is not ours to ask."""
    return _environment(process).get("DVC_STAGE")


def end(process: psutil.Process, patience_s: float) -> None:
    """End a process and its children: asked first, so that a trainer saves, then killed.

    Each is asked once, for a trainer ends at once when it is asked again: by what started it, as
    torchrun does, unless that is a shell, which tells nobody, or has ended.

    Args:
        process: may be anybody's child.
        patience_s: from asking to killing.

    Raises:
        psutil.AccessDenied: if it is another user's.
    """
    family = {process.pid: process}
    with suppress(psutil.NoSuchProcess):
        family |= {child.pid: child for child in process.children(recursive=True)}
    tellers = {number: _teller(member) for number, member in family.items()}
    deadline = time.monotonic() + patience_s
    while (alive := _alive(family)) and time.monotonic() < deadline:
        for number in alive:
            if tellers.get(number) not in alive:
                tellers[number] = number  # asked, and by none else
                with suppress(psutil.NoSuchProcess):
                    family[number].terminate()
        time.sleep(POLL_S)
    for number in _alive(family):
        with suppress(psutil.NoSuchProcess):
            family[number].kill()
    while _alive(family):
        time.sleep(POLL_S)


def _alive(family: Mapping[int, psutil.Process]) -> list[int]:
    return [number for number, member in family.items() if _is_alive(member)]


def _teller(process: psutil.Process) -> int | None:
    """Give the process that passes on to another that it is to end; None if nobody does."""
    try:
        parent = process.parent()
        return parent.pid if parent and parent.name() not in SHELLS else None
    except psutil.Error:
        return None


def described(process: psutil.Process) -> str:
    """Say which process it is: number, command, user and age."""
    with process.oneshot():
        started = time.strftime("%d %B %H:%M", time.localtime(process.create_time()))
        words = " ".join(_words(process))
        return f"process {process.pid} (`{words}`, by {process.username()}, since {started})"


def _is_orphan(process: psutil.Process, root: Path, holders: Sequence[psutil.Process]) -> bool:
    try:
        environment = _environment(process)
        if "DVC_STAGE" not in environment or Path(environment.get("DVC_ROOT", "")) != root:
            return False
        parent = process.parent()
        is_attended = parent and (parent in holders or _is_dvc(parent) or stage_of(parent))
        return not is_attended and _is_alive(process)
    except psutil.NoSuchProcess:
        return False


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):  # ended, or another user's
        return {}


def _is_alive(process: psutil.Process) -> bool:
    """Tell whether a process still runs; one that nobody buried (a zombie) does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_dvc(process: psutil.Process) -> bool:
    """Tell DVC by its command, `dvc …` or `python … -m dvc …`."""
    words = list(_words(process))
    return "dvc" in words[:2] or ("-m", "dvc") in pairwise(words) or "-mdvc" in words


def _words(process: psutil.Process) -> Iterator[str]:
    """Give a command's words, programs without their folders."""
    for place, word in enumerate(process.cmdline()):
        yield Path(word).name if place < 2 else word
