"""What a released UNet predicts: noise, or velocity, as it and its ancestors were trained to."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from stages.lineage.ancestry import Lineage
from stages.merging.text import format_weight
from stages.releases.shares import leaf_shares
from stages.training.loss import V_PREDICTION


def prediction_shares(lineage: Lineage) -> dict[str, Fraction]:
    """Say how much of a file was trained to predict what; models of others tell nothing."""
    if own := _trained_for(lineage.recipe):
        return {own: Fraction(1)}
    shares: dict[str, Fraction] = {}
    for sha256, share in leaf_shares(lineage).items():
        if kind := _trained_for(lineage.ancestors[sha256].recipe):
            shares[kind] = shares.get(kind, Fraction()) + share
    return {kind: share for kind, share in shares.items() if share}


def prediction_type(lineage: Lineage) -> str:
    """Say what the UNet predicts, in ModelSpec's words: what most of its trainings taught it.

    Where both weigh the same it is v: read as epsilon, its pictures would be nothing but noise.
    """
    shares = prediction_shares(lineage)
    velocity = shares.pop(V_PREDICTION, Fraction())
    return "v" if velocity and velocity >= max(shares.values(), default=0) else "epsilon"


def prediction_warning(lineage: Lineage) -> str | None:
    """Say so if models that predict different things were merged: the result does neither well."""
    shares = prediction_shares(lineage)
    if len(shares) < 2:
        return None
    told = ", ".join(f"{format_weight(share)} of it {kind}" for kind, share in shares.items())
    return (
        f"its ancestors were trained to predict different things, by weight {told}, and their "
        f"merge does neither well; it is released as predicting {prediction_type(lineage)}. Merge "
        "models of one kind"
    )


def _trained_for(recipe: Mapping[str, Any] | None) -> str | None:
    params = recipe.get("params") if recipe else None
    kind = params.get("prediction_type") if isinstance(params, dict) else None
    return kind if isinstance(kind, str) else None
