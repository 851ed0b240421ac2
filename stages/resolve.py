"""After a merge or rebase: name what is left to decide, and put dvc.lock together.

  python -m stages.resolve           put together dvc.lock and the reports that Git holds
  python -m stages.resolve --check   only look whether a merge left something; silent if not

Both sides' runs are recorded in their dvc.lock. Of each stage, the record is kept whose command,
params and inputs are those that the merge gave; the outs are checked out from DVC's cache. What
neither side ran is left to `dvc repro`, and only that.
"""

import argparse
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.harness.paths import clear_errors
from stages.storage.conflict import (
    GRAPH,
    LOCK,
    WRITTEN_BY_HAND,
    conflicts,
    git,
    refuse_conflicts,
    refuse_unresolved,
    unmerged,
)
from stages.storage.lock_merge import AtHand, Merged, md5_file, merge_locks, outs_of


def run(root: Path) -> None:
    """Put dvc.lock together.

    Raises:
        ValueError: if something else is left to decide, or Git no longer has both versions.
    """
    from dvc.exceptions import DvcException  # importing DVC takes a time that `--check` spares
    from dvc.repo import Repo
    from dvc.utils.serialize import dump_yaml, parse_yaml

    sides = unmerged(root)
    if LOCK not in sides:
        if conflicts(root / LOCK):
            raise ValueError(
                f"{LOCK} holds both versions, but Git takes it for merged. To undo that:\n"
                f"  git checkout --merge -- {LOCK}\n  make resolve"
            )
        refuse_conflicts(root / name for name in WRITTEN_BY_HAND)
        print(f"{LOCK} is in no conflict. Next: make run")
        return
    ours, theirs = (
        parse_yaml(sides[LOCK].get(side, b"").decode(), LOCK).get("stages", {})
        for side in ("ours", "theirs")
    )
    outs = outs_of(ours) | outs_of(theirs)
    to_decide = {*WRITTEN_BY_HAND, *sides} - {LOCK, *outs}
    refuse_conflicts(root / name for name in sorted(to_decide))
    try:
        at_hand = AtHand(root, commands(root))
    except DvcException as error:
        place = f"\n{error.__cause__}" if error.__cause__ else ""  # of YAML's errors, the line
        raise ValueError(
            f"DVC cannot read what was merged: {error}{place}\nMend it, then:\n  make resolve"
        ) from error
    merged = merge_locks(ours, theirs, at_hand)
    dump_yaml(str(root / LOCK), {"schema": "2.0", "stages": merged.stages})
    restore_reports(root, outs_of(merged.stages), sides)
    git(root, "add", "--", LOCK, *(path for path in sides if path in outs))
    try:
        with Repo(str(root)) as repo:
            repo.checkout(allow_missing=True)
    except DvcException as error:  # an out that somebody edited; the next run makes it anew
        print(f"Outs are left as they are: {error}")
    print(summary(merged, is_rebase=is_rebase(root)))


def commands(root: Path) -> dict[str, Any]:
    """Read the command of each stage, with the params in it, as DVC records it."""
    from dvc.parsing import DataResolver
    from dvc.repo import Repo
    from dvc.utils.serialize import load_yaml

    with Repo(str(root)) as repo:
        graph = DataResolver(repo, repo.root_dir, load_yaml(str(root / GRAPH))).resolve()
    return {name: stage["cmd"] for name, stage in graph["stages"].items()}


def is_rebase(root: Path) -> bool:
    """Tell whether a rebase is under way; Git keeps its folder until the last commit is done."""
    paths = git(root, "rev-parse", "--git-path", "rebase-merge", "--git-path", "rebase-apply")
    return any((root / path).is_dir() for path in paths.decode().splitlines())


def restore_reports(
    root: Path, outs: Mapping[str, str], sides: Mapping[str, Mapping[str, bytes]]
) -> None:
    """Give the outs that Git holds the content that the records speak of, where a side has it.

    Args:
        root: of the repository.
        outs: recorded hashes by path.
        sides: the versions of files that are not merged; of these, ours stands in if none is as
            recorded, so that no marks are left for a stage to read.
    """
    tracked = set(git(root, "ls-files", "-z").decode().split("\0"))
    for path in sorted(outs.keys() & tracked):
        if (root / path).is_file() and md5_file(root / path) == outs[path]:
            continue
        known = [*sides.get(path, {}).values(), *committed(root, path)]
        fitting = [content for content in known if hashlib.md5(content).hexdigest() == outs[path]]
        if fitting or path in sides:
            (root / path).write_bytes((fitting or known)[0])


def committed(root: Path, path: str) -> Iterator[bytes]:
    """Read a file as the commits have it that are being merged."""
    for commit in ("HEAD", "MERGE_HEAD", "CHERRY_PICK_HEAD", "REBASE_HEAD"):
        with suppress(ValueError):  # there is no such commit, or it has no such file
            yield git(root, "show", f"{commit}:{path}")


def summary(merged: Merged, *, is_rebase: bool) -> str:
    """Say what was taken from where, and what is next.

    Args:
        merged: what came of both versions.
        is_rebase: then what Git calls ours is the branch below, and theirs one's own commit.
    """
    ours = len(merged.differing) - len(merged.theirs)
    sides = ("the branch below", "the commit on top") if is_rebase else ("ours", "theirs")
    lines = [
        f"{LOCK}: {len(merged.stages):,} stages, {len(merged.differing):,} of them recorded "
        f"differently; {ours:,} taken from {sides[0]}, {len(merged.theirs):,} from {sides[1]}."
    ]
    if merged.stale:
        lines.append(f"Neither side ran, with what was merged: {', '.join(merged.stale)}.")
    lines.append(
        "Next: make pull, if the other side was run elsewhere and pushed; make run, which runs "
        "what neither side ran, and no more; git add --all; "
        f"{'git rebase --continue' if is_rebase else 'git commit'}"
    )
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.resolve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="look only; silent if all is well")
    options = parser.parse_args()
    with clear_errors():
        if options.check:
            refuse_unresolved(Path())
        else:
            run(Path())


if __name__ == "__main__":
    main()
