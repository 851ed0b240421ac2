"""What the head of an answer means for the picture that was asked for."""

from dataclasses import dataclass

from stages.harness.patience import retry_after_s
from stages.images.outcome import Failed

REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Again:
    """An answer that may be another one next time."""

    reason: str  # the outcome, if it stays so
    wait_s: float | None = None  # as the server asks; None: it does not say


def judge_status(status: int, retry_after: str | None) -> Failed | Again | None:
    """Say what an HTTP status means for a picture; None: here it comes."""
    match status:
        case 200 | 206:
            return None
        case 416:
            return Again("server_error")
        case 404 | 410:
            return Failed("gone")
        case 408:
            return Again("timeout", retry_after_s(retry_after))
        case 429:
            return Again("rate_limited", retry_after_s(retry_after))
        case _ if status >= 500:
            return Again("server_error", retry_after_s(retry_after))
        case _:
            return Failed("refused")
