"""Two versions of dvc.lock put together: of each stage, the run that fits what is at hand."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Entry = dict[str, Any]  # of one stage: cmd, deps, params, outs, as DVC writes them


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What came of two versions."""

    stages: dict[str, Entry]
    differing: tuple[str, ...]  # stages that the versions record differently
    theirs: tuple[str, ...]  # of these, the ones taken from theirs
    stale: tuple[str, ...]  # stages whose recorded run neither version has for what is at hand


class AtHand:
    """The commands, params and files in the working tree, as a stage's record speaks of them."""

    def __init__(self, root: Path, commands: Mapping[str, Any]) -> None:
        """Read no file yet.

        Args:
            root: of the repository.
            commands: of dvc.yaml by stage, with params put in, as DVC would record them.
        """
        self.root = root
        self.commands = commands
        self._values: dict[str, Any] = {}
        self._md5: dict[str, str | None] = {}

    def value(self, file: str, key: str) -> Any:
        """Read a value of a params file by its dotted key; None if there is none."""
        from dvc.utils.serialize import load_yaml  # not before there is something to merge

        if file not in self._values:
            self._values[file] = load_yaml(str(self.root / file))
        value = self._values[file]
        for word in key.split("."):
            value = value.get(word) if isinstance(value, dict) else None
        return value

    def md5(self, path: str) -> str | None:
        """Hash a file; None if it is none, such as a folder."""
        if path not in self._md5:
            file = self.root / path
            self._md5[path] = md5_file(file) if file.is_file() else None
        return self._md5[path]


def md5_file(path: Path) -> str:
    """Hash a file's bytes as DVC does; 32 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def merge_locks(ours: Mapping[str, Entry], theirs: Mapping[str, Entry], at_hand: AtHand) -> Merged:
    """Choose of each stage's two records the one of a run with what is at hand.

    Inputs that other stages make are those of the records chosen for them, so a choice may turn
    others; it settles, for it follows the graph. Where neither record fits, ours stays, and DVC
    will run the stage, or find its run in the run cache.

    Args:
        ours, theirs: entries of dvc.lock by stage.
        at_hand: commands, params and sources after the merge.
    """
    chosen = {**theirs, **ours}
    differing = [name for name in chosen if ours.get(name) != theirs.get(name)]
    both = [name for name in differing if name in ours and name in theirs]
    for _ in range(len(both) + 1):
        made = outs_of(chosen)
        turned = False
        for name in both:
            fitting = [e for e in (ours[name], theirs[name]) if fits(name, e, made, at_hand)]
            entry = fitting[0] if fitting else ours[name]
            turned |= entry is not chosen[name]
            chosen[name] = entry
        if not turned:
            break
    made = outs_of(chosen)
    return Merged(
        stages=chosen,
        differing=tuple(differing),
        theirs=tuple(name for name in differing if chosen[name] is theirs.get(name)),
        stale=tuple(name for name in chosen if not fits(name, chosen[name], made, at_hand)),
    )


def outs_of(stages: Mapping[str, Entry]) -> dict[str, str]:
    """Map the path of each recorded out to its hash."""
    return {out["path"]: out["md5"] for entry in stages.values() for out in entry.get("outs", [])}


def fits(name: str, entry: Entry, made: Mapping[str, str], at_hand: AtHand) -> bool:
    """Tell whether a stage's record is that of a run with this command, these inputs and params.

    Args:
        name: of the stage; one that dvc.yaml no longer has may have any command.
        entry: the record.
        made: hashes of what other stages make, by path.
        at_hand: the commands, the params, and the files that no stage makes. Folders that no
            stage makes are taken as equal: DVC will look.
    """
    if entry["cmd"] != at_hand.commands.get(name, entry["cmd"]):
        return False
    for dep in entry.get("deps", []):
        present = made.get(dep["path"]) or at_hand.md5(dep["path"])
        if present and present != dep["md5"]:
            return False
    return all(
        at_hand.value(file, key) == value
        for file, values in entry.get("params", {}).items()
        for key, value in values.items()
    )
