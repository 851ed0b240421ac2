"""The whole graph for real, on tiny params: it makes a release, and reruns what it must."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from stages.diffusion.model import load_models
from stages.harness.files import sha256_file
from tests.bucket_server import s3_server
from tests.pickles import pickles_below
from tests.tiny_recipe import TinyRecipe


def grid(name: str, cells: str | None = None) -> set[str]:
    """Name the stages that draw, show and score one grid."""
    return {cells or f"grid_cells_{name}", f"grid_sheet@{name}", f"grid_score@{name}"}


AFTER_ROWS = {*grid("final"), "select_final", "release", "report"}
AFTER_COCKTAILS = {*grid("cocktails"), *(f"select_row@{row}" for row in "123"), *AFTER_ROWS}
AFTER_MIXES = {*grid("mixes"), "select_mixes", *AFTER_COCKTAILS}
CHOICES = {
    "select_checkpoint@64",
    "select_checkpoint@96",
    "select_mixes",
    "select_ingredients_trained",
    "select_ingredients_merged",
    *(f"select_row@{row}" for row in "123"),
    "select_final",
}


def cocktails(*rows: int) -> set[str]:
    return {f"merge_cocktail@row{row}_{kind}" for row in rows for kind in ("trained", "merged")}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyRecipe]:
    made = TinyRecipe(tmp_path_factory.mktemp("recipe"))
    made.stages = made.repro()
    assert "release" in made.stages
    yield made
    shutil.rmtree(made.folder)


def release(recipe: TinyRecipe) -> Path:
    return recipe.folder / "models/release/cosmopolitan-mini.safetensors"


def cells(recipe: TinyRecipe) -> set[Path]:
    return set((recipe.folder / ".work/cells").rglob("*.png"))


def test_one_command_makes_a_release_that_loads_and_draws(recipe: TinyRecipe) -> None:
    models = load_models(release(recipe), recipe.folder / "models/tiny/config")
    assert all(weight.isfinite().all() for weight in models.unet.parameters())
    report = json.loads((recipe.folder / "reports/release.json").read_text("utf-8"))
    assert report["sha256"] == sha256_file(release(recipe))


def test_a_second_run_does_nothing(recipe: TinyRecipe) -> None:
    assert recipe.repro() == set()


def test_nothing_that_a_run_makes_can_run_code(recipe: TinyRecipe) -> None:
    """The search itself is tried on planted pickles in tests/test_pickles.py."""
    lock = yaml.safe_load((recipe.folder / "dvc.lock").read_text("utf-8"))
    outs = [out["path"] for stage in lock["stages"].values() for out in stage["outs"]]
    assert "models/release" in outs
    assert not pickles_below(recipe.folder / out for out in outs)


def test_a_fresh_clone_takes_all_from_a_remote_and_reruns_what_it_must(
    recipe: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path / "s3", monkeypatch):
        recipe.call("dvc", "remote", "add", "--default", "storage", "s3://bucket/recipe")
        share = ("python", "-m", "stages.share")
        recipe.call(*share, "push")
        cloned = recipe.clone(tmp_path / "theirs")
        assert not (cloned.folder / "models/release").exists()
        cloned.call(*share, "pull")
    assert sha256_file(release(cloned)) == sha256_file(release(recipe))
    assert (cloned.folder / "reports/site/index.html").is_file()
    assert "up to date" in cloned.call("dvc", "status")
    assert cloned.repro() == set()
    cloned.params["report"]["title"] = "Theirs"
    cloned.write_params()
    assert cloned.repro() == {"report"}


def test_a_threshold_that_changes_no_row_reruns_the_filter_alone(recipe: TinyRecipe) -> None:
    recipe.params["filter"]["max_aspect"] = 1.8  # none lies between it and 2.0
    recipe.write_params()
    assert recipe.repro() == {"filter"}


def test_the_weight_of_the_hybrid_reruns_what_is_made_of_it(recipe: TinyRecipe) -> None:
    recipe.params["merge"]["mixes"]["hybrid"]["expression"] = "0.4*a + 0.6*b"
    recipe.write_params()
    made_of_it = {"merge_mix@hybrid", "merge_difference@vodka_3", *cocktails(3)}
    assert recipe.repro() == made_of_it | AFTER_MIXES


def test_a_person_s_choice_reruns_that_choice_and_what_follows(recipe: TinyRecipe) -> None:
    recipe.params["select"]["row"]["1"]["choice"] = "row1_merged"
    recipe.write_params()
    assert recipe.repro() == {"select_row@1"} | AFTER_ROWS
    cocktail = recipe.folder / "models/cocktails/row1_merged.safetensors"
    assert sha256_file(recipe.folder / "models/rows/1.safetensors") == sha256_file(cocktail)


def test_a_learning_rate_reruns_its_own_resolution_and_what_is_made_of_it(
    recipe: TinyRecipe,
) -> None:
    recipe.params["train"]["64"]["learning_rate"] = 0.002
    recipe.write_params()
    made_of_it = {"merge_mix@hybrid", "merge_difference@vodka_1", "merge_difference@vodka_3"}
    assert recipe.repro() == {
        "train@64",
        *grid("train_64", cells="grid_cells_train@64"),
        "select_checkpoint@64",
        *made_of_it,
        *cocktails(1, 3),
        *AFTER_MIXES,
    }


def test_one_more_prompt_draws_new_cells_alone_and_merges_nothing(recipe: TinyRecipe) -> None:
    checkpoints = len(list((recipe.folder / "models/train/64").glob("*.safetensors")))
    before = cells(recipe)
    recipe.params["grid"]["prompts"].append("rocket")
    recipe.write_params()
    assert recipe.repro("grid_cells_train@64") == {"grid_cells_train@64"}
    assert len(cells(recipe)) == len(before) + checkpoints
    groups = ("mixes", "trained", "merged", "cocktails", "final")
    grids = {stage for name in groups for stage in grid(name)}
    for run in ("64", "96"):
        grids |= grid(f"train_{run}", cells=f"grid_cells_train@{run}")
    assert recipe.repro() == grids - {"grid_cells_train@64"} | CHOICES | {"release", "report"}
    assert before <= cells(recipe)


def test_the_wording_of_the_report_reruns_the_report_alone(recipe: TinyRecipe) -> None:
    recipe.params["report"]["title"] = "Another title"
    recipe.write_params()
    assert recipe.repro() == {"report"}
    page = (recipe.folder / "reports/site/index.html").read_text("utf-8")
    assert "Another title" in page


def test_more_epochs_go_on_from_where_the_run_was_and_only_their_weights_are_drawn(
    recipe: TinyRecipe,
) -> None:
    weights = recipe.folder / "models/train/96"
    before, drawn = {path.name for path in weights.iterdir()}, cells(recipe)
    recipe.params["train"]["96"]["max_epochs"] += 1
    recipe.write_params()
    output = recipe.call("dvc", "repro", "grid_cells_train@96")
    assert "going on in epoch 3, step 0" in output
    new = {path.name for path in weights.iterdir()} - before
    assert new == {"epoch_003.safetensors"}
    assert len(cells(recipe)) == len(drawn) + len(recipe.params["grid"]["prompts"])
    followed = {"grid_sheet@train_96", "grid_score@train_96", "select_checkpoint@96", "report"}
    assert recipe.repro() == followed


def test_swapped_scores_of_the_finalists_give_another_release(recipe: TinyRecipe) -> None:
    before = sha256_file(release(recipe))
    winner = json.loads((recipe.folder / "reports/select/final.json").read_text("utf-8"))["choice"]
    loser = next(name for name in ("row1", "row2", "row3") if name != winner)
    scores = recipe.folder / "reports/scores/final.csv"
    text = scores.read_text("utf-8").replace(winner, "swap").replace(loser, winner)
    scores.write_text(text.replace("swap", loser), "utf-8")
    for stage in ("select_final", "release"):
        recipe.call("dvc", "repro", "--single-item", stage)
    chosen = json.loads((recipe.folder / "reports/select/final.json").read_text("utf-8"))["choice"]
    assert chosen == loser
    assert sha256_file(release(recipe)) != before


def test_the_validation_fraction_reruns_the_split_and_every_training(recipe: TinyRecipe) -> None:
    """What follows a training is shown above."""
    trainings = {stage for stage in recipe.stages if stage.startswith("train")}
    splits = {stage for stage in recipe.stages if stage.startswith("split")}
    recipe.params["split"]["validation_fraction"] = 0.25
    recipe.write_params()
    assert recipe.repro(*sorted(trainings)) == splits | trainings
