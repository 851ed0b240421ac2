"""Counts as bars: where messages and pictures went, and what the data are like."""

from collections.abc import Mapping
from dataclasses import dataclass

from stages.page.data_card import Card
from stages.page.findings import Json


@dataclass(frozen=True, slots=True)
class Bar:
    """A number, and how long its bar is."""

    label: str
    count: int
    share: float  # 0 to 1, of all
    is_good: bool = False


def funnel(report: Json) -> list[Bar]:
    """Show what was kept, then each reason, most frequent first."""
    read = report["read"]
    kept = Bar("kept", report["kept"], report["kept"] / read, is_good=True)
    return [kept, *_reasons(report["dropped"], read)]


def outcomes(report: Json) -> list[Bar]:
    """Show where pictures came from, then why the others did not come."""
    rows = report["rows"]
    fetched = [
        Bar(f"fetched from {'a mirror' if source == 'mirror' else 'its link'}", n, n / rows, True)
        for source, n in sorted(report["by_source"].items(), reverse=True)
        if n
    ]
    return [*fetched, *_reasons(report["failed"], rows)]


def card_bars(card: Card) -> dict[str, list[Bar]]:
    """Draw each count of the data card against the sum, or words against all captions."""
    drawn = {
        "Letters of a caption": card.lengths,
        "Aspect as asked for": card.aspects,
        "Width x height, px": card.sizes,
        "Users of the export, by their upscales": card.upscales,
        "Pairs, by the user's rank (1 upscaled most)": card.ranks,
    }
    return {
        title: [Bar(label, n, n / sum(count for _, count in counts)) for label, n in counts]
        for title, counts in drawn.items()
        if counts
    }


def _reasons(counts: Mapping[str, int], total: int) -> list[Bar]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [Bar(name, count, count / total) for name, count in ordered]
