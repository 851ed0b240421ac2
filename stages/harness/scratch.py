"""Scratch that outlives a killed stage, and folders that are whole or absent."""

import fcntl
import os
import pwd
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COPIES = "/.dvc/tmp/exps/"  # below a repository: copies of it, in which DVC runs queued experiments


def work_dir(stage: str = "") -> Path:
    """Name the scratch folder of a stage, below the repository's root wherever DVC calls from.

    A queued experiment has no scratch of its own: it goes on from what others have done.
    """
    return Path(_dvc_root().partition(COPIES)[0], ".work", stage)


def _dvc_root() -> str:
    return os.environ.get("DVC_ROOT", ".")


def _is_experiment() -> bool:
    """Tell whether DVC runs this in a copy of the tree; DVC_ROOT is the repository's even there."""
    return COPIES in Path.cwd().as_posix()


def _this_process() -> str:
    """Say who holds a folder, to another user or on another machine, too."""
    user = os.geteuid()
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:  # as in a container that was given a number
        name = f"user {user}"
    return f"{os.getpid()} ({name} on {os.uname().nodename})"


@contextmanager
def exclusive(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder for this process alone; a killed process lets go of it by itself.

    DVC killed leaves its stage running: two processes must not write to one scratch. Queued
    experiments always wait, for those at work beside them: what both need, the second finds done.

    Args:
        folder: is made if it is not there.
        wait: until whoever holds it lets go.

    Raises:
        BlockingIOError: if another process holds it, unless told to wait; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = f"{folder}: process {lock.read().strip() or '(unknown)'} is still at work here"
            if not wait and not _is_experiment():
                raise BlockingIOError(
                    f"{holder}, perhaps left over from a run that was killed. Wait for it, or end "
                    "it, and start again: what it did is kept"
                ) from None
            sys.stderr.write(f"{holder}; waiting for it\n")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(_this_process())
        lock.flush()
        yield


@contextmanager
def replacing_folder(path: Path, pattern: str) -> Iterator[Path]:
    """Yield an empty scratch folder; put it in the place of `path` only if the block succeeds.

    A failure leaves what stood at `path` untouched; a kill leaves a `.partial` beside it, which
    the next run replaces.

    Args:
        path: of a folder; missing parents are made.
        pattern: of the names that the folder may hold, as `*.tar`; anything else at `path` is
            not ours to delete.

    Raises:
        FileExistsError: if a file, or a folder with other things in it, stands at `path`.
    """
    strange = [path] if path.is_file() else [p for p in path.glob("*") if not p.match(pattern)]
    if strange:
        raise FileExistsError(
            f"{path}: will not replace it, for it holds {strange[0].name!r}, which is no {pattern} "
            "of an earlier run. Name an empty or a new folder"
        )
    scratch, old = (path.with_name(f"{path.name}{end}") for end in (".partial", ".old.partial"))
    for leftover in (scratch, old):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    if path.exists():
        path.replace(old)
    scratch.replace(path)
    shutil.rmtree(old, ignore_errors=True)
