"""Put objects back into a remote from the local cache, if they are sound there."""

import functools
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dvc_objects.fs import generic
from dvc_objects.fs.local import localfs

from stages.storage.check import Fault
from stages.storage.place import Place
from stages.storage.recorded import Recorded


def is_sound(cache: Any, recorded: Recorded) -> bool:
    """Tell whether the local cache has an object whose bytes are those of its name."""
    try:
        with Path(cache.oid_to_path(recorded.name)).open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest() == recorded.md5
    except FileNotFoundError:
        return False


def spoilt_of(cache: Any, objects: Sequence[Recorded]) -> list[Recorded]:
    """List those of some objects that the local cache has, but with other bytes."""
    here = [one for one in objects if Path(cache.oid_to_path(one.name)).exists()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = pool.map(functools.partial(is_sound, cache), here)
        return [one for one, is_whole in zip(here, verdicts, strict=True) if not is_whole]


def repair(place: Place, cache: Any, faults: Sequence[Fault]) -> list[Fault]:
    """Upload what is faulty in a remote and sound in the local cache, over what lies there.

    Files go before the lists that name them: a list that is there promises its files.

    Args:
        place: the remote.
        cache: DVC's local object database.
        faults: what `find_faults` found.

    Returns:
        The faults that remain, for the cache does not have these objects, or not sound.

    Raises:
        OSError: if the upload fails.
    """
    mendable = [fault for fault in faults if is_sound(cache, fault.recorded)]
    for is_listing in (False, True):
        _upload(place, cache, [f.recorded for f in mendable if f.recorded.is_listing == is_listing])
    return [fault for fault in faults if fault not in mendable]


def _upload(place: Place, cache: Any, objects: Sequence[Recorded]) -> None:
    if not objects:
        return
    odb = place.objects
    targets = [odb.oid_to_path(recorded.name) for recorded in objects]
    for folder in {odb.fs.parent(target) for target in targets}:
        odb.fs.makedirs(folder)
    # Not the database's own `add`: on a disk with reflinks, it leaves an existing file as it is.
    sources = [cache.oid_to_path(recorded.name) for recorded in objects]
    generic.copy(localfs, sources, odb.fs, targets, batch_size=odb.fs.jobs)
