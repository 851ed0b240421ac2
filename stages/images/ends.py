"""Outcomes as numbers, a byte for each of many pictures and rows."""

from stages.images.outcome import REASONS, Fetched, Outcome, Source

SOURCES: tuple[Source, ...] = ("mirror", "link")
ENDS = (*SOURCES, *REASONS)  # where a picture came from, or why there is none


def outcome_code(outcome: Outcome) -> int:
    """Tell an outcome by one number: its place in ENDS, counted from 1."""
    end = outcome.source if isinstance(outcome, Fetched) else outcome.reason
    return ENDS.index(end) + 1
