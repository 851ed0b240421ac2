"""Make a working tree ready for `dvc repro`, whatever was killed in it; `make run` begins so.

A DVC that is still at work is named, and nothing is touched. Stages that a killed DVC left running
are ended: they are asked first, and what they did is kept; another user's are named, where they
hold scratch. Locks of dead processes go, and copies and records of runs that DVC did not finish; a
dvc.lock that was cut short is made whole. A conflict that a merge of Git left is told, and so is a
cache that one may not write to, before days of work.
"""

import argparse
import functools
import time
from contextlib import suppress
from pathlib import Path

from stages.harness.cache_folder import cache_folder, check_writable
from stages.harness.counted import counted
from stages.harness.half_copied import is_abandoned, is_half_copied
from stages.harness.lock_file import mend_lock_file
from stages.harness.paths import clear_errors
from stages.harness.processes import (
    described,
    dvc_at_work,
    end,
    is_held,
    orphans,
    orphans_of_others,
    stage_of,
)
from stages.storage.conflict import refuse_unresolved

PATIENCE_S = 60.0  # for a trainer on a GPU, to write its checkpoint
SOON_S = 5.0  # `dvc status` and the like are done by then

MADE = ("data", "models", "reports")  # where outs lie

say = functools.partial(print, flush=True)


def run(root: Path, patience_s: float = PATIENCE_S) -> None:
    """Clear away what a kill left.

    Args:
        root: of the repository, where .dvc lies.
        patience_s: to wait for a stage that is asked to end, until it is killed.

    Raises:
        BlockingIOError: if a DVC is at work here, or a stage that another user's DVC left.
        ValueError: if a merge of Git left a conflict in what DVC reads.
        PermissionError: if DVC could not write to its cache.
    """
    deadline = time.monotonic() + SOON_S
    lock = root / ".dvc/tmp/lock"
    while (at_work := dvc_at_work(root)) or is_held(lock):
        if time.monotonic() < deadline:
            time.sleep(0.2)
        elif at_work:
            raise BlockingIOError(
                f"{described(at_work)} is at work in this working tree. Wait for it, or end it, "
                f"and start again: what it did is kept\n  kill {at_work.pid}\n"
                f"(DVC's locks name it; if it has nothing to do with DVC: rm .dvc/tmp/rwlock)"
            )
        else:
            raise BlockingIOError(
                f"{lock}: held by a process that is not to be seen from here, perhaps in a "
                "container. Wait for it, or end it there, and start again: what it did is kept"
            )
    refuse_unresolved(root)
    check_writable(root)
    for process in orphans(root):
        say(f"{stage_of(process)}: a DVC that was killed left it running, {described(process)}")
        end(process, patience_s)
        say(f"process {process.pid} is ended; what it did is kept")
    for process, folder in orphans_of_others(root):
        raise BlockingIOError(
            f"{described(process)} is at work in {folder}, and no DVC is over it: one that was "
            f"killed may have left it running. It is theirs to end, or root's; then start again: "
            f"what it did is kept\n  kill {process.pid}"
        )
    (root / ".dvc/tmp/rwlock").unlink(missing_ok=True)  # all who are named in it are dead
    _clear_copies(root)
    if mended := mend_lock_file(root / "dvc.lock"):
        committed, lost = mended
        say(
            f"dvc.lock was cut short, and is whole again: from the last commit "
            f"{counted(len(committed), 'entry', 'entries')}, lost {len(lost)}"
            f"{': ' if lost else ''}{', '.join(lost)}. "
            "DVC compares all of them with the files, and makes what it misses"
        )


def _clear_copies(root: Path) -> None:
    """Take away copies and records of runs that a killed DVC did not finish."""
    for path in (path for top in MADE for path in (root / top).rglob(".*.tmp")):
        if is_half_copied(path.name):
            path.unlink()
    for path in cache_folder(root).glob("files/md5/??/.*.tmp"):  # as a killed pull leaves them
        with suppress(OSError):  # another's, or gone meanwhile
            if is_half_copied(path.name) and is_abandoned(path.stat().st_ctime):
                path.unlink()
    for folder in (cache_folder(root) / "runs").glob("*/*"):
        with suppress(OSError):  # it holds records; DVC fails at one that holds none
            folder.rmdir()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.ready",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    with clear_errors():
        run(Path.cwd())


if __name__ == "__main__":
    main()
