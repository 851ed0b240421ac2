"""The rule by which `auto` chooses, and a person's right to choose otherwise.

`auto` asks votes, then score, then validation loss, and goes by the first that decides:

- votes, if there are at least `min_votes` and they compare every candidate with every other,
  through third ones if need be;
- score, if the best one's lead over each rival is surely above zero (its interval, by prompts that
  are resampled for both alike), or is at least `min_score_lead`; of two that are equal the one
  with fewer failed pictures is better;
- validation loss, if the best one's is lower than each rival's by a share of `min_loss_lead`.

Where a measure does not decide, the next is asked only about the best and those that it did not
tell apart from it: who surely lost by score does not come back by loss. If none decides, the best
by the first measure goes on, and the reason says so. A name in params wins over all of that.

Most choices have one place. Some have several (three of four mixes go on): then each place lists
who may take it, the best candidates go on, and each takes the place that it can.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stages.choice.scores import MIN_PROMPTS, interval
from stages.harness.params import Params

Floats = npt.NDArray[np.float64]
AUTO = "auto"
VOTES, SCORE, LOSS = "votes", "score", "validation loss"
Places = dict[str, list[str]]  # place -> names of the candidates that `auto` may put there


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleParams(Params):
    """Section `select.rule`, in force wherever a choice is `auto`."""

    min_votes: int  # fewer are left aside; 196 tell 60:40 from even, 784 tell 55:45
    min_score_lead: float  # points; a smaller lead decides only if its interval excludes zero
    min_loss_lead: float  # share of the rival's loss; a smaller lead decides nothing
    resamples: int  # of the prompts, for the intervals
    confidence: float  # of the intervals: 0.95
    seed: int  # of the resampling

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.min_votes < 1 or self.resamples < 1:
            raise ValueError("min_votes and resamples must be at least 1")
        if self.min_score_lead <= 0 or not 0 <= self.min_loss_lead < 1:
            raise ValueError("min_score_lead must be above 0, min_loss_lead at least 0 and below 1")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one kind of measure says about every candidate."""

    kind: str  # as it stands in the report: VOTES, SCORE or LOSS
    values: dict[str, float]  # by candidate
    lower_is_better: bool = False
    resampled: dict[str, Floats] | None = None  # (resamples,), paired between candidates
    prompts: int = 0  # that were resampled
    errors: Mapping[frozenset[str], float] = field(default_factory=dict)  # least, of one or of two
    failed: Mapping[str, int] = field(default_factory=dict)  # pictures, of the candidates with any

    def merit(self, name: str) -> float:
        """Give a candidate's value, turned so that more is better."""
        return -self.values[name] if self.lower_is_better else self.values[name]

    def error(self, *names: str) -> float:
        """Give the least standard error of a value, or of a difference; 0 where none is known."""
        return self.errors.get(frozenset(names), 0.0)


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

    def told(self, confidence: float) -> str:
        """Say in words where it lies."""
        if math.isinf(self.low):
            return f"of fewer than {MIN_PROMPTS} prompts, too few for an interval"
        return f"{confidence * 100:g} % interval {self.low:.3g} to {self.high:.3g}"


@dataclass(frozen=True, slots=True)
class Rivalry:
    """One that goes on, and one that it kept out."""

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
    passed_over: list[str] = []
    contenders = list(candidates)
    for number, kind in enumerate(evidence):
        ranked = rank(contenders, evidence[number:])
        chosen = fill_places(ranked, places)
        calls = rivalries(chosen, ranked, places, kind, params.confidence)
        close = [call for call in calls if not decides(call, kind, params)]
        if not close:
            call = closest(calls, kind)
            reason = f"{_listed(chosen)}: best by {kind.kind}. The closest call: "
            reason += _told(call, kind, params)
            return Decision(chosen, kind.kind, " ".join([reason, *passed_over]), _is_clear(calls))
        told = _told(closest(close, kind), kind, params)
        passed_over.append(f"Not decided by {kind.kind}: {told}")
        out = {call.rival for call in calls} - {call.rival for call in close}
        contenders = [name for name in contenders if name not in out]
    return _undecided(candidates, places, evidence, passed_over)


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
    """Order candidates, best first; each kind of evidence only splits what the last left equal.

    Of two with equal values the one with fewer failed pictures is the better.
    """
    return sorted(
        candidates,
        key=lambda name: tuple((-kind.merit(name), kind.failed.get(name, 0)) for kind in evidence),
    )


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


def rivalries(
    chosen: dict[str, str],
    ranked: Sequence[str],
    places: Places,
    evidence: Evidence,
    confidence: float,
) -> list[Rivalry]:
    """Pair each that goes on with each that it kept out."""
    kept = set(chosen.values())
    return [
        Rivalry(out, rival, difference(out, rival, evidence, confidence))
        for rival in ranked
        if rival not in kept
        for out in _replaceable(rival, chosen, places)
    ]


def closest(calls: Sequence[Rivalry], evidence: Evidence) -> Rivalry:
    """Find the smallest lead, of those that may be chance if there are any."""
    unsure = [call for call in calls if call.lead and not call.lead.is_clear]
    return min(unsure or calls, key=lambda c: evidence.merit(c.kept) - evidence.merit(c.rival))


def decides(call: Rivalry, evidence: Evidence, params: RuleParams) -> bool:
    """Tell whether a measure keeps one of two out, by its threshold."""
    lead = evidence.merit(call.kept) - evidence.merit(call.rival)
    if evidence.kind == SCORE:
        surely = call.lead is not None and call.lead.low > 0
        return surely or lead >= params.min_score_lead or _fails_less(call, evidence)
    if evidence.kind == LOSS:
        worse = evidence.values[call.rival]  # a lead over an infinite loss is infinite, too
        return lead > 0 and (math.isinf(worse) or lead >= params.min_loss_lead * worse)
    return True  # of votes there are enough, or they would be no evidence


def _fails_less(call: Rivalry, evidence: Evidence) -> bool:
    """Tell whether two are equal but for the pictures that failed."""
    failed = evidence.failed
    is_equal = evidence.merit(call.kept) == evidence.merit(call.rival)
    return is_equal and failed.get(call.kept, 0) < failed.get(call.rival, 0)


def difference(a: str, b: str, evidence: Evidence, confidence: float) -> Interval | None:
    """Measure by how much `a` is better than `b`; None without resampled values."""
    if evidence.resampled is None:
        return None
    sign = -1 if evidence.lower_is_better else 1
    gaps = sign * (evidence.resampled[a] - evidence.resampled[b])
    bounds = interval(gaps, confidence, evidence.prompts, evidence.error(a, b))
    return Interval(evidence.merit(a) - evidence.merit(b), *bounds)


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


def _undecided(
    candidates: Sequence[str],
    places: Places,
    evidence: Sequence[Evidence],
    passed_over: Sequence[str],
) -> Decision:
    """Let the best by the first measure go on, though no measure decides."""
    best = evidence[0]
    chosen = fill_places(rank(candidates, evidence), places)
    reason = (
        f"{_listed(chosen)}: no clear winner by any measure; the better by {best.kind} goes on."
    )
    is_clear = None if best.resampled is None else False
    return Decision(chosen, best.kind, " ".join([reason, *passed_over]), is_clear)


def _is_clear(calls: Sequence[Rivalry]) -> bool | None:
    """Tell whether all leads are surely above zero; None without intervals."""
    leads = [call.lead for call in calls if call.lead]
    return all(lead.is_clear for lead in leads) if leads else None


def _told(call: Rivalry, evidence: Evidence, params: RuleParams) -> str:
    """Say in words and numbers how two compare, and what that comes to."""
    kept, rival, lead = call.kept, call.rival, call.lead
    values = evidence.values
    text = f"{kept} ({values[kept]:.4g}) before {rival} ({values[rival]:.4g})"
    if lead is not None:
        text += f", ahead by {lead.mean:.3g} ({lead.told(params.confidence)})"
    enough = decides(call, evidence, params)
    if evidence.kind == LOSS:
        if math.isinf(values[rival]):
            return f"{text}, which is no finite number."
        share = (evidence.merit(kept) - evidence.merit(rival)) / values[rival]
        word = "at least" if enough else "less than"
        return (
            f"{text}, lower by {share:.2%}, {word} "
            f"select.rule.min_loss_lead = {params.min_loss_lead:.2%}."
        )
    if lead is None or lead.low > 0:
        return text + "."
    if evidence.kind == VOTES:
        return text + ": no clear winner, the stronger goes on."
    if _fails_less(call, evidence):
        return f"{text}: equal, but fewer pictures of {kept} failed."
    doubt = "no interval" if math.isinf(lead.low) else "the interval holds zero"
    word = "but the lead is at least" if enough else "and less than"
    return f"{text}: {doubt}, {word} select.rule.min_score_lead = {params.min_score_lead:g}."


def _listed(chosen: dict[str, str]) -> str:
    return ", ".join(chosen.values())


def _the_places(places: Places) -> str:
    return "the one place" if len(places) == 1 else f"the places {', '.join(places)}"
