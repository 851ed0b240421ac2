"""How often each host may be asked, and when again after it asked for a rest."""

import asyncio
import time


class Pace:
    """When each host may be asked again: one answer with Retry-After holds all that ask it."""

    def __init__(self, requests_per_second: float = 0.0) -> None:
        """Start with every host free.

        Args:
            requests_per_second: to one host; 0: any number.
        """
        self._gap_s = 1 / requests_per_second if requests_per_second else 0.0
        self._free_at: dict[str, float] = {}  # by host, on the clock of time.monotonic

    def hold(self, host: str, wait_s: float) -> None:
        """Ask a host nothing for a while."""
        free_at = time.monotonic() + wait_s
        self._free_at[host] = max(free_at, self._free_at.get(host, free_at))

    def rest_s(self, host: str) -> float:
        """Tell for how long a host is to be left alone from now on; 0 or less: it is free."""
        return self._free_at.get(host, 0.0) - time.monotonic()

    async def wait(self, host: str) -> None:
        """Sleep until a host may be asked, and let the next one wait its turn after this."""
        while (left_s := self.rest_s(host)) > 0:
            await asyncio.sleep(left_s)
        if self._gap_s:
            self._free_at[host] = time.monotonic() + self._gap_s
