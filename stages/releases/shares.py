"""How much of each ancestor is in a merged file."""

from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from graphlib import TopologicalSorter
from typing import Any

from stages.lineage.ancestry import RECIPE, Lineage
from stages.merging.expression import parse_expression
from stages.merging.terms import model_weights


def ancestor_shares(lineage: Lineage) -> dict[str, Fraction]:
    """Give each ancestor's weight in a file, by SHA-256, through merges but not trainings.

    Exact where merges are sums; see `model_weights` for methods that look at values.

    Raises:
        ValueError: if a recipe's expression and inputs do not fit, as no merge writes them.
    """
    weights = {s: _weights(ancestor.recipe) for s, ancestor in lineage.ancestors.items()}
    shares = dict.fromkeys(lineage.ancestors, Fraction())
    for sha256, weight in _weights(lineage.recipe):
        shares[sha256] += weight
    inputs = {sha256: [s for s, _ in weights[sha256]] for sha256 in weights}
    for sha256 in reversed(list(TopologicalSorter(inputs).static_order())):
        for source, weight in weights[sha256]:
            shares[source] += shares[sha256] * weight
    return shares


def leaf_shares(lineage: Lineage) -> dict[str, Fraction]:
    """Multiply the merges out: the share of each ancestor that is no merge itself.

    They sum to 1 where the weights of every merge do.
    """
    return {s: share for s, share in _present(lineage).items() if not _is_merge(lineage, s)}


def merge_shares(lineage: Lineage) -> dict[str, Fraction]:
    """Give the share of each merge on the way: what its own sources weigh, counted once more."""
    return {s: share for s, share in _present(lineage).items() if _is_merge(lineage, s)}


def named_shares(
    shares: Mapping[str, Fraction], title: Callable[[str], str]
) -> dict[str, dict[str, str | float]]:
    """Name shares for a report; where two files have one title, by their hashes, too."""
    counts = Counter(map(title, shares))
    return {
        title(s) if counts[title(s)] == 1 else f"{title(s)}, {s[:10]}": {
            "sha256": s,
            "weight": float(share),
        }
        for s, share in shares.items()
    }


def _present(lineage: Lineage) -> dict[str, Fraction]:
    return {s: share for s, share in ancestor_shares(lineage).items() if share}


def _is_merge(lineage: Lineage, sha256: str) -> bool:
    return (lineage.ancestors[sha256].recipe or {}).get("kind") == "merge"


def _weights(recipe: Mapping[str, Any] | None) -> list[tuple[str, Fraction]]:
    """Give SHA-256 and share of each input of a merge; of anything else, none."""
    if not recipe or recipe.get("kind") != "merge":
        return []
    weights = model_weights(parse_expression(recipe["expression"]))
    if set(weights) != set(recipe["inputs"]):
        raise ValueError(f"metadata {RECIPE}: the names in {recipe['expression']!r} have no inputs")
    return [(recipe["inputs"][name], weight) for name, weight in weights.items()]
