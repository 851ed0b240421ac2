"""Outcomes as they come, for a reader that wants them in an order of its own."""

from dataclasses import replace
from threading import Condition

import numpy as np

from stages.images.ends import ENDS, outcome_code
from stages.images.metadata import Piece
from stages.images.outcome import Failed, Fetched, Outcome

HELD_BYTES = 24 << 20  # pictures in memory that wait for the reader; others are read again


class StoppedError(Exception):
    """The other side ended early."""


class Arrivals:
    """Takes outcomes by the numbers of pictures in one thread, and gives them in another.

    Of a picture that nobody will take any more, a byte is left: what became of it.
    """

    def __init__(self, takers: np.ndarray) -> None:
        """Wait for all.

        Args:
            takers: of each picture, how often it will be taken.
        """
        self.codes = np.zeros(len(takers), np.int8)  # of ends.ENDS, from 1 on; 0: not there yet
        self._takers = takers.astype(np.int32)
        self._fetched: dict[int, Fetched] = {}  # without pictures' bytes
        self._parts: dict[int, list[Piece]] = {}
        self._held = 0
        self._stopped: BaseException | None = None
        self._changed = Condition()

    def has_room(self, size: int) -> bool:
        """Reserve room for a picture's bytes, which are to be put with its outcome."""
        with self._changed:
            has_room = self._held + size <= HELD_BYTES
            self._held += size if has_room else 0
            return has_room

    def put(self, number: int, outcome: Outcome) -> None:
        """Add an outcome; it may hold a picture's bytes for which room was reserved.

        Raises:
            BaseException: that with which the reader stopped.
        """
        with self._changed:
            if self._stopped:
                raise self._stopped
            if isinstance(outcome, Fetched):
                is_wanted = bool(self._takers[number])
                if is_wanted:
                    self._fetched[number] = replace(outcome, parts=None)
                if outcome.parts is not None and is_wanted:
                    self._parts[number] = outcome.parts
                elif outcome.parts is not None:
                    self._held -= sum(map(len, outcome.parts))
            self.codes[number] = outcome_code(outcome)
            self._changed.notify_all()

    def take(self, number: int) -> Outcome:
        """Wait for the outcome of a picture.

        Raises:
            StoppedError: if it will never come.
        """
        with self._changed:
            while not self.codes[number]:
                if self._stopped:
                    raise StoppedError from self._stopped
                self._changed.wait()
            self._takers[number] -= 1
            fetched, parts = self._fetched.get(number), self._parts.pop(number, None)
            if not self._takers[number]:
                self._fetched.pop(number, None)
            if fetched is None:
                return Failed(ENDS[self.codes[number] - 1])
            if parts is None:
                return fetched
            self._held -= sum(map(len, parts))
            return replace(fetched, parts=parts)

    def stop(self, error: BaseException) -> None:
        """Let the other side end, too."""
        with self._changed:
            self._stopped = self._stopped or error
            self._changed.notify_all()
