"""Copies that DVC did not finish: it writes beside what a file becomes, and a kill leaves that."""

import re
import time

ABANDONED_S = 3600.0  # nobody wrote to it for so long, where others may be at work
NAME = re.compile(r"\.[0-9A-Za-z_-]{22}\.tmp")


def is_half_copied(name: str) -> bool:
    """Tell by a file's name whether it is one, be it still written to or left by a kill."""
    return NAME.fullmatch(name) is not None


def is_abandoned(changed_s: float) -> bool:
    """Tell by the time of its last change, in seconds as of `time.time`, that nobody is at it."""
    return time.time() - changed_s > ABANDONED_S
