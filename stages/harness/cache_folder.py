"""DVC's cache: where it lies, and whether one may write to it."""

import os
from pathlib import Path

from dvc.config import Config, ConfigError


def cache_folder(root: Path) -> Path:
    """Find the cache of a repository, by default .dvc/cache; a user's own config may name another.

    Raises:
        ValueError: if DVC cannot read its config.
    """
    try:
        settings = Config(str(root / ".dvc"))
    except ConfigError as error:
        raise ValueError(f"DVC's config: {error}") from error
    return Path(settings["cache"].get("dir") or root / ".dvc/cache")


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
                "several users share it, each of them once:\n  dvc config --local cache.shared "
                "group && umask 002\nand its owner:\n"
                f"  chmod -R g+rwX {cache}\nor take a cache of your own:\n"
                "  dvc cache dir --local /path/to/folder"
            )
