"""Outcomes as they come, for a reader that wants them in an order of its own."""

from dataclasses import replace
from threading import Condition

from stages.images.metadata import Piece
from stages.images.outcome import Fetched, Outcome

HELD_BYTES = 24 << 20  # pictures in memory that wait for the reader; others are read again


class StoppedError(Exception):
    """The other side ended early."""


class Arrivals:
    """Takes outcomes by link in one thread, and gives them in another."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}  # without pictures' bytes
        self._parts: dict[str, list[Piece]] = {}
        self._held = 0
        self._stopped: BaseException | None = None
        self._changed = Condition()

    def has_room(self, size: int) -> bool:
        """Reserve room for a picture's bytes, which are to be put with its outcome."""
        with self._changed:
            has_room = self._held + size <= HELD_BYTES
            self._held += size if has_room else 0
            return has_room

    def put(self, link: str, outcome: Outcome) -> None:
        """Add an outcome; it may hold a picture's bytes for which room was reserved.

        Raises:
            BaseException: that with which the reader stopped.
        """
        with self._changed:
            if self._stopped:
                raise self._stopped
            if isinstance(outcome, Fetched) and outcome.parts is not None:
                self._parts[link] = outcome.parts
                outcome = replace(outcome, parts=None)
            self.outcomes[link] = outcome
            self._changed.notify_all()

    def take(self, link: str) -> Outcome:
        """Wait for the outcome of a link.

        Raises:
            StoppedError: if it will never come.
        """
        with self._changed:
            while link not in self.outcomes:
                if self._stopped:
                    raise StoppedError from self._stopped
                self._changed.wait()
            outcome, parts = self.outcomes[link], self._parts.pop(link, None)
            if parts is None or not isinstance(outcome, Fetched):
                return outcome
            self._held -= sum(map(len, parts))
            return replace(outcome, parts=parts)

    def stop(self, error: BaseException) -> None:
        """Let the other side end, too."""
        with self._changed:
            self._stopped = self._stopped or error
            self._changed.notify_all()
