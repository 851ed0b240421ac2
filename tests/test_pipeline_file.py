"""dvc.yaml tells the whole truth: its code deps, its paths, its params."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages import select
from stages.choice.rule import RuleParams
from stages.drawing.grid_params import GridParams
from stages.harness.params import load_named_params, load_params
from stages.images.download_params import DownloadParams
from stages.lineage.ingredient import Ingredient
from stages.merging.recipe import Recipe
from stages.midjourney.reject import FilterParams
from stages.releases.modelspec import ReleaseParams
from stages.report import ReportParams
from stages.split import SplitParams
from stages.split_part import PartParams
from stages.training.params import TrainParams
from tests.imports import ROOT, import_closure

PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))
MODULE = re.compile(r"python -m (?P<module>stages\.\w+)")
NAMED_MAPS = (  # sections whose keys are names, and may differ between profiles
    "download_weights",
    "grids",
    "ingredient_data",
    "ingredients",
    "merge.cocktails",
    "merge.differences",
    "merge.ingredients",
    "merge.mixes",
    "merge.references",
    "select.checkpoint",
    "select.row",
    "split_part",
    "train",
    "train_ingredient",
)


WORK_DONE = "reports/drawn/"  # of what a run did, not of its results: nobody's out
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))
# the stages, those of a `foreach` once
GROUPS = {name: stage.get("do", stage) for name, stage in PIPELINE["stages"].items()}


def module_of(stage: dict[str, Any]) -> str:
    found = MODULE.search(stage["cmd"])
    assert found
    return found["module"]


def paths(entries: list[Any]) -> list[str]:
    """List paths of deps or outs, which may carry options."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


@pytest.mark.parametrize("name", GROUPS)
def test_a_stage_is_named_after_its_module(name: str) -> None:
    module = module_of(GROUPS[name]).removeprefix("stages.")
    assert name == module or name.startswith(f"{module}_")


@pytest.mark.parametrize("name", GROUPS)
def test_no_shell_stands_between_dvc_and_a_stage(name: str) -> None:
    assert GROUPS[name]["cmd"].startswith("exec python -m stages.")


@pytest.mark.parametrize("name", GROUPS)
def test_the_code_deps_of_a_stage_are_what_it_imports(name: str) -> None:
    stage = GROUPS[name]
    listed = {path for path in paths(stage["deps"]) if path.endswith(".py")}
    module = ROOT / (module_of(stage).replace(".", "/") + ".py")
    assert listed == {str(path.relative_to(ROOT)) for path in import_closure(module)}


def test_the_report_depends_on_all_templates_but_those_of_compare() -> None:
    templates = {str(path.relative_to(ROOT)) for path in ROOT.glob("stages/page/templates/*")}
    of_compare = {path for path in templates if "compare" in path}
    assert templates - of_compare <= set(paths(GROUPS["report"]["deps"]))


BASE = yaml.safe_load((ROOT / "models/base/dvc.yaml").read_text("utf-8"))["stages"]


@pytest.mark.parametrize("name", BASE)
def test_the_code_deps_of_the_mini_model_s_stages_are_what_they_import(name: str) -> None:
    listed = {
        (ROOT / "models/base" / path).resolve()
        for path in paths(BASE[name]["deps"])
        if path.endswith(".py")
    }
    assert listed == import_closure(ROOT / f"models/base/{name}.py")


@pytest.mark.parametrize("name", GROUPS)
def test_each_path_in_a_command_is_a_dep_or_an_out(name: str) -> None:
    stage = GROUPS[name]
    written = [*paths(stage.get("outs", [])), *paths(stage.get("metrics", []))]
    declared = [*paths(stage["deps"]), *written, *paths(stage.get("plots", []))]
    for word in shlex.split(stage["cmd"]):
        value = word.partition("=")[2] or word
        if "/" in value and not value.startswith("-"):
            is_declared = any(value == path or path.startswith(f"{value}/") for path in declared)
            assert is_declared or value.startswith(WORK_DONE), value


@pytest.mark.parametrize("name", GROUPS)
def test_no_stage_keeps_outputs_of_other_params(name: str) -> None:
    """But cells, which the stage takes over picture by picture, each by its address."""
    kept = [out for out in GROUPS[name].get("outs", []) if "persist" in str(out)]
    assert bool(kept) == name.startswith("grid_cells")


def test_dvc_counts_one_small_file_as_metrics_and_can_restore_a_training() -> None:
    metrics = [path for stage in GROUPS.values() for path in paths(stage.get("metrics", []))]
    assert metrics == ["reports/metrics.json"]
    assert set(yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))) == {"stages"}
    # DVC's run cache leaves out stages with outputs that are neither its own nor metrics nor plots
    assert not [out for out in GROUPS["train"]["outs"] if "cache" in str(out)]


def keys(value: Any, prefix: str = "") -> Iterator[str]:
    """List dotted keys; what lies under a map of names is written with * for the name."""
    if not isinstance(value, dict):
        yield prefix
    elif prefix in NAMED_MAPS:
        yield prefix
        for inner in value.values():
            yield from keys(inner, f"{prefix}.*")
    else:
        for key, inner in value.items():
            yield from keys(inner, f"{prefix}.{key}".lstrip("."))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_profiles_share_one_schema(path: Path) -> None:
    ours = set(keys(yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))))
    theirs = set(keys(yaml.safe_load(path.read_text("utf-8"))))
    fixed = [{key for key in side if "*" not in key} for side in (ours, theirs)]
    assert fixed[0] == fixed[1]
    for name in NAMED_MAPS:
        sides = [{key for key in side if key.startswith(f"{name}.*")} for side in (ours, theirs)]
        assert not all(sides) or sides[0] == sides[1]


def test_the_mini_model_s_pipeline_is_hidden_from_dvc_at_the_root(tmp_path: Path) -> None:
    """A `.dvc` folder there would make its files seem absent; its dvc.yaml would be run."""
    for name in (".dvcignore", "models/base/dvc.yaml", "models/base/config/unet/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    stage = {"cmd": "echo ran", "deps": ["models/base/config"], "outs": []}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"look": stage}}))
    dvc = [sys.executable, "-m", "dvc"]
    for command in (["git", "init", "-q"], [*dvc, "init", "-q"], [*dvc, "repro", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    again = subprocess.run(
        [*dvc, "repro"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert "Stage 'look' didn't change" in again
    assert "collect" not in again
    assert not (ROOT / "models/base/.dvc").exists()


def expected_stages(params: dict[str, Any]) -> Iterator[str]:
    """Name the stages that dvc.yaml should come to with a profile's params."""
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"].items():
        if "foreach" not in stage:
            yield name
            continue
        items: Any = params
        for key in stage["foreach"].removeprefix("${").removesuffix("}").split("."):
            items = items[key]
        yield from (f"{name}@{item}" for item in items)


@pytest.mark.parametrize(("profile", "count"), [("mini", 58), ("sd15", 57)], ids=["mini", "sd15"])
def test_dvc_makes_the_stages_that_a_profile_names(
    tmp_path: Path, profile: str, count: int
) -> None:
    """An integer key in a `foreach` would yield no stage, silently."""
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    shutil.copyfile(ROOT / f"profiles/{profile}.yaml", tmp_path / "params.yaml")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    params = yaml.safe_load((tmp_path / "params.yaml").read_text("utf-8"))
    assert sorted(listed) == sorted(expected_stages(params))
    assert len(listed) == count


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PROFILES], ids=lambda path: path.name)
def test_every_section_of_a_profile_passes_its_own_check(path: Path) -> None:
    params = yaml.safe_load(path.read_text("utf-8"))
    single = {
        "filter": FilterParams,
        "download": DownloadParams,
        "split": SplitParams,
        "grid": GridParams,
        "select.rule": RuleParams,
        "select.final": select.OneParams,
        "select.mixes": select.SeveralParams,
        "release": ReleaseParams,
        "report": ReportParams,
        **{f"train.{run}": TrainParams for run in params["train"]},
        **{f"train_ingredient.{run}": TrainParams for run in params["train_ingredient"]},
        **{f"split_part.{name}": PartParams for name in params["split_part"]},
        **{f"merge.{g}.{name}": Recipe for g, names in params["merge"].items() for name in names},
    }
    for section, kind in single.items():
        load_params(section, kind, path)
    load_named_params("ingredients", Ingredient, path)
    known = {section.split(".")[0] for section in single}
    others = {"export", "base", "download_weights", "ingredient_data", "ingredients", "grids"}
    assert set(params) <= known | others | {"split_part", "train_ingredient"}


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PROFILES], ids=lambda path: path.name)
def test_each_merge_depends_on_all_inputs_of_its_recipe(path: Path) -> None:
    """The command names those that are deps, so that one more in the params is not overlooked."""
    params = yaml.safe_load(path.read_text("utf-8"))
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    for name, stage in stages.items():
        if name.startswith("merge"):
            group = stage["foreach"].removesuffix("}").rpartition(".")[2]
            deps = [dep for dep in stage["do"]["deps"] if not dep.endswith(".py")]
            numbers = range(len(deps))
            assert deps == [f"${{item.inputs[{i}].file}}" for i in numbers]
            given = [
                f"${{item.inputs[{i}].name}}={dep}" for i, dep in zip(numbers, deps, strict=True)
            ]
            assert [word for word in stage["do"]["cmd"].split() if "=" in word] == given
            assert {len(r["inputs"]) for r in params["merge"][group].values()} <= {len(deps)}


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PROFILES], ids=lambda path: path.name)
def test_the_release_depends_on_every_ingredient_that_it_hashes(path: Path) -> None:
    ingredients = yaml.safe_load(path.read_text("utf-8"))["ingredients"]
    wanted = {f"${{ingredients.{name}.path}}" for name in ingredients}
    assert {dep for dep in GROUPS["release"]["deps"] if dep.startswith("${ing")} == wanted


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PROFILES], ids=lambda path: path.name)
def test_each_grid_has_a_sheet_and_scores(path: Path) -> None:
    params = yaml.safe_load(path.read_text("utf-8"))
    wanted = {f"train_{run}" for run in params["train"]}
    wanted |= {name.removeprefix("grid_cells_") for name in GROUPS if "grid_cells" in name}
    assert set(params["grids"]) == wanted - {"train"}


def test_each_choice_counts_the_votes_on_the_grid_that_it_reads() -> None:
    for name, stage in GROUPS.items():
        if name.startswith("select_"):
            words = shlex.split(stage["cmd"])
            scored = Path(words[words.index("--scores") + 1]).stem
            assert words[words.index("--grid") + 1] == scored


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PROFILES], ids=lambda path: path.name)
def test_the_mini_base_was_held_clear_of_the_split_s_seed(path: Path) -> None:
    base = yaml.safe_load((ROOT / "models/base/params.yaml").read_text("utf-8"))
    params = yaml.safe_load(path.read_text("utf-8"))
    if params["base"]["weights"].startswith("models/base/"):
        assert params["split"]["seed"] == base["corpus"]["seed"]


def our_modules() -> list[Path]:
    return sorted((ROOT / "stages").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Name every module that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", our_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nouns_do_not_import_verbs_and_torch_stays_in_its_place(path: Path) -> None:
    names = imported(path)
    verbs = {f"stages.{verb.stem}" for verb in (ROOT / "stages").glob("*.py")} - {"stages.__init__"}
    assert not names & verbs
    place = path.relative_to(ROOT / "stages").parts[0]
    packages = {name.split(".")[0] for name in names}
    if place != "params.py" and path.name != "params.py":
        assert "pydantic" not in packages
    if place == "harness":
        assert not {n for n in names if n.startswith("stages.") and "stages.harness" not in n}
    if place in (
        "midjourney",
        "images",
        "harness",
        "lineage",
        "releases",
        "choice",
        "comfy",
        "drawing",
        "sheets",
        "filter.py",
        "download.py",
        "split.py",
    ):
        assert not packages & {"torch", "diffusers", "transformers"}


def test_the_architecture_page_draws_the_graph_as_dvc_does() -> None:
    command = [sys.executable, "-m", "dvc", "dag", "--collapse-foreach-matrix", "--md"]
    drawn = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert drawn.strip() in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_contributors_are_sent_to_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {word for word in re.findall(r"`([\w./-]+)`", text) if "/" in word}
    named = {word for word in named if not re.search(r"VERB|NAME", word)}
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_licence_facts_that_stand_twice_agree(path: Path) -> None:
    """Where weights are fetched and where a release counts its ingredients."""
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, fetched in params["download_weights"].items():
        counted = params["ingredients"][name]
        for key in ("licence", "merging_allowed", "source", "attribution"):
            assert fetched[key] == counted[key], f"{name}.{key}"
