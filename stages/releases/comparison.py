"""What changed between a cocktail and the one before it."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from stages.lineage.ancestry import Lineage
from stages.merging.text import format_weight
from stages.releases.shares import leaf_shares


@dataclass(frozen=True, slots=True)
class Reference:
    """The cocktail that a release is to be better than."""

    name: str  # as the params call it
    sha256: str
    lineage: Lineage
    # How both did where they were compared, as in {"score": (32.1, 31.9)}: the release's figure
    # and the reference's; None where there is none.
    figures: Mapping[str, tuple[float | None, float | None]]


def changed_shares(lineage: Lineage, reference: Lineage) -> list[tuple[str, Fraction, Fraction]]:
    """Compare what two files are merged from: trained models and models of others.

    Returns:
        SHA-256, share in the first, share in the second; the largest change first.
    """
    ours, theirs = leaf_shares(lineage), leaf_shares(reference)
    rows = [(s, ours.get(s, Fraction()), theirs.get(s, Fraction())) for s in {**ours, **theirs}]
    return sorted(rows, key=lambda row: (-abs(row[1] - row[2]), row[0]))


def comparison_rows(
    lineage: Lineage, reference: Reference, names: Mapping[str, str]
) -> list[list[str]]:
    """List what changed, a row for each ingredient and each figure: what, here, there, change."""

    def title(sha256: str) -> str:
        known = lineage if sha256 in lineage.ancestors else reference.lineage
        return names.get(sha256) or known.title(sha256)

    rows = [
        [title(s), format_weight(here), format_weight(there), _signed(here - there)]
        for s, here, there in changed_shares(lineage, reference.lineage)
    ]
    for what, (here, there) in reference.figures.items():
        shown = ["none" if value is None else f"{value:.4g}" for value in (here, there)]
        change = "" if here is None or there is None else f"{here - there:+.3g}"
        rows.append([what.replace("_", " "), *shown, change])
    return rows


def _signed(weight: Fraction) -> str:
    return "none" if not weight else f"{'+' if weight > 0 else ''}{format_weight(weight)}"
