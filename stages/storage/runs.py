"""DVC's records of runs, which say what a stage made of given inputs: fetched, and checked."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from dvc.utils import dict_sha256
from dvc.utils.serialize import YAMLError, load_yaml

FREE = ["size", "nfiles"]  # what DVC leaves out of a record's names


def fetch_runs(repo: Repo, remote: str) -> list[Path]:
    """Fetch the records of a remote, and take away those that are not what their names say.

    A record lies in a folder named by the hash of the stage's command, inputs, params and paths of
    outs. DVC looks it up by that name and believes the content, so a forged one could have it put
    a remote's files in place of `stages/`.

    Returns:
        What was taken away.
    """
    repo.stage_cache.pull(remote)
    forged = [
        path
        for path in Path(repo.stage_cache.cache_dir).glob("*/*/*")
        if not _is_what_it_says(path)
    ]
    for path in forged:
        path.unlink()
        with suppress(OSError):  # it holds other records
            path.parent.rmdir()  # DVC fails at an empty one
    return forged


def _is_what_it_says(path: Path) -> bool:
    try:
        record: dict[str, Any] = load_yaml(str(path))
        question = {**record, "outs": [out["path"] for out in record.get("outs", [])]}
    except (YAMLError, TypeError, KeyError, UnicodeDecodeError):
        return False
    names = [dict_sha256(content, exclude=FREE) for content in (question, record)]
    return names == [path.parent.name, path.name]
