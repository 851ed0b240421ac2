"""Which concepts the mini base never sees, so that the recipe's validation is honest.

The recipe's split ranks captions by `holdout_rank` and takes the first 15 % of whatever rows
its filter keeps. Keeping clear of the first 20 % here leaves a margin for any filter setting
that keeps a few hundred rows or more.
"""

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from stages.images.holdout import holdout_rank

HELD_OUT_BELOW = 0.20  # of holdout_rank; the split takes 0.15
SHORT_LABEL_CHARS = 8


def planned_caption(label: str, tags: Sequence[str]) -> str:
    """Write the one caption of a concept in the sample: its label, and by hash up to two tags.

    A short label always takes a tag if there is one: "ox" alone is too short for the filter.

    >>> planned_caption("red apple", ["red", "apple", "fruit"])
    'red apple, fruit'
    """
    label = " ".join(label.split())
    digest = hashlib.sha256(f"caption:{label}".encode()).digest()
    new = sorted({" ".join(tag.split()) for tag in tags if _adds_to(label, tag)})
    start = digest[1] % len(new) if new else 0
    count = max(digest[0] % 3, len(label) < SHORT_LABEL_CHARS)
    return ", ".join([label, *(new[start:] + new[:start])[:count]])


def _adds_to(label: str, tag: str) -> bool:
    """Accept plain words that the label lacks: no flags, no emoticons such as `:-)`."""
    words = tag.replace(" ", "").replace("-", "")
    return words.isalpha() and not tag.startswith("-") and tag.casefold() not in label.casefold()


def heldout_concepts(pictures: pa.Table, seed: int) -> set[str]:
    """Name the concepts, of every style, whose planned caption ranks among the held-out.

    Args:
        pictures: columns `concept`, `label`, `tags` at least; one row per picture. A concept
            that goes by two labels is held out if either is, or if another held-out concept
            goes by the same caption.
        seed: the recipe's `split.seed`.
    """
    columns = (pictures[name].to_pylist() for name in ("concept", "label", "tags"))
    return {
        concept
        for concept, label, tags in zip(*columns, strict=True)
        if holdout_rank(planned_caption(label, tags or []), seed) < HELD_OUT_BELOW
    }
