"""SIGTERM and SIGINT, heeded by all processes together at moments when the run is whole."""

import signal
from types import FrameType, TracebackType
from typing import Any

from stages.training.ranks import Ranks


class AskedToStopError(Exception):
    """A signal asks to stop, at a moment when the run is whole."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name
        # as Python ends of itself, and as a shell tells of it
        self.end = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


class Interruptions:
    """Holds back both signals as a context; what runs in it asks whether one came.

    A second signal of the kind ends the process at once, as usual. Outside the main thread,
    where Python allows no handlers, nothing is held back.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._received = 0  # the first one's number
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruptions":
        """Begin to hold back."""
        try:
            for number in (int(signal.SIGTERM), int(signal.SIGINT)):
                self._previous[number] = signal.signal(number, self._note)
        except ValueError:  # not the main thread
            self._previous.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the usual handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def heed(self, is_due: bool = False) -> bool:
        """Stop where any process was asked to; else tell whether anything is due at any of them.

        Raises:
            AskedToStopError: in all processes.
        """
        agreed = self._ranks.agree(2 * self._received + is_due)
        if agreed > 1:
            raise AskedToStopError(agreed // 2)
        return agreed == 1

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._received = self._received or number
        signal.signal(number, self._previous[number])
