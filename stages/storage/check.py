"""Compare a remote's objects with what is recorded: which are missing, which were changed."""

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import ClientPayloadError

from stages.harness.progress import Progress
from stages.storage.place import Place
from stages.storage.recorded import Recorded

Depth = Literal["size", "content"]  # how closely to look: list the remote, or read it all
READ_BYTES = 4 * 2**20
# Of an object that came in one piece, S3's ETag is its MD5, unless the bucket encrypts with keys.
MD5_TAG = re.compile(r'"?(?P<md5>[0-9a-f]{32})"?')


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An object that the remote does not have, or has otherwise than recorded."""

    recorded: Recorded
    kind: Literal["missing", "changed", "unreadable"]
    detail: str  # what was found instead

    def __str__(self) -> str:
        """Name it, with what was found."""
        return f"{self.kind}  {self.recorded}  [{self.recorded.name}]{self.detail}"


def find_faults(place: Place, cache: Any, wanted: Sequence[Recorded], depth: Depth) -> list[Fault]:
    """Compare what a remote holds with what is recorded.

    Args:
        place: the remote.
        cache: DVC's local object database; sizes are known of what it holds.
        wanted: the objects that should be there.
        depth: `size` lists the remote, and so finds what is absent; it reads what is of another
            size than in the cache, or, on S3, of another ETag. `content` reads every object.

    Returns:
        The faults, in the order of `wanted`.

    Raises:
        OSError: if the remote fails meanwhile.
    """
    there = _list(place, wanted)
    progress = Progress(f"verify {place.name}", len(wanted))

    def look(recorded: Recorded) -> Fault | None:
        fault = _look(place, cache, recorded, there.get(recorded.name), depth)
        progress.advance()
        return fault

    with ThreadPoolExecutor(place.objects.fs.jobs) as pool:
        faults = [fault for fault in pool.map(look, wanted) if fault]
    progress.close()
    return faults


def _list(place: Place, wanted: Sequence[Recorded]) -> dict[str, dict[str, Any]]:
    """List the folders in which wanted objects would lie; gives what is told of each object."""
    odb = place.objects
    odb.fs.fs.invalidate_cache()

    def list_folder(start: str) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = odb.fs.fs.ls(odb.fs.join(odb.path, start), detail=True)
        except FileNotFoundError:
            return []
        return found

    starts = sorted({recorded.name[:2] for recorded in wanted})
    with ThreadPoolExecutor(odb.fs.jobs) as pool:
        listed = list(pool.map(list_folder, starts))
    return {
        start + odb.fs.name(entry["name"].rstrip("/")): entry
        for start, entries in zip(starts, listed, strict=True)
        for entry in entries
    }


def _look(
    place: Place, cache: Any, recorded: Recorded, there: dict[str, Any] | None, depth: Depth
) -> Fault | None:
    if there is None:
        return Fault(recorded=recorded, kind="missing", detail="")
    size = cached_size(cache, recorded)
    is_of_another_size = size is not None and there["size"] != size  # one of the two is spoilt
    if depth == "content" or is_of_another_size or _is_suspicious(there, recorded):
        try:
            found = _hash(place, recorded)
        except (PermissionError, ClientPayloadError) as error:  # of this one; the rest may do
            return Fault(recorded=recorded, kind="unreadable", detail=f": {error}")
        if found != recorded.md5:
            sizes = f", {there['size']:,} bytes, not {size:,}" if is_of_another_size else ""
            detail = f": its bytes hash to {found}{sizes}"
            return Fault(recorded=recorded, kind="changed", detail=detail)
    return None


def _is_suspicious(there: dict[str, Any], recorded: Recorded) -> bool:
    tag = MD5_TAG.fullmatch(there.get("ETag", ""))
    return tag is not None and tag["md5"] != recorded.md5


def cached_size(cache: Any, recorded: Recorded) -> int | None:
    """Tell the size of an object in the local cache, in bytes; None if it is not there."""
    try:
        size: int = cache.fs.size(cache.oid_to_path(recorded.name))
    except FileNotFoundError:
        return None
    return size


def _hash(place: Place, recorded: Recorded) -> str:
    """Read an object from the remote and hash it; 32 hex digits."""
    odb = place.objects
    digest = hashlib.md5()
    with odb.fs.fs.open(odb.oid_to_path(recorded.name), "rb", block_size=READ_BYTES) as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()
