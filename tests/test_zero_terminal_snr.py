"""A run whose last timestep is pure noise: what it draws on the way, and what its files say."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from stages.diffusion.header import read_header
from stages.diffusion.model import Base, Models, load_models, read_single_file, save_diffusers
from stages.diffusion.sample import draw
from stages.diffusion.samplers import levels_of
from stages.lineage.ancestry import made_from, read_lineage, read_parent
from stages.lineage.noise_schedule import zero_terminal_snr
from stages.merging.expression import parse_expression
from stages.merging.files import merge_files
from stages.merging.terms import model_names
from stages.releases.modelspec import release_metadata, write_release
from stages.training import preview
from stages.training.loop import train
from tests.test_release import PARAMS as RELEASE_PARAMS
from tests.tiny_training import (
    EXAMPLES,
    HELD_OUT,
    PARAMS,
    base,
    one_thread,
    v_prediction_config,
)

__all__ = ["base", "one_thread"]  # fixtures are found by their names
pytestmark = pytest.mark.usefixtures("one_thread")

RUN = replace(
    PARAMS,
    prediction_type="v_prediction",
    zero_terminal_snr=True,
    max_epochs=1,
    samples=replace(PARAMS.samples, every_epochs=1, prompts=("cat",)),
)
MARKERS = {"v_pred", "ztsnr"}


@pytest.fixture
def trained(base: Path, tmp_path: Path) -> Base:
    """Train for one epoch; its file says how."""
    start = Base(base / "base.safetensors", v_prediction_config(base, tmp_path))
    recipe = {"kind": "train", "params": asdict(RUN)}
    metadata = made_from(recipe, {"base": read_parent(start.weights, {})})
    run = train(start, EXAMPLES, HELD_OUT, RUN, tmp_path / "run", metadata=metadata)
    return Base(run.weights[1], start.config)


def assert_pure_noise(models: Models) -> None:
    """See that nothing of a picture is left at the last timestep, where drawing begins."""
    assert float(models.noise_scheduler.alphas_cumprod[-1]) == 0
    assert levels_of(models.noise_scheduler).is_zero_terminal


def test_pictures_on_the_way_begin_at_pure_noise(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_with: list[Models] = []

    def note(models: Models, *rest: object) -> object:
        drawn_with.append(models)
        return draw(models, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(preview, "draw", note)
    start = Base(base / "base.safetensors", v_prediction_config(base, tmp_path))
    train(start, EXAMPLES, HELD_OUT, RUN, tmp_path / "run")
    assert_pure_noise(drawn_with[0])


def test_its_file_says_so_to_us_to_other_programs_and_opens_as_before(trained: Base) -> None:
    header = read_header(trained.weights)
    assert zero_terminal_snr(header.metadata)
    assert header.tensors.keys() >= MARKERS
    assert not MARKERS & read_single_file(trained.weights).keys()
    assert_pure_noise(load_models(trained.weights, trained.config))
    theirs = StableDiffusionPipeline.from_single_file(
        trained.weights, config=str(trained.config), local_files_only=True
    )
    ours = load_models(trained.weights, trained.config).unet.state_dict()
    assert all(torch.equal(ours[key], t) for key, t in theirs.unet.state_dict().items())


@pytest.mark.parametrize("sampler", ["DDIMScheduler", "PNDMScheduler"])
def test_its_diffusers_folder_draws_from_pure_noise(
    trained: Base, tmp_path: Path, sampler: str
) -> None:
    """SD 1.5's own folder says PNDM, which cannot."""
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        path = trained.config / name
        text = path.read_text(encoding="utf-8").replace("DDIMScheduler", sampler)
        path.write_text(text, encoding="utf-8")
    save_diffusers(trained.weights, trained.config, tmp_path / "folder")
    text = (tmp_path / "folder/scheduler/scheduler_config.json").read_text(encoding="utf-8")
    config = json.loads(text)
    assert config["rescale_betas_zero_snr"] is True
    assert config["timestep_spacing"] == "trailing"
    assert config["prediction_type"] == "v_prediction"
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    pipeline.scheduler.set_timesteps(2)
    assert float(pipeline.scheduler.alphas_cumprod[-1]) == 0
    assert int(pipeline.scheduler.timesteps[0]) == 999


def test_a_merge_and_a_release_of_it_say_so_too_and_an_ordinary_file_does_not(
    base: Path, trained: Base, tmp_path: Path
) -> None:
    merged, released = tmp_path / "merged.safetensors", tmp_path / "released.safetensors"
    inputs = {"a": base / "base.safetensors", "b": trained.weights}
    merge_files(inputs, "0.5*a + 0.5*b", merged, "float16")
    metadata = read_header(merged).metadata
    assert zero_terminal_snr(metadata)
    told = release_metadata(RELEASE_PARAMS, read_lineage(metadata), metadata, "0" * 64, str)
    assert told["modelspec.prediction_type"] == "v"
    write_release(merged, released, told)
    header = read_header(released)
    assert zero_terminal_snr(header.metadata)
    assert header.tensors.keys() >= MARKERS
    assert read_single_file(released).keys() == read_single_file(base / "base.safetensors").keys()

    twice = tmp_path / "twice.safetensors"
    merge_files({"a": inputs["a"]}, "a", twice, "float16")
    assert not zero_terminal_snr(read_header(twice).metadata)


def test_a_file_that_another_program_marked_passes_it_on_in_merges(
    base: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    plain, marked = base / "base.safetensors", tmp_path / "marked.safetensors"
    save_file({**load_file(plain), **{key: torch.empty(0) for key in MARKERS}}, marked)
    merged = tmp_path / "c.safetensors"
    merge_files({"a": plain, "b": marked}, "0.5*a + 0.5*b", merged, "float16")
    metadata = read_header(merged).metadata
    assert zero_terminal_snr(metadata)
    assert_predicts_v_from_pure_noise(merged, base)
    told = release_metadata(RELEASE_PARAMS, read_lineage(metadata), metadata, "0" * 64, str)
    assert told["modelspec.prediction_type"] == "v"


def assert_predicts_v_from_pure_noise(weights: Path, base: Path) -> None:
    """See that it is drawn as it was trained, though the config folder speaks of noise."""
    models = load_models(weights, base / "config")
    assert_pure_noise(models)
    assert levels_of(models.noise_scheduler).predicts_v


@pytest.mark.parametrize(
    ("expression", "is_marked"),
    [
        ("parts(a, vae=z)", False),
        ("parts(z, vae=a)", True),
        ("a + 0*z", False),
        ("0.6*a + 0.4*z", False),
        ("0.4*a + 0.6*z", True),
        ("a + 0.5*(z - y)", False),
        ("slerp(a, z, 0.7)", True),
    ],
)
def test_a_merge_is_drawn_as_most_of_its_unet_was_trained(
    tmp_path: Path, expression: str, is_marked: bool
) -> None:
    from safetensors.torch import save_file

    weights = {
        "model.diffusion_model.out.2.weight": torch.ones(2, 2),
        "first_stage_model.decoder.conv_in.weight": torch.ones(2, 2),
    }
    inputs = {}
    for name in model_names(parse_expression(expression)):
        markers = {key: torch.empty(0) for key in MARKERS if name != "a"}
        inputs[name] = tmp_path / f"{name}.safetensors"
        save_file({**weights, **markers}, inputs[name])
    out = tmp_path / "out.safetensors"
    merge_files(inputs, expression, out, "float16")
    metadata = read_header(out).metadata
    assert zero_terminal_snr(metadata) == is_marked
    assert MARKERS & read_header(out).tensors.keys() == (MARKERS if is_marked else set())
    told = release_metadata(RELEASE_PARAMS, read_lineage(metadata), metadata, "0" * 64, str)
    assert told["modelspec.prediction_type"] == ("v" if is_marked else "epsilon")


@pytest.mark.parametrize("markers", [{"v_pred"}, MARKERS])
def test_other_programs_find_in_a_merge_of_sdxl_what_they_found_in_its_inputs(
    tmp_path: Path, markers: set[str]
) -> None:
    """ComfyUI takes a larger model for one that predicts noise unless it finds `v_pred`."""
    from safetensors.torch import load_file, save_file

    keys = (
        "model.diffusion_model.label_emb.0.0.weight",
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
    )
    inputs = {}
    for number, name in enumerate("ab"):
        marked = {key: torch.empty(0) for key in markers}
        inputs[name] = tmp_path / f"{name}.safetensors"
        save_file({**{key: torch.full((2,), number + 1.0) for key in keys}, **marked}, inputs[name])
    out = tmp_path / "out.safetensors"
    merge_files(inputs, "0.5*a + 0.5*b", out, "float16")
    merged = load_file(out)
    assert merged.keys() == {*keys, *markers}
    assert all(torch.equal(merged[key], torch.full((2,), 1.5).half()) for key in keys)


def test_a_run_that_predicts_v_on_an_ordinary_schedule_is_marked_as_that_alone(
    base: Path, tmp_path: Path
) -> None:
    run = replace(RUN, zero_terminal_snr=False)
    start = Base(base / "base.safetensors", v_prediction_config(base, tmp_path))
    recipe = {"kind": "train", "params": asdict(run)}
    metadata = made_from(recipe, {"base": read_parent(start.weights, {})})
    weights = train(start, EXAMPLES, HELD_OUT, run, tmp_path / "run", metadata=metadata).weights[1]
    merged, released = tmp_path / "merged.safetensors", tmp_path / "released.safetensors"
    merge_files({"a": start.weights, "b": weights}, "0.4*a + 0.6*b", merged, "float16")
    told = read_header(merged).metadata
    write_release(
        merged, released, release_metadata(RELEASE_PARAMS, read_lineage(told), told, "0" * 64, str)
    )
    for path in (weights, merged, released):
        assert MARKERS & read_header(path).tensors.keys() == {"v_pred"}
    assert read_header(released).metadata["modelspec.prediction_type"] == "v"
