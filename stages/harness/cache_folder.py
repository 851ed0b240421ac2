"""DVC's cache: where it lies, and whether one may write to it."""

import os
from pathlib import Path

from configobj import ConfigObj, ConfigObjError
from dvc.dirs import global_config_dir, system_config_dir

from stages.harness.dvc_command import DVC


def cache_folder(root: Path) -> Path:
    """Find the cache of a repository, by default .dvc/cache.

    Raises:
        ValueError: if a config of DVC's cannot be read.
    """
    cache = root / ".dvc/cache"
    for path in _configs(root):
        try:
            settings = ConfigObj(str(path), interpolation=False, encoding="utf-8")
        except ConfigObjError as error:
            raise ValueError(f"DVC's config {path}: {error}") from error
        if folder := settings.get("cache", {}).get("dir"):
            cache = path.parent / Path(folder).expanduser()
    return cache


def _configs(root: Path) -> list[Path]:
    """List DVC's config files, of the machine, the user, all clones and this one; a later wins."""
    folders = (Path(system_config_dir()), Path(global_config_dir()), root / ".dvc")
    return [*(folder / "config" for folder in folders), root / ".dvc/config.local"]


def check_writable(root: Path) -> None:
    """Make sure that DVC can keep what the stages make.

    Raises:
        PermissionError: if not; the message names the folder and the ways out.
    """
    cache = cache_folder(root)
    for folder in (cache, *sorted(cache.glob("files/md5")), *sorted(cache.glob("files/md5/??"))):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(
                f"{folder}: may not be written to, so that DVC could keep nothing of a run. If "
                f"several users share it, each of them once:\n  {DVC} config --local cache.shared "
                "group && umask 002\nand its owner:\n"
                f"  chmod -R g+rwX {cache}\nor take a cache of your own:\n"
                f"  {DVC} cache dir --local /path/to/folder"
            )
