"""Processes of a working tree: DVC at work, and stages that a killed DVC left running.

DVC tells each stage its name and root in the environment, DVC_STAGE and DVC_ROOT; its lock files
name the processes that hold them, even after their death.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

READER_OR_WRITER = re.compile(r'"pid": (\d+)')  # in .dvc/tmp/rwlock
HOLDER = re.compile(r"(\d+) \(.+ on (.+)\)")  # in a lock of scratch: process, user, machine
SCRATCH_LOCKS = ("*/lock", "*/*/lock", "*/*/*/lock")  # below .work
POLL_S = 0.05


def dvc_at_work(root: Path) -> psutil.Process | None:
    """Find a living DVC that holds the locks of a working tree.

    A number in a lock file may be that of a dead DVC, or meanwhile of quite another program.
    """
    for number in _lock_holders(root / ".dvc/tmp"):
        try:
            process = psutil.Process(number)
            if _is_alive(process) and _is_dvc(process):
                return process
        except psutil.Error:
            continue
    return None


def _lock_holders(folder: Path) -> list[int]:
    """List the processes that DVC's lock files name.

    `lock` is held by flock, and goes on naming whoever let go of it; what holds files while a
    stage runs is in `rwlock` until it lets go.
    """
    named = []
    whole, by_file = folder / "lock", folder / "rwlock"
    if whole.is_file() and _is_held(whole):
        named += re.findall(r"\d+", whole.read_text("utf-8", errors="replace"))
    if by_file.is_file():
        named += READER_OR_WRITER.findall(by_file.read_text("utf-8", errors="replace"))
    return [int(number) for number in named]


def _is_held(path: Path) -> bool:
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def orphans(root: Path) -> list[psutil.Process]:
    """Find stages of a working tree whose DVC is dead; of a stage's processes the topmost."""
    return [process for process in psutil.process_iter() if _is_orphan(process, root)]


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
                named = HOLDER.fullmatch(lock.read_text("utf-8")) if _is_held(lock) else None
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

    Args:
        process: may be anybody's child.
        patience_s: from asking to killing.

    Raises:
        psutil.AccessDenied: if it is another user's.
    """
    try:
        family = [process, *process.children(recursive=True)]
        process.terminate()
    except psutil.NoSuchProcess:
        return
    deadline = time.monotonic() + patience_s
    while any(map(_is_alive, family)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for member in filter(_is_alive, family):
        member.kill()
    while any(map(_is_alive, family)):
        time.sleep(POLL_S)


def described(process: psutil.Process) -> str:
    """Say which process it is: number, command, user and age."""
    with process.oneshot():
        started = time.strftime("%d %B %H:%M", time.localtime(process.create_time()))
        words = " ".join(_words(process))
        return f"process {process.pid} (`{words}`, by {process.username()}, since {started})"


def _is_orphan(process: psutil.Process, root: Path) -> bool:
    try:
        environment = _environment(process)
        if "DVC_STAGE" not in environment or Path(environment.get("DVC_ROOT", "")) != root:
            return False
        parent = process.parent()
        is_attended = parent and (_is_dvc(parent) or stage_of(parent))
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
    """Tell DVC by its command, `dvc …` or `python -m dvc …`."""
    words = list(_words(process))
    return "dvc" in words[:2] or words[1:3] == ["-m", "dvc"]


def _words(process: psutil.Process) -> Iterator[str]:
    """Give a command's words, programs without their folders."""
    for place, word in enumerate(process.cmdline()):
        yield Path(word).name if place < 2 else word
