"""Whatever is killed, full, shut or spoilt: one command later all is as it should be."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import Unbroken, break_and_recover, copied, make_recipe
from tests.tiny_recipe import TinyRecipe

# From the export to a chosen checkpoint, its grid and a merge of it: a stage of every kind.
TARGETS = ("grid_sheet@train_64", "merge_mix@hybrid")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyRecipe]:
    recipe = make_recipe(tmp_path_factory.mktemp("fresh"))
    inputs = recipe.params["merge"]["mixes"]["hybrid"]["inputs"]
    inputs["b"] = recipe.params["base"]["weights"]  # and not another run
    recipe.write_params()
    yield recipe
    shutil.rmtree(recipe.folder)


@pytest.fixture(scope="module")
def unbroken(fresh: TinyRecipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unbroken]:
    recipe = copied(fresh, tmp_path_factory.mktemp("unbroken") / "copy")
    yield Unbroken.run(recipe, *TARGETS)
    shutil.rmtree(recipe.folder)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_random_moments_nothing_is_lost_and_nothing_is_left(
    fresh: TinyRecipe, unbroken: Unbroken, tmp_path: Path, seed: int
) -> None:
    story = break_and_recover(copied(fresh, tmp_path / "round"), unbroken, random.Random(seed))
    assert len(story) >= 4  # a kill in a stage of each kind, and in the push
