"""Whether a released file is still what it was, and what it was made of."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.diffusion.header import read_header
from stages.lineage.digests import TENSORS_HASH, digest_file
from stages.lineage.in_file import lineage_of
from stages.releases.card import ancestor_tree, named_elsewhere
from stages.releases.evidence import read_report

HASHES = "hashes.json"  # beside a release: its hashes by its name


def verify_release(path: Path) -> None:
    """Hash a released file again and show its ancestry.

    Its tensors are compared with the hash in its own metadata; with a hashes.json beside it that
    knows its name, or its SHA-256 under another, the whole file is.

    Raises:
        OSError: if there is no such file.
        ValueError: naming the first hash that differs, what was wanted and what was found.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name one safetensors file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    metadata = read_header(path).metadata
    found: dict[str, Any] = {**asdict(digest_file(path)), "bytes": path.stat().st_size}
    beside = path.parent / HASHES
    files = _read_hashes(beside) if beside.is_file() else {}
    renamed = [figures for figures in files.values() if figures.get("sha256") == found["sha256"]]
    known = files.get(path.name) or (renamed[0] if renamed else {})
    if files and not known:
        raise ValueError(
            f"{path}: {beside} knows neither its name nor its SHA-256, only "
            f"{', '.join(sorted(files))}: it was renamed and changed, or it is another release, to "
            "be verified away from this one"
        )
    for name, value in found.items():
        if known and known.get(name) != value:
            raise ValueError(
                f"{path}: changed since its release: {name} is {value}, "
                f"{HASHES} says {known.get(name)}. Fetch it again (dvc checkout, dvc pull)"
            )
    if TENSORS_HASH not in metadata:
        raise ValueError(
            f"{path}: its metadata name no hash of its tensors ({TENSORS_HASH}), as every release "
            "does. Is it another program's file? `python -m stages.merge inspect` shows what it is"
        )
    if metadata[TENSORS_HASH] != (tensors := f"0x{found['tensors_sha256']}"):
        raise ValueError(
            f"{path}: its tensors are not those that its metadata name: their SHA-256 is "
            f"{tensors}, {TENSORS_HASH} says {metadata[TENSORS_HASH]}. It was changed, or another "
            "program copied a release's metadata into a file of its own. Fetch the release again"
        )
    lineage = lineage_of(path, metadata, found["tensors_sha256"])
    if known:
        print(f"{path}: {len(known)} figures of {HASHES} agree")
    else:
        print(f"{path}: its tensors are those that its metadata name; its SHA-256 is")
        print(f"{found['sha256']}, with no {HASHES} beside it to compare that with")
    print(ancestor_tree(lineage, lineage.title))
    if others := named_elsewhere(lineage, lineage.title):
        print(others)


def _read_hashes(path: Path) -> dict[str, dict[str, Any]]:
    """Read the figures of each file that a release knows.

    Raises:
        ValueError: naming the file, if it holds anything else.
    """
    files: Any = read_report(path)
    if not (isinstance(files, dict) and all(isinstance(known, dict) for known in files.values())):
        raise ValueError(
            f"{path}: not the hashes of a release: expected an object that holds an object of "
            "figures by each file's name. Fetch it again (dvc checkout, dvc pull)"
        )
    return files
