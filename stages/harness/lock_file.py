"""DVC's lock files after a kill: DVC writes them in place, so they may be cut short.

dvc.lock records the hashes of each stage's inputs and outputs. Cut short, it stops every DVC
command; deleted, it makes the graph run anew. So whole entries are kept, lost ones come from the
last commit, and DVC compares all of them with the files anyway.
"""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml

from stages.harness.files import replacing

HEADER = "schema: '2.0'\nstages:\n"
ENTRY = re.compile(r"^  (?P<name>\S.*):\n(?:    .*\n)*(?:    .*\Z)?", re.MULTILINE)
HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")


def mend_lock_file(path: Path) -> tuple[list[str], list[str]] | None:
    """Make a lock file whole again if a kill or a bad disk cut it.

    Args:
        path: of dvc.lock.

    Returns:
        The stages whose entries come from the last commit, and those whose entries are lost; None
        if the file is whole, or there is none.
    """
    if not path.is_file():
        return None
    text = path.read_text("utf-8", errors="replace")
    found, committed = entries(text), entries(_committed(path))
    last = next(reversed(found), "")
    # cut at a line's end, an entry may read well
    is_cut = (
        last in committed
        and committed[last].startswith(found[last])
        and (committed[last] != found[last])
    )
    if is_whole(text) and not is_cut:
        return None
    whole = {name: entry for name, entry in found.items() if is_whole_entry(entry)}
    if is_cut:
        whole.pop(last, None)
    missing = {name: entry for name, entry in committed.items() if name not in whole}
    if whole or missing:
        with replacing(path) as scratch:
            scratch.write_text(HEADER + "".join((whole | missing).values()), "utf-8")
    else:
        path.unlink()  # DVC refuses a file without entries
    return list(missing), [name for name in found if name not in whole | missing]


def entries(text: str) -> dict[str, str]:
    """Cut a lock file's text into the entries of its stages, by name."""
    return {found["name"]: found.group() for found in ENTRY.finditer(text)}


def is_whole(text: str) -> bool:
    """Tell whether a lock file consists of whole entries, at least one, and nothing else."""
    found = entries(text)
    is_all = text == HEADER + "".join(found.values())
    return bool(found) and is_all and all(map(is_whole_entry, found.values()))


def is_whole_entry(entry: str) -> bool:
    """Tell whether an entry is readable, and each file in it has its hash."""
    if not entry.endswith("\n"):
        return False
    try:
        ((_, recorded),) = yaml.load(entry, yaml.CSafeLoader).items()
        files = [file for side in ("deps", "outs") for file in recorded.get(side, ())]
        return bool(recorded["cmd"]) and all(file["path"] and _has_hash(file) for file in files)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        return False


def _has_hash(file: Mapping[str, str]) -> bool:
    """Tell whether a record has a hash; of what lies elsewhere, a server's own, of any form.

    DVC's names for it: `etag` of S3, `checksum` of https.
    """
    if "md5" in file:
        return HASH.fullmatch(file["md5"]) is not None
    return bool(file.get("etag") or file.get("checksum"))


def _committed(path: Path) -> str:
    """Read the file as the last commit has it; "" if it has none."""
    command = ["git", "show", f"HEAD:./{path.name}"]
    shown = subprocess.run(command, cwd=path.parent, capture_output=True, check=False)
    return shown.stdout.decode("utf-8", errors="replace")
