"""Read and hash every object of DVC's cache here; name and mend what a disk or a program spoilt.

DVC takes a read-only object for good without reading it. A spoilt one comes back from the working
tree, if the file there is a sound copy, or from the default remote. What neither has is taken
away, also from the working tree and the scratch, so that `make run` makes it anew; its bytes are
kept in .work/spoilt, for no stage makes what a person added.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from asyncssh import Error as SshError
from botocore.exceptions import BotoCoreError
from dvc.exceptions import DvcException
from dvc.repo import Repo

from stages.harness.paths import clear_errors
from stages.harness.scratch import work_dir
from stages.storage.place import Place, open_place
from stages.storage.recorded import recorded_objects
from stages.storage.spoilt import Spoilt, mend_from_remote, mend_from_tree, spoilt_objects

ASIDE = "spoilt"  # below .work
say = functools.partial(print, flush=True)


def run(repo: Repo) -> None:
    """Verify the cache of a repository, and mend what can be mended.

    Raises:
        ValueError: if an object of this commit is lost; each is named, with its stage.
        OSError: if the disk fails.
    """
    root, cache = Path(repo.root_dir), repo.cache.local
    outs = [Path(out.fs_path) for out in repo.index.outs if out.use_cache]
    wanted = recorded_objects(repo, [cache])
    count, spoilt = spoilt_objects(cache, wanted, [*outs, root / work_dir()])
    if not spoilt:
        say(f"{count:,} objects read and hashed, nothing amiss.")
        return
    aside = root / work_dir() / ASIDE
    for one in spoilt:
        one.take_away(aside)
    remaining = _mended(spoilt, root, repo)
    mended = [one for one in spoilt if one not in remaining]
    for one in mended:
        (aside / one.recorded.name).unlink()
    _put_back(repo, mended)
    lost = [one for one in remaining if one.is_of_this_commit]
    for one in remaining:
        if not one.is_of_this_commit:
            say(f"changed  {one.recorded} [{one.recorded.name}]; taken away, for nothing has it")
    if lost:
        names = "\n".join(f"  {one.recorded} [{one.recorded.name}]" for one in lost)
        stages = {one.recorded.stage for one in lost}
        added = sorted(stage for stage in stages if stage.endswith(".dvc"))
        made = ", ".join(sorted(stages - {*added}))
        advice = [f"`make run` makes anew what stages made ({made})."] if made else []
        if added:
            advice.append(
                f"No stage makes what {', '.join(added)} name: get it again, `dvc add` it."
            )
        raise ValueError(
            f"of {count:,} objects, {len(spoilt):,} were changed, and {len(lost):,} of this commit "
            f"are in no other place; they are taken away, as they are now, to {aside}:\n{names}\n"
            f"Next: {' '.join(advice)}"
        )
    say(
        f"{count:,} objects read and hashed, {len(spoilt):,} were changed; all that is "
        "recorded is sound again."
    )


def _mended(spoilt: Sequence[Spoilt], root: Path, repo: Repo) -> list[Spoilt]:
    """Mend from the tree, then from the remote; give what remains."""
    cache = repo.cache.local
    remaining = []
    for one in spoilt:
        if mend_from_tree(one, root, cache):
            say(f"changed  {one.recorded} [{one.recorded.name}]; mended from the working tree")
        else:
            remaining.append(one)
    place = _place(repo) if remaining else None
    if not place:
        return remaining
    lost: list[Spoilt] = []
    for number, one in enumerate(remaining):
        try:
            is_mended = mend_from_remote(one, place, cache)
        except (BotoCoreError, SshError, OSError) as error:
            why = error if isinstance(error, OSError) else place.explained(error)
            say(f"nothing more can be mended from the remote: {why}")
            return lost + remaining[number:]
        if is_mended:
            say(f"changed  {one.recorded} [{one.recorded.name}]; mended from {place.address}")
        else:
            lost.append(one)
    return lost


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


def _put_back(repo: Repo, mended: Sequence[Spoilt]) -> None:
    """Let the working tree have again what was taken away there, file by file."""
    root = Path(repo.root_dir)
    outs = {Path(out.fs_path) for out in repo.index.outs if out.use_cache}
    files = [link for one in mended for link in one.links if outs & {link, *link.parents}]
    if files:
        repo.checkout(targets=sorted(str(file.relative_to(root)) for file in files))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.verify_cache",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    with clear_errors():
        try:
            with Repo() as repo:
                run(repo)
        except DvcException as error:
            raise ValueError(f"DVC: {error}") from error


if __name__ == "__main__":
    main()
