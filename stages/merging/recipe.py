"""Recipes of merges, as the params hold them, and recipes that are made of recipes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.harness.params import Params, load_params
from stages.merging.expression import parse_expression, substituted
from stages.merging.files import Dtype
from stages.merging.terms import model_names
from stages.merging.tokens import NAME

RECIPE_PREFIX = "recipe:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input(Params):
    """What a name in a recipe's expression stands for."""

    name: str
    file: str  # or recipe:SECTION, another recipe of the params

    def __post_init__(self) -> None:
        """Check that an expression can name it."""
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"{self.name!r} cannot name an input: use letters, digits and _, no digit first"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Params):
    """One merge."""

    expression: str  # of names, as in 0.6*vodka + 0.2*x + 0.2*y
    dtype: Dtype  # of the file; float32 for what is merged again
    inputs: tuple[Input, ...] = ()  # a command line may name others

    def __post_init__(self) -> None:
        """Check the expression before any file is looked at."""
        parse_expression(self.expression)
        names = [given.name for given in self.inputs]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"inputs: the name {repeated[0]!r} is given twice")

    def files(self) -> dict[str, str]:
        """Give the file, or recipe, of each input by its name."""
        return {given.name: given.file for given in self.inputs}


def flattened(
    recipe: Recipe, inputs: Mapping[str, str], params: Path, above: tuple[str, ...] = ()
) -> tuple[Recipe, dict[str, Path]]:
    """Put recipes in the place of inputs that name one: all is then merged in one pass.

    Args:
        recipe: whose inputs may be `recipe:SECTION`, and theirs too; its own are not looked at.
        inputs: file or recipe by name.
        params: the file that holds the sections.
        above: sections whose inputs these are.

    Returns:
        One recipe of files. A file that two recipes name has one name.

    Raises:
        ValueError: if a recipe is made of itself, or one that stands for an input leaves a name
            of its expression open.
    """
    recipes = {n: v.removeprefix(RECIPE_PREFIX) for n, v in inputs.items() if _is_recipe(v)}
    files = {name: Path(v) for name, v in inputs.items() if not _is_recipe(v)}
    inner: dict[str, str] = {}
    for name, section in recipes.items():
        if section in above:
            raise ValueError(f"{params}: {section} is made of itself: {' <- '.join(above)}")
        below = load_params(section, Recipe, params)
        named = model_names(parse_expression(below.expression))
        if unknown := [leaf for leaf in named if leaf not in below.files()]:
            raise ValueError(
                f"{params}: {section} stands for the input {name!r}, but its own inputs do not "
                f"say what {unknown[0]!r} is; the names of other recipes mean nothing there. Add "
                f"{unknown[0]!r} to {section}.inputs"
            )
        below, leaves = flattened(below, below.files(), params, (*above, section))
        renamed = {}
        for leaf, path in leaves.items():
            same = [known for known, other in files.items() if other == path]
            renamed[leaf] = same[0] if same else _free(f"{name}_{leaf}", {*files, *inputs})
            files[renamed[leaf]] = path
        inner[name] = substituted(below.expression, renamed, brackets=False)
    text = substituted(recipe.expression, inner)
    return Recipe(expression=text, dtype=recipe.dtype), files


def _is_recipe(value: str) -> bool:
    return value.startswith(RECIPE_PREFIX)


def _free(name: str, taken: set[str]) -> str:
    """Change a name until nobody has it."""
    while name in taken:
        name += "_"
    return name
