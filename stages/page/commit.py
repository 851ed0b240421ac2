"""What stood in the repository at a commit: files of Git's, and outputs that DVC's cache holds."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from dvc.repo import Repo
from dvc.scm import SCMError, resolve_rev

from stages.harness.params import ParamsLoader

WORKSPACE = "workspace"  # as DVC calls the folder as it stands
LOCK = Path("dvc.lock")
QUICK = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a lock has thousands of lines


@dataclass(frozen=True)
class Commit:
    """A commit, or the folder as it stands."""

    repo: Repo
    name: str  # as it was asked for
    revision: str  # its hash, or WORKSPACE

    @property
    def about(self) -> str:
        """Tell its hash, day and subject."""
        if self.revision == WORKSPACE:
            return "the folder as it stands"
        return self._git("log", "-1", "--format=%h, %cs: %s", self.revision).decode().strip()

    def read(self, path: Path) -> bytes | None:
        """Give the bytes of a file of Git's; None if there was none."""
        if self.revision == WORKSPACE:
            place = self.root / path
            return place.read_bytes() if place.is_file() else None
        if not self._git("ls-tree", self.revision, path.as_posix()):
            return None
        return self._git("show", f"{self.revision}:{path.as_posix()}")

    def values(self, path: Path) -> Any:
        """Read a file of params, metrics or the lock; nothing if there was none.

        Raises:
            ValueError: if it is damaged.
        """
        try:
            return yaml.load(self.read(path) or b"", QUICK if path == LOCK else ParamsLoader)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} at {self.name}: not readable: {error}") from None

    def list_files(self, folder: Path) -> list[Path]:
        """List the files of Git's below a folder."""
        if self.revision == WORKSPACE:
            found = (self.root / folder).rglob("*")
            return sorted(path.relative_to(self.root) for path in found if path.is_file())
        names = self._git("ls-tree", "-r", "-z", "--name-only", self.revision, folder.as_posix())
        return [Path(name) for name in names.decode().split("\0") if name]

    def folders(self, parent: Path) -> list[Path]:
        """List the folders right below one that stages made, here or not."""
        made = {path for path in self._outs if path.parent == parent}
        if self.revision == WORKSPACE:
            made |= {p.relative_to(self.root) for p in (self.root / parent).glob("*/")}
        return sorted(made)

    def copy(self, path: Path, to: Path) -> bool:
        """Copy a file out of a folder that a stage made; False if DVC's cache lacks it."""
        if self.revision == WORKSPACE:
            place: Path | None = self.root / path
        else:
            place = next(
                (self._listing(f).get(path) for f in path.parents if f in self._outs), None
            )
        if not (place and place.is_file()):
            return False
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place, to)
        return True

    @property
    def root(self) -> Path:
        """Name the repository's folder."""
        return Path(self.repo.root_dir)

    @cached_property
    def _outs(self) -> dict[Path, str]:
        """Map the folders that stages made to their hashes, as dvc.lock tells them."""
        stages = (self.values(LOCK) or {}).get("stages", {}).values()
        outs = (out for stage in stages for out in stage.get("outs", []))
        return {Path(o["path"]): o["md5"] for o in outs if o.get("md5", "").endswith(".dir")}

    @cached_property
    def _listings(self) -> dict[Path, dict[Path, Path]]:
        return {}

    def _listing(self, folder: Path) -> dict[Path, Path]:
        """Map a folder's files to their places in DVC's cache; nothing if it lacks the list."""
        if folder not in self._listings:
            listing = self._cached(self._outs[folder])
            entries = json.loads(listing.read_text("utf-8")) if listing.is_file() else []
            self._listings[folder] = {
                folder / entry["relpath"]: self._cached(entry["md5"]) for entry in entries
            }
        return self._listings[folder]

    def _cached(self, md5: str) -> Path:
        return Path(self.repo.cache.local.oid_to_path(md5))

    def _git(self, *words: str) -> bytes:
        command = ["git", *words]
        return subprocess.run(command, cwd=self.root, capture_output=True, check=True).stdout


def find_commit(repo: Repo, name: str) -> Commit:
    """Find a commit by its hash, branch, tag, or experiment.

    Raises:
        ValueError: if there is none.
    """
    if name == WORKSPACE:
        return Commit(repo, name, name)
    try:
        return Commit(repo, name, resolve_rev(repo.scm, name))
    except SCMError:
        raise ValueError(
            f"{name!r} is no commit, branch, tag or experiment here; `git log --oneline` and "
            "`dvc exp list` name them"
        ) from None
