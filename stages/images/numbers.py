"""Numbers by name, 16 bytes each: where in a file the line of each of millions of pictures is."""

from threading import Lock

import numpy as np

MOST_FRESH = 1 << 16  # not sorted in yet; each takes 0.1 KB


class Numbers:
    """Holds a number of 0 or more for each name; may be asked in several threads."""

    def __init__(self) -> None:
        """Hold none."""
        self._names, self._numbers = np.empty(0, np.int64), np.empty(0, np.int64)
        self._fresh: dict[int, int] = {}
        self._lock = Lock()

    def get(self, name: str) -> int | None:
        """Give the number of a name.

        Args:
            name: hexadecimal digits of a hash, of which the first 16 tell names apart.
        """
        short = _short(name)
        with self._lock:
            number = self._fresh.get(short)
            if number is None:
                place = int(np.searchsorted(self._names, short))
                is_there = place < len(self._names) and self._names[place] == short
                number = int(self._numbers[place]) if is_there else -1
        return None if number < 0 else number

    def put(self, name: str, number: int) -> None:
        """Give a name a number, in place of what it had; -1 takes it away."""
        with self._lock:
            self._fresh[_short(name)] = number
            if len(self._fresh) >= MOST_FRESH:
                self._sort_in()

    def all(self) -> np.ndarray:
        """List the numbers, rising."""
        with self._lock:
            self._sort_in()
            return np.sort(self._numbers)

    def _sort_in(self) -> None:
        names = np.fromiter(self._fresh, np.int64, len(self._fresh))
        numbers = np.fromiter(self._fresh.values(), np.int64, len(self._fresh))
        is_old = ~np.isin(self._names, names)
        names = np.concatenate([self._names[is_old], names])
        numbers = np.concatenate([self._numbers[is_old], numbers])
        order = np.argsort(names)
        order = order[numbers[order] >= 0]
        self._names, self._numbers = names[order], numbers[order]
        self._fresh.clear()


def _short(name: str) -> int:
    return int(name[:16], 16) - (1 << 63)
