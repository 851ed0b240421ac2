"""How long to wait before a server is asked again."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST_PAUSE_S = 0.5  # doubles with each try
LONGEST_PAUSE_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0  # a server that asks for more is left alone


def back_off_s(tries: int) -> float:
    """Give a pause that doubles with each try, by chance cut to as little as half of it."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**tries) * random.uniform(0.5, 1.0)


def retry_after_s(header: str | None) -> float | None:
    """Read Retry-After, which holds seconds or a date; None if it is neither.

    Source: RFC 9110, 10.2.3.
    """
    text = (header or "").strip()
    if text.isdecimal() and text.isascii():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter of a zone far from the earth
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
