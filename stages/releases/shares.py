"""How much of each ancestor is in a merged file."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from graphlib import TopologicalSorter
from typing import Any

from stages.lineage.ancestry import RECIPE, Lineage
from stages.merging.blocks import PLACES, at_key
from stages.merging.expression import parse_expression
from stages.merging.terms import model_weights


def ancestor_shares(lineage: Lineage, key: str | None = None) -> dict[str, Fraction]:
    """Give each ancestor's weight in a file, by SHA-256, through merges but not trainings.

    Exact where merges are sums; see `model_weights` for methods that look at values.

    Args:
        lineage: of the file.
        key: of a tensor, for the weights in it; None for those in the whole.

    Raises:
        ValueError: if a recipe's expression and inputs do not fit, as no merge writes them.
    """
    weights = {s: _weights(ancestor.recipe, key) for s, ancestor in lineage.ancestors.items()}
    shares = dict.fromkeys(lineage.ancestors, Fraction())
    for sha256, weight in _weights(lineage.recipe, key):
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


def part_shares(lineage: Lineage) -> dict[str, dict[str, Fraction]]:
    """Give what a leaf weighs in text encoder and VAE, where that is not its weight in the whole.

    So what a baked VAE came from is not left out, nor does it seem to come from the others.
    """
    whole = ancestor_shares(lineage)
    found: dict[str, dict[str, Fraction]] = {}
    for part in ("text encoder", "VAE"):
        for sha256, share in ancestor_shares(lineage, PLACES[part]).items():
            if share != whole[sha256] and not _is_merge(lineage, sha256):
                found.setdefault(sha256, {})[part] = share
    return found


def labels(files: Iterable[str], title: Callable[[str], str]) -> dict[str, str]:
    """Name files by their SHA-256; those of one title by their hashes, too."""
    titles = {sha256: title(sha256) for sha256 in files}
    counts = Counter(titles.values())
    return {s: name if counts[name] == 1 else f"{name}, {s[:10]}" for s, name in titles.items()}


def named_shares(
    shares: Mapping[str, Fraction], title: Callable[[str], str]
) -> dict[str, dict[str, str | float]]:
    """Name shares for a report; where two files have one title, by their hashes, too."""
    names = labels(shares, title)
    return {names[s]: {"sha256": s, "weight": float(share)} for s, share in shares.items()}


def _present(lineage: Lineage) -> dict[str, Fraction]:
    return {s: share for s, share in ancestor_shares(lineage).items() if share}


def _is_merge(lineage: Lineage, sha256: str) -> bool:
    return (lineage.ancestors[sha256].recipe or {}).get("kind") == "merge"


def _weights(recipe: Mapping[str, Any] | None, key: str | None) -> list[tuple[str, Fraction]]:
    """Give SHA-256 and share of each input of a merge; of anything else, none."""
    if not recipe or recipe.get("kind") != "merge":
        return []
    terms = parse_expression(recipe["expression"])
    weights = model_weights(terms)
    if set(weights) != set(recipe["inputs"]):
        raise ValueError(f"metadata {RECIPE}: the names in {recipe['expression']!r} have no inputs")
    if key is not None:
        weights = model_weights(at_key(terms, key))
    return [(recipe["inputs"][name], weight) for name, weight in weights.items()]
