"""Read and hash every object of DVC's cache here; name and mend what a disk or a program spoilt.

DVC takes a read-only object for good without reading it. A spoilt one comes back from the working
tree, if the file there is a sound copy, or from the default remote. What neither has is taken
away, also from the working tree and the scratch, so that `make run` makes it anew. Its bytes are
kept in .work/spoilt either way: they may be a person's work, written through a hard link. What
dvc.lock records and the cache lacks is named, too.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from asyncssh import Error as SshError
from botocore.exceptions import BotoCoreError
from dvc.exceptions import DvcException
from dvc.repo import Repo

from stages.harness.dvc_command import DVC
from stages.harness.paths import clear_errors
from stages.harness.scratch import work_dir
from stages.storage.conflict import LOCK, refuse_cut_short, refuse_unresolved
from stages.storage.listed import listed
from stages.storage.place import Place, open_place
from stages.storage.recorded import Recorded, recorded_objects
from stages.storage.spoilt import Spoilt, spoilt_objects

ASIDE = "spoilt"  # below .work
say = functools.partial(print, flush=True)


def run(repo: Repo) -> None:
    """Verify the cache of a repository, and mend what can be mended.

    Raises:
        ValueError: if the cache lacks an object of this commit, or had to lose it; each is named.
        OSError: if the disk fails.
    """
    root, cache = Path(repo.root_dir), repo.cache.local
    outs = [Path(out.fs_path) for out in repo.index.outs if out.use_cache]
    scratch = [path for path in (root / work_dir()).glob("*") if path.name != ASIDE]
    wanted = recorded_objects(repo, [cache])
    count, spoilt = spoilt_objects(cache, wanted, [*outs, *scratch])
    backup = Backup(repo)
    for one in spoilt:  # each to its end: a kill leaves the rest as it is, to be found again
        one.clear(root)
        kept = one.keep(root / work_dir() / ASIDE)
        if one.mend_from_tree(root):
            done = "mended from the working tree"
        elif backup.mends(one):
            done = f"mended from {backup.address}"
        else:
            one.take_away()
            done = "taken away, for nothing has it"
        say(f"changed  {_named(one.recorded)}; {done}; as it was: {kept.relative_to(root)}")
    wanted = recorded_objects(repo, [cache])  # more than before, if the list of a folder is mended
    absent = [one for one in wanted if not Path(cache.oid_to_path(one.name)).exists()]
    if absent:
        raise ValueError(
            f"{count:,} objects read and hashed, {len(spoilt):,} were changed. Of {len(wanted):,} "
            f"of this commit, {len(absent):,} are not in the cache:\n"
            f"{listed([_named(one) for one in absent])}\n"
            f"Next: {' '.join(_advice(absent, repo))}"
        )
    result = f"{len(spoilt):,} were changed; all is sound again" if spoilt else "nothing amiss"
    say(f"{count:,} objects read and hashed, {result}.")


class Backup:
    """The default remote: opened for the first object that needs it, let go of once it fails."""

    def __init__(self, repo: Repo) -> None:
        """Take the repository whose config names it."""
        self._repo = repo
        self._place: Place | None = None
        self._is_tried = False

    @property
    def address(self) -> str:
        """Tell where it is."""
        return self._place.address if self._place else ""

    def mends(self, one: Spoilt) -> bool:
        """Try to mend an object from it."""
        if not self._is_tried:
            self._is_tried = True
            self._place = _place(self._repo)
        if not self._place:
            return False
        try:
            return one.mend_from_remote(self._place)
        except (BotoCoreError, SshError, OSError) as error:
            why = error if isinstance(error, OSError) else self._place.explained(error)
            say(f"nothing more can be mended from the remote: {why}")
            self._place = None
            return False


def _place(repo: Repo) -> Place | None:
    """Open the default remote; None, and why, if there is none that answers."""
    if not repo.config["core"].get("remote"):
        say("no default remote is set: nothing can be mended from it")
        return None
    try:
        return open_place(repo, None)
    except (ValueError, OSError) as error:
        say(f"nothing can be mended from the remote: {error}")
        return None


def _advice(absent: Sequence[Recorded], repo: Repo) -> list[str]:
    """Say how the cache gets what it lacks."""
    stages = {one.stage for one in absent}
    added = sorted(stage for stage in stages if stage.endswith(".dvc"))
    made = ", ".join(sorted(stages - {*added}))
    advice = []
    if repo.config["core"].get("remote"):
        advice.append("`make pull` fetches what the remote has.")
    if made:
        advice.append(f"`make run` makes anew what stages made ({made}).")
    if added:
        advice.append(f"No stage makes what {', '.join(added)} name: get it again, `{DVC} add` it.")
    return advice


def _named(recorded: Recorded) -> str:
    return f"{recorded} [{recorded.name}]"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.verify_cache",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    with clear_errors():
        refuse_unresolved(Path())
        refuse_cut_short(Path(LOCK))
        try:
            with Repo() as repo:
                run(repo)
        except DvcException as error:
            raise ValueError(f"DVC: {error}") from error


if __name__ == "__main__":
    main()
