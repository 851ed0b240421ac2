"""A release in words: what it is and draws, whose work is in it, how to know its file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from stages.lineage.ancestry import Ancestor, Lineage
from stages.lineage.digests import Digests
from stages.lineage.ingredient import Ingredient
from stages.merging.text import format_weight
from stages.releases.comparison import Reference, comparison_rows
from stages.releases.markdown import code, plain, table
from stages.releases.modelspec import ReleaseParams
from stages.releases.shares import labels, leaf_shares, part_shares


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture that the released model drew."""

    path: str  # beside the card
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Choice:
    """How the released model was chosen, in words and numbers, and what it draws."""

    reason: str
    samples: list[Sample]


def model_card(
    params: ReleaseParams,
    lineage: Lineage,
    digests: Digests,
    ingredients: Mapping[str, Ingredient],
    names: Mapping[str, str],
    choice: Choice | None = None,
    counts: Mapping[str, Mapping[str, int]] | None = None,
    reference: Reference | None = None,
) -> str:
    """Write a model card in Markdown.

    Args:
        params: the section `release`.
        lineage: of the released file.
        digests: of the released file.
        ingredients: all that the params know, by name.
        names: of the ingredients, by SHA-256.
        choice: why this model, and pictures of it.
        counts: of the data's way through the stages: stage -> what -> how many.
        reference: the cocktail before this one.
    """

    def title(sha256: str) -> str:
        return names.get(sha256) or lineage.title(sha256)

    used = {names[s]: ingredients[names[s]] for s in lineage.ancestors if s in names}
    parts = [
        f"# {params.title}",
        params.description,
        _facts(params),
        _pictures(choice) if choice else "",
        f"## Why this one\n\n{choice.reason}" if choice else "",
        _changes(lineage, reference, names) if reference else "",
        "## Recipe",
        _how(lineage.recipe),
        ancestor_tree(lineage, title),
        named_elsewhere(lineage, title),
        _shares_table(lineage, title),
        _trainings(lineage, title),
        _data(counts) if counts else "",
        "## Ingredients and their licences",
        _ingredients_table(used),
        "## The file",
        _digests_table(f"{params.name}.safetensors", digests),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(params: ReleaseParams) -> str:
    facts = {
        "Author": params.author,
        "Date": params.date,
        "Licence": params.licence,
        "Draws best at": f"{params.resolution} x {params.resolution} px",
        "Use": params.usage_hint,
        "Tags": ", ".join(params.tags),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)


def _pictures(choice: Choice) -> str:
    """Show what it draws, one picture after another."""
    shown = [f"![{plain(s.prompt)}, seed {s.seed}]({s.path})" for s in choice.samples]
    return "\n".join(shown)


def _trainings(lineage: Lineage, title: Callable[[str], str]) -> str:
    """Give the params of every training that led here, each once."""
    told = {
        sha256: {**_pictures_learnt(ancestor.recipe), **_mapping(ancestor.recipe.get("params"))}
        for sha256, ancestor in lineage.ancestors.items()
        if ancestor.recipe and ancestor.recipe.get("kind") == "train"
    }
    names = labels(told, title)
    runs = {names[sha256]: facts for sha256, facts in told.items()}
    if not any(runs.values()):
        return ""
    keys = list(dict.fromkeys(key for params in runs.values() for key in params))
    rows = [[key, *(str(params.get(key, "")) for params in runs.values())] for key in keys]
    rows = [[plain(cell) for cell in row] for row in rows]
    return "## How its models were trained\n\n" + table(["param", *map(plain, runs)], rows)


def _pictures_learnt(recipe: Mapping[str, object]) -> dict[str, str]:
    """Say how many pictures a model learned from and was validated on, where its recipe tells."""
    counts = _mapping(recipe.get("pictures"))
    told = {"train": "pictures to train", "validation": "pictures to validate"}
    return {words: str(counts[side]) for side, words in told.items() if side in counts}


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}  # strangers write recipes, too


def _data(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Count the data from stage to stage."""
    rows = [
        [stage, what.replace("_", " "), f"{count:,}"]
        for stage, values in counts.items()
        for what, count in values.items()
    ]
    return "## Data\n\n" + table(["stage", "what", "count"], rows)


def _changes(lineage: Lineage, reference: Reference, names: Mapping[str, str]) -> str:
    """Compare with the cocktail before: what is in each, and how each did."""
    label = f"**{plain(reference.name)}** ({reference.sha256[:10]})"
    told = _how(reference.lineage.recipe)
    text = f"The reference is {label}{', ' if told else ''}{told}."
    if not reference.lineage.inputs():
        text += " Its file does not tell what it was made of, so its own shares are not known."
    rows = [[plain(what), *rest] for what, *rest in comparison_rows(lineage, reference, names)]
    head = ["", "Here", "Reference", "Change"]
    return f"## What changed against the reference cocktail\n\n{text}\n\n{table(head, rows)}"


def named_elsewhere(lineage: Lineage, title: Callable[[str], str]) -> str:
    """List the ancestors that only another program's metadata names: no recipe leads to them."""
    inputs = set(lineage.inputs().values())
    named = [s for s in lineage.ancestors if s not in inputs and not lineage.route(s)]
    if not named:
        return ""
    items = [
        f"- **{plain(title(s))}**{_told(lineage.ancestors[s])} ({s[:10]})"
        for s in sorted(named, key=title)
    ]
    return "Named by the program that merged one of the inputs:\n\n" + "\n".join(items)


def _told(ancestor: Ancestor) -> str:
    """Say how an ancestor was made, after a comma; nothing if it does not tell."""
    how = _how(ancestor.recipe)
    if not how and (foreign := ancestor.foreign):
        how = f"by another program: {code(foreign)}"
    return f", {how}" if how else ""


def _how(recipe: Mapping[str, object] | None) -> str:
    """Say how a file was made, in a word or two; nothing if it does not tell."""
    kind = recipe.get("kind") if recipe else None
    if recipe and kind == "merge":
        return code(str(recipe["expression"]))
    return "trained" if kind == "train" else ""


def ancestor_tree(lineage: Lineage, title: Callable[[str], str]) -> str:
    """List every file that led here, each once with what it was made of."""
    lines: list[str] = []
    shown: set[str] = set()

    def show(name: str, sha256: str, depth: int) -> None:
        told = _told(lineage.ancestors[sha256])
        again = ", as above" if sha256 in shown and lineage.inputs(sha256) else ""
        label = title(sha256)
        alias = "" if name == label else f"{code(name)}: "
        lines.append(f"{'  ' * depth}- {alias}**{plain(label)}**{told}{again} ({sha256[:10]})")
        if sha256 not in shown:
            shown.add(sha256)
            for key, source in lineage.inputs(sha256).items():
                show(key, source, depth + 1)

    for key, source in lineage.inputs().items():
        show(key, source, 0)
    return "\n".join(lines)


def _shares_table(lineage: Lineage, title: Callable[[str], str]) -> str:
    """Multiply the merges out: the weight of each trained model and each ingredient.

    Where text encoder or VAE were merged in another way, their weights follow in brackets.
    """
    parts = part_shares(lineage)
    leaves = dict.fromkeys(parts, Fraction()) | leaf_shares(lineage)
    ordered = sorted(leaves, key=lambda sha256: (-leaves[sha256], title(sha256)))
    rows = []
    for s in ordered:
        others = ", ".join(f"{part} {format_weight(w)}" for part, w in parts.get(s, {}).items())
        weight = format_weight(leaves[s]) + (f" ({others})" if others else "")
        rows.append([plain(title(s)), weight, f"`{s[:10]}`"])
    return table(["Multiplied out", "Weight", "SHA-256"], rows)


def _ingredients_table(used: Mapping[str, Ingredient]) -> str:
    rows = [[name, i.licence, i.attribution, i.source] for name, i in used.items()]
    return table(["Name", "Licence", "By", "From"], rows) if rows else "None."


def _digests_table(name: str, digests: Digests) -> str:
    return table(
        [f"`{name}`", "Value"],
        [
            ["SHA-256", f"`{digests.sha256}`"],
            ["AutoV1", f"`{digests.auto_v1}`"],
            ["AutoV2", f"`{digests.auto_v2}`"],
            ["AutoV3", f"`{digests.auto_v3}`"],
            ["CRC32", f"`{digests.crc32}`"],
            ["SHA-256 of the tensors", f"`{digests.tensors_sha256}`"],
        ],
    )
