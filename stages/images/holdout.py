"""Which rows are held out for validation: whole groups of one caption, ranked by a hash."""

import hashlib
import math
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

# Sentence marks and quotes; "#", "*" and brackets may be what a caption is about.
EDGES = " .,;:!?…。、·\"'`“”‘’«»-–—"  # noqa: RUF001


def normalised_caption(caption: str) -> str:
    """Reduce a caption to what makes it the same caption: letter case, spacing and ends do not.

    >>> normalised_caption('  "Red   Apple", ')
    'red apple'
    """
    folded = unicodedata.normalize("NFKC", caption).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split()).strip(EDGES)


def holdout_rank(caption: str, seed: int) -> float:
    """Place a caption in [0, 1): the lowest ranks of a set of rows are its validation rows.

    The rank knows nothing of other rows, so that adding some moves few captions between the
    sides, and code far from the split can keep clear of what will be held out.

    Returns:
        The first 53 bits of SHA-256 over `seed:normalised caption`, as a fraction.
    """
    digest = hashlib.sha256(f"{seed}:{normalised_caption(caption)}".encode()).digest()
    return (int.from_bytes(digest[:8]) >> 11) / 2**53


def validation_rows(captions: Sequence[str], validation_fraction: float, seed: int) -> list[int]:
    """Pick exactly ceil(validation_fraction * n) rows; no caption stands on both sides.

    Groups of one normalised caption are taken whole, by rising `holdout_rank`; a group too
    large for the rows still wanted is skipped.

    Args:
        captions: one per row; any row order gives the same captions.
        validation_fraction: share of rows to hold out, in [0, 1). Read as the decimal number
            that it prints as: 0.07 of 100 rows are 7, though 0.07 * 100 > 7 in floating point.

    Returns:
        Row numbers, rising: 1,722 of 11,475 at 0.15.

    Raises:
        ValueError: if the fraction is out of range, or no exact fill is found.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(
            f"validation_fraction must be at least 0 and below 1, got {validation_fraction}"
        )
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for row, caption in enumerate(captions):
        groups[normalised_caption(caption)].append(row)
    wanted = math.ceil(Fraction(str(validation_fraction)) * len(captions))
    chosen: list[int] = []
    for group in sorted(groups, key=lambda group: (holdout_rank(group, seed), group)):
        if len(chosen) + len(groups[group]) <= wanted:
            chosen += groups[group]
    if len(chosen) < wanted:
        raise ValueError(
            f"cannot hold out exactly {wanted} of {len(captions)} rows in whole groups of one "
            f"caption: {len(groups)} groups, the largest of {max(map(len, groups.values()))} rows, "
            f"filled only {len(chosen)}. Change the validation fraction or the seed, or drop "
            "repeated captions"
        )
    return sorted(chosen)
