"""How a file of weights says what it was made of: two JSON strings in its metadata.

`cosmopolitan.recipe` is the last step: {"kind": "merge", "expression": "0.5*a + 0.5*b", "inputs":
{"a": SHA-256, "b": SHA-256}} or {"kind": "train", "run": "512", …, "inputs": {"base": SHA-256}};
a trained file's `epoch` is a key of its own.
`cosmopolitan.ancestry` maps the SHA-256 of each file before it, all the way down, to that file's
own recipe and names. Neither holds a path, a clock or a machine.

Other programs write `sd_merge_recipe` and `sd_merge_models`, in whatever form. What they name is
carried on, and what nobody can read becomes an ancestor of its own, so that nothing is hidden.
Their mergers copy a parent's metadata, our two keys included: then these tell of the parent. So a
file with a recipe of ours also names the hash of its own tensors, which a copy does not have.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from stages.harness.files import sha256_file
from stages.lineage.digests import TENSORS_HASH, digest_file, legacy_hash
from stages.lineage.noise_schedule import noise_schedule

RECIPE = "cosmopolitan.recipe"
ANCESTRY = "cosmopolitan.ancestry"
MODELS, STEP = "sd_merge_models", "sd_merge_recipe"
OURS = "cosmopolitan"  # the `type` of those recipes that we write for other programs
SHA256 = re.compile(r"[0-9a-f]{64}")
# Beyond these no file was made in earnest, and whoever walks it would run out of stack.
MAX_GENERATIONS = 200
MAX_NESTING = 100  # of JSON
SHOWN_CHARS = 200  # of another program's recipe
# Why a recipe is not believed. Shorter than the shortest recipe with an input, for a merge leaves
# room for its header before it knows.
COPIED = "its recipe is another file's, of other tensors: a program copied it"
UNPROVEN = "its recipe names no hash of its tensors, so it may be a copy"


@dataclass(frozen=True, slots=True)
class Parent:
    """A file that another is made of."""

    sha256: str
    legacy_hash: str  # A1111's first kind, 8 hex digits
    metadata: Mapping[str, str]  # as in its header
    tensors_sha256: str | None = None  # known if its metadata hold a recipe of ours


@dataclass(frozen=True, slots=True)
class Ancestor:
    """What is known of a file that others were made of; JSON values, as in the metadata."""

    name: str  # what its child called it, when it had no name of its own
    legacy_hash: str
    recipe: dict[str, Any] | None = None  # of ours; None where the file tells none
    epoch: str | None = None  # of a trained file
    sd_merge_recipe: Any = None  # as A1111 or another program wrote it; its text if it is no JSON
    unreadable: str | None = None  # why nobody can tell what this is; maybe a mere text, hashed

    @property
    def foreign(self) -> str:
        """Show what another program told of it, the beginning of it at least; empty if nothing."""
        told = self.unreadable or self.sd_merge_recipe
        if not told:
            return ""
        text = told if isinstance(told, str) else json.dumps(told)
        return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


@dataclass(frozen=True, slots=True)
class Lineage:
    """A file's last step and everything before it."""

    recipe: dict[str, Any] | None = None
    ancestors: dict[str, Ancestor] = field(default_factory=dict)  # by SHA-256
    doubt: str | None = None  # why the recipe that the file holds is not believed to be its own

    def inputs(self, sha256: str | None = None) -> dict[str, str]:
        """Give the SHA-256 of each input by name, of an ancestor or (None) of the file itself."""
        recipe = self.recipe if sha256 is None else self.ancestors[sha256].recipe
        return dict(recipe.get("inputs", {})) if recipe else {}

    def title(self, sha256: str) -> str:
        """Name an ancestor: its recipe's name, its run and epoch, or what its child called it."""
        ancestor = self.ancestors[sha256]
        recipe = ancestor.recipe or {}
        epoch = f", epoch {ancestor.epoch}" if ancestor.epoch else ""
        return str(recipe.get("name") or recipe.get("run") or ancestor.name) + epoch

    @property
    def predicts_v(self) -> bool:
        """Whether the file's last step was a training for v."""
        params = (self.recipe or {}).get("params")
        return isinstance(params, dict) and params.get("prediction_type") == "v_prediction"

    def predictions(self) -> set[str]:
        """Name what our trainings, the last step's and those before, taught a UNet to predict."""
        recipes = (self.recipe, *(ancestor.recipe for ancestor in self.ancestors.values()))
        params = (recipe.get("params") for recipe in recipes if recipe)
        values = (p.get("prediction_type") for p in params if isinstance(p, dict))
        return {value for value in values if isinstance(value, str)}

    def route(self, sha256: str) -> list[str]:
        """Name the files between this one and an ancestor, nearest first; the ancestor ends it.

        Empty if the recipes do not lead there, as to what another program merged.
        """
        routes = {source: [self.title(source)] for source in self.inputs().values()}
        waiting = list(routes)
        for source in waiting:
            for before in self.inputs(source).values():
                if before not in routes:
                    routes[before] = [*routes[source], self.title(before)]
                    waiting.append(before)
        return routes.get(sha256, [])


def read_parent(path: Path, metadata: Mapping[str, str]) -> Parent:
    """Hash a file that is to become an input; its metadata is known from its header."""
    if RECIPE not in metadata:
        return Parent(sha256_file(path), legacy_hash(path), metadata)
    digests = digest_file(path)
    return Parent(digests.sha256, digests.auto_v1, metadata, digests.tensors_sha256)


def made_from(recipe: Mapping[str, Any], parents: Mapping[str, Parent]) -> dict[str, str]:
    """Write the metadata of a file that is made from others.

    Args:
        recipe: JSON values; its `kind` says which stage works it. `inputs` is added.
        parents: by the name that the recipe calls them.

    Returns:
        The same strings for the same recipe and parents.
    """
    inputs = {name: parent.sha256 for name, parent in parents.items()}
    ancestors: dict[str, Ancestor] = {}
    lineages = {n: read_lineage(p.metadata, p.tensors_sha256) for n, p in parents.items()}
    for name, parent in parents.items():
        merged = _foreign(parent.metadata.get(STEP))
        recipe_of_it = lineages[name].recipe
        epoch = parent.metadata.get("epoch") if recipe_of_it else None
        doubt = lineages[name].doubt
        itself = Ancestor(name, parent.legacy_hash, recipe_of_it, epoch, merged, doubt)
        ancestors.setdefault(parent.sha256, itself)
    for lineage in lineages.values():
        ancestors = {**lineage.ancestors, **ancestors}
    nodes = {sha256: _node(ancestor) for sha256, ancestor in ancestors.items()}
    schedule = noise_schedule(recipe, {name: p.metadata for name, p in parents.items()})
    return {RECIPE: _json({**recipe, "inputs": inputs}), ANCESTRY: _json(nodes), **schedule}


def read_lineage(metadata: Mapping[str, str], tensors_sha256: str | None = None) -> Lineage:
    """Read what a file's metadata tells of its making; empty if it tells nothing.

    Files of A1111 and programs like it count too: the models that `sd_merge_models` names become
    ancestors, and so does, marked as unreadable, what there is no sense in. Where they name one
    that our own ancestry lacks, or tell another step than ours, our recipe was copied from a
    parent, and is not believed; nor is it where the hash that it comes with is not the tensors'.

    Args:
        metadata: of the file.
        tensors_sha256: of its tensors; None believes the metadata without that proof.

    Raises:
        ValueError: if our own keys do not hold what `made_from` writes.
    """
    try:
        recipe = json.loads(metadata.get(RECIPE, "null"))
        ours: dict[str, dict[str, Any]] = json.loads(metadata.get(ANCESTRY, "{}"))
        if _is_nested([recipe, ours]):
            raise ValueError(f"more than {MAX_NESTING} levels of brackets")
        ancestors = {sha256.lower(): Ancestor(**node) for sha256, node in ours.items()}
        if odd := [key for key in ancestors if not SHA256.fullmatch(key)]:
            raise ValueError(f"it names an ancestor by {odd[0][:80]!r}, not by a SHA-256")
        for told in _recipes(recipe, ancestors):
            told["inputs"] = {name: sha256.lower() for name, sha256 in told["inputs"].items()}
            if told.get("kind") == "merge" and not isinstance(told.get("expression"), str):
                raise ValueError("a merge without an expression")
        named = {sha256 for r in _recipes(recipe, ancestors) for sha256 in r["inputs"].values()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"metadata {RECIPE} or {ANCESTRY} is damaged ({error!r})") from error
    if missing := sorted(named - set(ancestors)):
        raise ValueError(f"metadata {ANCESTRY} lacks {missing[0]}, which a recipe in it names")
    merged_elsewhere = dict(_merged_elsewhere(metadata.get(MODELS)))
    step = _foreign(metadata.get(STEP))
    is_foreign = step is not None and not (isinstance(step, dict) and step.get("type") == OURS)
    is_copied = is_foreign or not merged_elsewhere.keys() <= ancestors.keys()
    believed = None if is_copied else recipe
    doubt = _doubt(metadata, tensors_sha256) if believed and believed["inputs"] else None
    lineage = Lineage(None if doubt else believed, {**merged_elsewhere, **ancestors}, doubt)
    _check_generations(lineage)
    return lineage


def _doubt(metadata: Mapping[str, str], tensors_sha256: str | None) -> str | None:
    """Say why a recipe of ours is not believed to be this file's own; None if nothing speaks so.

    All that we merged named the hash of their tensors from the first; what we trained did not at
    first, and cannot be told apart from what another program made of it.
    """
    if tensors_sha256 is None:
        return None
    if (named := metadata.get(TENSORS_HASH)) is None:
        return UNPROVEN
    return None if named == f"0x{tensors_sha256}" else COPIED


def _check_generations(lineage: Lineage) -> None:
    """Refuse an ancestry that has no beginning, or one too far away."""
    inputs = {sha256: set(lineage.inputs(sha256).values()) for sha256 in lineage.ancestors}
    generations: dict[str, int] = {}
    try:
        for sha256 in TopologicalSorter(inputs).static_order():
            before = (generations[source] for source in inputs[sha256])
            generations[sha256] = 1 + max(before, default=0)
    except CycleError as error:
        circle = " <- ".join(sha256[:10] for sha256 in error.args[1])
        raise ValueError(
            f"metadata {ANCESTRY} says that a file was made of itself ({circle}), which none can "
            "be: it is damaged or made up. Fetch the file from where you trust it"
        ) from error
    if (oldest := max(generations.values(), default=0)) > MAX_GENERATIONS:
        raise ValueError(
            f"metadata {ANCESTRY} tells {oldest:,} generations of files, at most "
            f"{MAX_GENERATIONS} are read. Is it made up? Fetch the file from where you trust it"
        )


def _recipes(recipe: Any, ancestors: Mapping[str, Ancestor]) -> Iterator[dict[str, Any]]:
    yield from (r for r in (recipe, *(a.recipe for a in ancestors.values())) if r is not None)


def _merged_elsewhere(text: str | None) -> Iterator[tuple[str, Ancestor]]:
    """List the models that A1111 or a program like it says a file was merged from."""
    models = _foreign(text)
    if not models:
        return
    if not isinstance(models, dict):
        yield _unreadable(str(text), MODELS, f"{MODELS} is no JSON object")
        return
    for key, model in models.items():
        told = model if isinstance(model, dict) else {}
        name = str(told.get("name") or key[:10])
        if not SHA256.fullmatch(key.lower()):
            entry = json.dumps({key: model}, sort_keys=True)
            yield _unreadable(entry, name, f"{MODELS} names it by {key[:80]!r}, not by a SHA-256")
            continue
        yield (
            key.lower(),
            Ancestor(
                name=name,
                legacy_hash=str(told.get("legacy_hash") or ""),
                sd_merge_recipe=told.get("sd_merge_recipe"),
            ),
        )


def _unreadable(text: str, name: str, why: str) -> tuple[str, Ancestor]:
    """Let a text that tells of nobody knows what stand for it, under the text's own SHA-256."""
    sha256 = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return sha256, Ancestor(name=name, legacy_hash="", unreadable=why)


def _foreign(text: str | None) -> Any:
    """Read JSON of a stranger, so that we can write it again; its text if it is none.

    NaN and infinity, which are no JSON though Python's library writes them, become words.
    """

    def number(word: str) -> float | str:
        return float(word) if math.isfinite(float(word)) else word

    try:
        value = json.loads(text, parse_constant=str, parse_float=number) if text else None
    except (ValueError, RecursionError):
        return text
    return text if _is_nested(value) else value


def _is_nested(value: Any) -> bool:
    """Tell whether JSON has so many brackets within each other that the stack might end."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _node(ancestor: Ancestor) -> dict[str, Any]:
    node = {
        "name": ancestor.name,
        "legacy_hash": ancestor.legacy_hash,
        "recipe": ancestor.recipe,
        "epoch": ancestor.epoch,
        "sd_merge_recipe": ancestor.sd_merge_recipe,
        "unreadable": ancestor.unreadable,
    }
    return {key: value for key, value in node.items() if value is not None}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
