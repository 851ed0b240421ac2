"""Questions for voters: two pictures of one prompt and seed, by two models, sides by chance."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, zip_longest

from stages.choice.votes import first_of_weights
from stages.drawing.manifest import Entry, Manifest


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures of one place in a grid; `a` and `b` say nothing about where they are shown."""

    id: str  # names the question, the same for every voter
    a: Entry
    b: Entry


def question_pairs(manifest: Manifest) -> list[Pair]:
    """List a grid's questions in the order in which every voter is asked them.

    The order is shuffled by hash, the same for all voters, so that those who stop early have
    answered the same questions; and any beginning of it asks about each two models equally often.
    Of models of the same weights the first stands for all; a cell that failed is not compared.
    """
    asked = set(first_of_weights(manifest.models).values())
    place: dict[tuple[object, ...], dict[str, Entry]] = {}
    for entry in manifest.entries:
        if entry.file:
            place.setdefault(entry.place, {})[entry.model] = entry
    rows = []
    for a, b in combinations(filter(asked.__contains__, manifest.models), 2):
        both = (drawn for drawn in place.values() if a in drawn and b in drawn)
        pairs = (Pair(_name(drawn[a], drawn[b]), drawn[a], drawn[b]) for drawn in both)
        rows.append(sorted(pairs, key=lambda pair: pair.id))
    return list(_in_turn(rows))


def _in_turn(rows: Iterable[list[Pair]]) -> Iterator[Pair]:
    """Take one question about each two models, then the next of each, shuffled every time."""
    for turn in zip_longest(*rows):
        yield from sorted((pair for pair in turn if pair), key=lambda pair: _hash(pair.id))


def is_swapped(pair: Pair, voter: str) -> bool:
    """Tell whether this voter sees `b` at the left: as likely as not, and the same on a reload."""
    return int(_hash(f"{voter} {pair.id}")[:8], 16) % 2 == 1


def _name(a: Entry, b: Entry) -> str:
    return _hash(" ".join(sorted((a.address, b.address))))[:16]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
