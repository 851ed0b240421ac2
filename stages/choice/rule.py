"""The rule by which `auto` chooses, and a person's right to choose otherwise.

`auto` ranks the candidates by votes, then by score, then by validation loss: by the first of
these that there is, and by the next only where two are exactly equal. Votes count when there are
at least `min_votes` and they compare every candidate with every other, through third ones if need
be. The best goes on, whatever the margin; but where the interval of its lead over the closest
rival holds zero, the decision says "no clear winner". A name in params wins over all of that.

Most choices have one place. Some have several (three of four mixes go on): then each place lists
who may take it, the best candidates go on, and each takes the place that it can.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.choice.scores import interval
from stages.harness.params import Params

Floats = npt.NDArray[np.float64]
AUTO = "auto"
Places = dict[str, list[str]]  # place -> names of the candidates that `auto` may put there


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleParams(Params):
    """Section `select.rule`, in force wherever a choice is `auto`."""

    min_votes: int  # fewer are left aside; 196 tell 60:40 from even, 784 tell 55:45
    resamples: int  # of the prompts, for the intervals
    confidence: float  # of the intervals: 0.95
    seed: int  # of the resampling

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.min_votes < 1 or self.resamples < 1:
            raise ValueError("min_votes and resamples must be at least 1")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one kind of measure says about every candidate."""

    kind: str  # as it stands in the report: votes, score, validation loss
    values: dict[str, float]  # by candidate
    lower_is_better: bool = False
    resampled: dict[str, Floats] | None = None  # (resamples,), paired between candidates
    prompts: int = 0  # that were resampled

    def merit(self, name: str) -> float:
        """Give a candidate's value, turned so that more is better."""
        return -self.values[name] if self.lower_is_better else self.values[name]


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference and where it lies."""

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether it is surely not zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Rivalry:
    """The closest call of a choice: one that goes on, and the one that it kept out."""

    kept: str
    rival: str
    lead: Interval | None  # of `kept` over `rival`; None if the measure has no interval


@dataclass(frozen=True, slots=True)
class Decision:
    """Who goes on, and why."""

    chosen: dict[str, str]  # place -> candidate
    by: str  # "a person", "the only candidates" or the kind of evidence
    reason: str
    is_clear: bool | None  # None: nothing to measure it by


def decide(
    candidates: Sequence[str],
    places: Places,
    choice: str | list[str],
    evidence: Sequence[Evidence],
    params: RuleParams,
) -> Decision:
    """Choose one candidate for each place.

    Args:
        candidates: their names; of equals, the first listed goes on.
        places: who may take which place when the choice is `auto`.
        choice: `auto`, or a person's word: a name for each place, in the order of the places.
        evidence: the strongest kind first.
        params: the section `select.rule`.

    Raises:
        ValueError: if the choice or a place names no candidate, or nothing can decide.
    """
    check_places(candidates, places)
    if choice != AUTO:
        return _by_person(candidates, places, choice, evidence, params)
    ranked = rank(candidates, evidence)
    chosen = fill_places(ranked, places)
    kept = set(chosen.values())
    rivals = [name for name in ranked if name not in kept and can_replace(name, chosen, places)]
    if not rivals:
        reason = f"{_listed(chosen)}: nobody else is a candidate for {_the_places(places)}."
        return Decision(chosen, "the only candidates", reason, None)
    if not evidence:
        raise ValueError(
            f"{len(candidates)} candidates ({', '.join(candidates)}) and nothing to choose by: "
            "give --scores, --loss or --votes, or name one in the params"
        )
    best = evidence[0]
    rivalry = closest_call(chosen, rivals, places, best, params.confidence)
    is_clear = rivalry.lead.is_clear if rivalry.lead else None
    return Decision(chosen, best.kind, _reason(chosen, rivalry, best, params), is_clear)


def check_places(candidates: Sequence[str], places: Places) -> None:
    """Refuse a place that lists somebody unknown."""
    for place, names in places.items():
        for name in names:
            if name not in candidates:
                raise ValueError(
                    f"place {place!r} lists {name!r}, which is no candidate. "
                    f"Candidates: {', '.join(candidates)}"
                )


def rank(candidates: Sequence[str], evidence: Sequence[Evidence]) -> list[str]:
    """Order candidates, best first; each kind of evidence only splits what the last left equal."""
    return sorted(candidates, key=lambda name: tuple(-kind.merit(name) for kind in evidence))


def fill_places(ranked: Sequence[str], places: Places) -> dict[str, str]:
    """Let the best go on: take candidates by rank as long as all taken ones find a place.

    No other set of candidates that fits the places is better at any rank, for the sets that fit
    are a matroid's: J. Edmonds and D. R. Fulkerson, Transversals and matroid partition (1965).

    Raises:
        ValueError: if a place stays empty.
    """
    taken: list[str] = []
    for name in ranked:
        if seat([*taken, name], places) is not None:
            taken.append(name)
    listed = [name for names in places.values() for name in names]
    # by where they are listed, not by rank: two that swap ranks keep their places
    seated = seat(sorted(taken, key=listed.index), places) or {}
    if empty := [place for place in places if place not in seated]:
        raise ValueError(
            f"nobody is left for place {empty[0]!r}, which lists {', '.join(places[empty[0]])}: "
            "name more candidates there"
        )
    return {place: seated[place] for place in places}


def seat(names: Sequence[str], places: Mapping[str, list[str]]) -> dict[str, str] | None:
    """Give each of `names` a place that lists it; None if that cannot be."""
    if not names:
        return {}
    first, *rest = names
    for place, listed in places.items():
        if first in listed:
            free = {other: listed for other, listed in places.items() if other != place}
            if (seated := seat(rest, free)) is not None:
                return {place: first, **seated}
    return None


def can_replace(name: str, chosen: dict[str, str], places: Places) -> bool:
    """Tell whether the rule could have let `name` go on instead of one of the chosen."""
    return bool(_replaceable(name, chosen, places))


def _replaceable(name: str, chosen: dict[str, str], places: Places) -> list[str]:
    kept = list(chosen.values())
    return [out for out in kept if seat([*(k for k in kept if k != out), name], places) is not None]


def closest_call(
    chosen: dict[str, str],
    rivals: Sequence[str],
    places: Places,
    evidence: Evidence,
    confidence: float,
) -> Rivalry:
    """Find the pair of one that goes on and one that it kept out whose difference is least sure."""
    pairs = [(k, rival) for rival in rivals for k in _replaceable(rival, chosen, places)]
    kept, rival = min(pairs, key=lambda pair: evidence.merit(pair[0]) - evidence.merit(pair[1]))
    return Rivalry(kept, rival, difference(kept, rival, evidence, confidence))


def difference(a: str, b: str, evidence: Evidence, confidence: float) -> Interval | None:
    """Measure by how much `a` is better than `b`; None without resampled values."""
    if evidence.resampled is None:
        return None
    sign = -1 if evidence.lower_is_better else 1
    gaps = sign * (evidence.resampled[a] - evidence.resampled[b])
    return Interval(
        evidence.merit(a) - evidence.merit(b), *interval(gaps, confidence, evidence.prompts)
    )


def _by_person(
    candidates: Sequence[str],
    places: Places,
    choice: str | list[str],
    evidence: Sequence[Evidence],
    params: RuleParams,
) -> Decision:
    """Take a person's names, and tell what the rule would have done."""
    names = [choice] if isinstance(choice, str) else choice
    for name in names:
        if name not in candidates:
            raise ValueError(
                f"the choice {name!r} is no candidate. Candidates: {', '.join(candidates)}; "
                f"or `{AUTO}` lets the rule decide"
            )
    if len(names) != len(places) or len(set(names)) != len(names):
        raise ValueError(
            f"the choice must name {len(places)} different candidates, for {_the_places(places)}; "
            f"got {', '.join(names)}"
        )
    chosen = dict(zip(places, names, strict=True))
    reason = f"{_listed(chosen)}: named in the params."
    if evidence:
        rule = decide(candidates, places, AUTO, evidence, params)
        same = rule.chosen == chosen
        reason += f" The rule {'agrees' if same else 'would have taken'}: {rule.reason}"
    return Decision(chosen, "a person", reason, None)


def _reason(
    chosen: dict[str, str], rivalry: Rivalry, evidence: Evidence, params: RuleParams
) -> str:
    kept, rival, lead = rivalry.kept, rivalry.rival, rivalry.lead
    values = evidence.values
    text = (
        f"{_listed(chosen)}: best by {evidence.kind}. The closest call: {kept} "
        f"({values[kept]:.4g}) before {rival} ({values[rival]:.4g})"
    )
    if lead is None:
        return text + "."
    percent = f"{params.confidence * 100:g} %"
    text += f", ahead by {lead.mean:.3g} ({percent} interval {lead.low:.3g} to {lead.high:.3g})"
    return text + ("." if lead.is_clear else ": no clear winner, the better mean goes on.")


def _listed(chosen: dict[str, str]) -> str:
    return ", ".join(chosen.values())


def _the_places(places: Places) -> str:
    return "the one place" if len(places) == 1 else f"the places {', '.join(places)}"
