"""What pushes that were killed left in a remote; by itself it stays there for ever."""

import math
from datetime import datetime

from stages.harness.half_copied import is_abandoned, is_half_copied
from stages.storage.place import Place


def clear_half_pushed(place: Place) -> tuple[list[str], list[str]]:
    """Take away copies of objects and of records of runs to which nobody writes any more.

    Args:
        place: the remote. S3 needs none of this: there an upload is whole or not to be seen.

    Returns:
        Their paths there: of those taken away, and of those that are not ours to take away.
    """
    cleared: list[str] = []
    kept: list[str] = []
    if place.fs.protocol == "s3":
        return cleared, kept
    for folder in (place.objects.path, place.fs.join(place.root, "runs")):
        for path in sorted(place.fs.find(folder)) if place.fs.exists(folder) else ():
            try:
                if is_half_copied(place.fs.name(path)) and is_abandoned(_changed_s(place, path)):
                    place.fs.fs.rm_file(path)
                    cleared.append(path)
            except FileNotFoundError:  # its push is done, or another one took it away
                continue
            except PermissionError:
                kept.append(path)
    return cleared, kept


def _changed_s(place: Place, path: str) -> float:
    """Ask when a file was last written to; by SSH the answer is a date, or that none is known."""
    told: datetime | float | None = place.fs.info(path)["mtime"]
    if told is None:
        return math.inf
    return told.timestamp() if isinstance(told, datetime) else told
