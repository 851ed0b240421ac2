"""Which message ids came before: exports of one channel overlap where it is exported again."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LONGEST_RUN = 1 << 20  # ids; longer ones are not merged, for that takes twice the memory


class SeenIds:
    """Remembers ids, 8 bytes each, in sorted runs that are merged as they grow."""

    def __init__(self) -> None:
        """Remember none."""
        self._runs: list[np.ndarray] = []

    def came_before(self, ids: pa.Array) -> np.ndarray:
        """Tell which ids came before, here or in an earlier call, and remember the others.

        Args:
            ids: of type uint64, in the export's order; a null is nobody's repetition.

        Returns:
            A truth for each.
        """
        rows = pc.indices_nonzero(ids.is_valid()).to_numpy()
        numbers = ids.drop_null().to_numpy()
        order = np.argsort(numbers, kind="stable")  # of equals, the first stays first
        ordered = numbers[order]
        again = np.zeros(len(ordered), np.bool_)
        again[1:] = ordered[1:] == ordered[:-1]
        for run in self._runs:
            again |= run.take(np.searchsorted(run, ordered), mode="clip") == ordered
        self._remember(ordered[~again])
        came_before = np.zeros(len(ids), np.bool_)
        came_before[rows[order[again]]] = True
        return came_before

    def _remember(self, run: np.ndarray) -> None:
        while self._runs and len(self._runs[-1]) < 2 * len(run) <= LONGEST_RUN:
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        if len(run):
            self._runs.append(run)


def id_numbers(ids: pa.Array) -> pa.Array:
    """Read ids, which Discord makes of 64 bits; null where one is no such number."""
    is_number = pc.and_(pc.ascii_is_decimal(ids), pc.less(pc.binary_length(ids), 20))
    return pc.cast(pc.if_else(is_number, ids, None), pa.uint64())
