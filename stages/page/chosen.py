"""A choice as the page shows it: the candidates, their figures, and intervals on one scale."""

from collections.abc import Iterable
from dataclasses import dataclass

from stages.page.findings import Json

MEASURES = ("votes", "score", "validation_loss")  # of a candidate, in the order of the rule


@dataclass(frozen=True, slots=True)
class Whisker:
    """A value and its interval, as places in a drawing 100 wide."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row of a choice."""

    name: str
    place: str  # for which it was chosen; empty: it was not
    sha256: str  # of the weights, where it was chosen
    figures: Json
    whisker: Whisker | None
    is_reference: bool = False

    @property
    def is_chosen(self) -> bool:
        """Whether it went on."""
        return bool(self.place)


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice, as the page shows it."""

    name: str
    content: Json
    measures: list[str]
    ruler: str | None  # the measure whose intervals are drawn
    candidates: list[Candidate]


def shown_choice(name: str, content: Json) -> Choice:
    """Lay out what a choice's report tells."""
    rows: dict[str, Json] = dict(content["candidates"])
    reference = content.get("reference") or {}
    if reference:
        rows.setdefault(reference["name"], reference)
    chosen, hashes = content["choice"], content["sha256"]
    if isinstance(chosen, str):
        chosen, hashes = {"chosen": chosen}, {"chosen": hashes}
    places = {candidate: place for place, candidate in chosen.items()}
    measures = [m for m in MEASURES if any(m in figures for figures in rows.values())]
    ruler = next((m for m in measures if any(f"{m}_low" in f for f in rows.values())), None)
    scale = _scale(rows.values(), ruler) if ruler else None
    candidates = [
        Candidate(
            row,
            places.get(row, ""),
            hashes.get(places.get(row), ""),
            figures,
            _whisker(figures, ruler, scale) if ruler and scale else None,
            row == reference.get("name"),
        )
        for row, figures in rows.items()
    ]
    return Choice(name, content, measures, ruler, candidates)


def _scale(rows: Iterable[Json], measure: str) -> tuple[float, float]:
    ends = [row[f"{measure}_{end}"] for row in rows for end in ("low", "high") if measure in row]
    return min(ends), max(ends)


def _whisker(figures: Json, measure: str, scale: tuple[float, float]) -> Whisker | None:
    if measure not in figures:
        return None
    low, span = scale[0], (scale[1] - scale[0]) or 1.0
    at = [
        round(4 + 92 * (figures[key] - low) / span, 2)
        for key in (measure, f"{measure}_low", f"{measure}_high")
    ]
    return Whisker(*at)
