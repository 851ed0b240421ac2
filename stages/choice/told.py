"""What a choice was made by, as its report tells it: in words, and as figures for DVC's metrics."""

import math
from collections.abc import Sequence
from typing import Any

from stages.choice.rule import Decision, Evidence, Interval, RuleParams, difference
from stages.choice.scores import MIN_PROMPTS, interval

DECIMALS = 5


def compared(
    decision: Decision, reference: str, evidence: Sequence[Evidence], rule: RuleParams
) -> str:
    """Say in words how the chosen do against the reference."""
    said = []
    for chosen in decision.chosen.values():
        for kind in evidence:
            is_known = reference in kind.values
            gap = difference(chosen, reference, kind, rule.confidence) if is_known else None
            if gap:  # losses have none, where the reference is a candidate, too
                verdict = "" if gap.is_clear else ", so not surely different"
                said.append(f"{kind.kind} {gap.mean:+.3g} ({gap.told(rule.confidence)}{verdict})")
    return f"Compared with {reference}: {'; '.join(said) or 'nothing to compare by'}."


def shown_evidence(name: str, evidence: Sequence[Evidence], confidence: float) -> dict[str, float]:
    """Give a candidate's figures, flat, as DVC's metrics show them."""
    shown = {}
    for kind in evidence:
        if name in kind.values and math.isfinite(kind.values[name]):
            key = kind.kind.replace(" ", "_")
            shown[key] = round(kind.values[name], DECIMALS)
            if kind.resampled and kind.prompts >= MIN_PROMPTS:
                low, high = interval(
                    kind.resampled[name], confidence, kind.prompts, kind.error(name)
                )
                shown |= {
                    f"{key}_low": round(low, DECIMALS),
                    f"{key}_high": round(high, DECIMALS),
                }
    return shown


def shown_reference(
    decision: Decision, reference: str | None, evidence: Sequence[Evidence], rule: RuleParams
) -> dict[str, Any]:
    """Give the reference's figures and how far the chosen is ahead; nothing without a reference."""
    if not reference:
        return {}
    figures: dict[str, Any] = {"name": reference}
    figures |= shown_evidence(reference, evidence, rule.confidence)
    for kind in evidence:
        if reference in kind.values:
            chosen = next(iter(decision.chosen.values()))
            gap = difference(chosen, reference, kind, rule.confidence)
            figures |= _shown_gap(kind.kind, gap) if gap else {}
    return {"reference": figures}


def _shown_gap(kind: str, gap: Interval) -> dict[str, float]:
    lead = {"lead": gap.mean, "lead_low": gap.low, "lead_high": gap.high}
    finite = {name: value for name, value in lead.items() if math.isfinite(value)}
    return {f"{kind}_{name}": round(value, DECIMALS) for name, value in finite.items()}
