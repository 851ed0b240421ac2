"""Models that others made: their licences, and whether a release may hold them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.harness.files import sha256_file
from stages.harness.params import Params
from stages.lineage.ancestry import Lineage

SHA256 = re.compile(r"[0-9a-fA-F]{64}")  # web sites write either


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredient(Params):
    """One of them, the base included, as the params describe it."""

    path: str  # a safetensors file
    licence: str  # its name, as in CreativeML Open RAIL-M
    merging_allowed: bool  # whether the licence lets one share a merge; False keeps it from release
    source: str  # where it comes from: an address, or words
    attribution: str  # whom to name, and how
    sha256: str | None = None  # if known, the file need not be at hand

    def __post_init__(self) -> None:
        """Check what a release will say."""
        if not self.licence.strip():
            raise ValueError("licence is empty; name it, or write `unknown` and forbid merging")
        if self.sha256 is not None and not SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 is {self.sha256!r}, not 64 hex digits")


def hash_ingredients(ingredients: Mapping[str, Ingredient]) -> dict[str, str]:
    """Give the name of each ingredient by the SHA-256 of its file.

    Raises:
        FileNotFoundError: if a file is missing and its hash is not known either.
        ValueError: if a file is not the one that its hash names, or two names mean one file.
    """
    names: dict[str, str] = {}
    for name, ingredient in ingredients.items():
        path = Path(ingredient.path)
        told = ingredient.sha256.lower() if ingredient.sha256 else None
        if path.is_file():
            sha256 = sha256_file(path)
        elif told:
            sha256 = told
        else:
            raise FileNotFoundError(
                f"{path}: the file of ingredient {name!r} is missing, and without it or its "
                f"sha256 nobody can tell whether the release holds it. Fetch it (dvc pull), or "
                f"write ingredients.{name}.sha256"
            )
        if told not in (None, sha256):
            raise ValueError(
                f"{path}: SHA-256 is {sha256}, but ingredients.{name}.sha256 says "
                f"{told}. Is it another version?"
            )
        if sha256 in names:
            raise ValueError(f"ingredients {names[sha256]!r} and {name!r} are one file; keep one")
        names[sha256] = name
    return names


def check_licences(
    weights: Path,
    sha256: str,
    lineage: Lineage,
    ingredients: Mapping[str, Ingredient],
    names: Mapping[str, str],
) -> None:
    """Refuse a lineage that holds an ingredient that may not be merged, or a model unknown.

    Args:
        weights: the file to be released, for messages.
        sha256: of that file.
        lineage: from its metadata.
        ingredients: by name.
        names: of the ingredients, by SHA-256.

    Raises:
        ValueError: naming each ingredient in question, its licence, and how it came in.
    """
    present = [names[s] for s in (*lineage.ancestors, sha256) if s in names]
    if forbidding := [name for name in present if not ingredients[name].merging_allowed]:
        by_name = {name: s for s, name in names.items()}
        reasons = "; ".join(
            f"{name!r} ({ingredients[name].licence}), "
            + ("the file itself" if by_name[name] == sha256 else _route(lineage, by_name[name]))
            for name in forbidding
        )
        raise ValueError(
            f"{weights}: its lineage holds what may not be merged and released: {reasons}. "
            "Choose a winner without it, or, if its licence does allow it, write so in the "
            "section `ingredients` of the params"
        )
    if not lineage.inputs():
        raise ValueError(
            f"{weights}: its metadata tells no ancestry, so nobody can tell whose work it is. "
            "Only what stages.merge or stages.train made can be released"
        )
    if unread := [s for s, a in lineage.ancestors.items() if a.unreadable and s not in names]:
        reasons = "; ".join(
            f"{lineage.ancestors[s].name!r} ({lineage.ancestors[s].unreadable}), {s}"
            for s in unread
        )
        raise ValueError(
            f"{weights}: of what went into it nobody can tell everything, so no licence either: "
            f"{reasons}. Find out what it is, and add it to the section `ingredients` of the "
            "params: its licence, and as sha256 the digits given here"
        )
    if unknown := _unknown(lineage, names):
        reasons = "; ".join(f"{_route(lineage, s)}, SHA-256 {s}" for s in unknown)
        raise ValueError(
            f"{weights}: no licence is known for {len(unknown)} of its sources: {reasons}. "
            "Add each to the section `ingredients` of the params, with path and licence"
        )


def _unknown(lineage: Lineage, names: Mapping[str, str]) -> list[str]:
    """Find what nothing of ours was made from and no licence covers, itself or nearer to us."""
    seen: set[str] = set()
    waiting = list(lineage.inputs().values())
    unknown = []
    while waiting:
        sha256 = waiting.pop(0)
        if sha256 in names or sha256 in seen:
            continue
        seen.add(sha256)
        inputs = lineage.inputs(sha256)
        waiting += inputs.values()
        if not inputs:
            unknown.append(sha256)
    return unknown


def _route(lineage: Lineage, sha256: str) -> str:
    route = lineage.route(sha256)
    if not route:
        return "named by the program that merged one of the inputs"
    return "through " + " <- ".join(route)
