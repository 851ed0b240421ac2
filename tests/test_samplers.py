"""Samplers: noise levels as ComfyUI and A1111 have them, and steps as in the papers."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.diffusion.easel import Easel
from stages.diffusion.model import load_models, save_single_file
from stages.diffusion.samplers import SAMPLERS, NoiseLevels, levels_of, planned, sampled
from stages.harness.files import sha256_json
from stages.lineage.ancestry import Parent, made_from
from tests.tiny_sd import SCHEDULER, TinySD, tiny_sd

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

__all__ = ["tiny_sd"]  # a fixture is found by its name

# SD 1.5's, by hand: the betas' roots are evenly spaced
SHARES = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
SIGMAS = np.sqrt((1 - SHARES) / SHARES)  # 0.0292 to 14.6146


def schedule(**changes: Any) -> DDPMScheduler:
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config({**SCHEDULER, **changes})


@pytest.fixture(scope="module")
def levels() -> NoiseLevels:
    return levels_of(schedule())


@pytest.fixture(scope="module")
def zero_levels() -> NoiseLevels:
    return levels_of(schedule(rescale_betas_zero_snr=True, prediction_type="v_prediction"))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_normal_levels_go_evenly_from_the_last_timestep_to_the_first(
    levels: NoiseLevels, sampler: str
) -> None:
    asked = np.linspace(999, 0, 15)  # as k-diffusion's get_sigmas and ComfyUI's "normal"
    wanted = np.exp(np.interp(asked, np.arange(1000), np.log(SIGMAS)))
    found = planned(sampler, 15, levels)
    assert found == pytest.approx([*wanted, 0], rel=1e-4)
    assert found[0] == pytest.approx(14.6146, abs=1e-3)
    timesteps = [levels.nearest(sigma) for sigma in found[:-1]]
    assert (timesteps[:3], timesteps[-1]) == ([999, 928, 856], 0)
    assert planned(sampler, 1, levels) == pytest.approx([14.6146, 0], abs=1e-3)


def test_karras_levels_are_evenly_spaced_in_the_seventh_root(levels: NoiseLevels) -> None:
    found = planned("dpmpp_2m_karras", 4, levels)
    assert found == pytest.approx([14.6146, 3.1686, 0.4469, 0.0292, 0], abs=2e-3)
    roots = np.array(found[:-1]) ** (1 / 7)
    assert np.diff(roots) == pytest.approx(np.full(3, (0.0291675 ** (1 / 7) - roots[0]) / 3))


def test_ddim_counts_whole_steps_from_the_second_timestep(levels: NoiseLevels) -> None:
    for steps, asked in ((25, range(961, 0, -40)), (15, range(991, 0, -66))):
        found = planned("ddim", steps, levels)
        assert found == pytest.approx([*(SIGMAS[n] for n in asked), 0], rel=1e-4)
    assert len(planned("ddim", 15, levels)) == 17, "16 levels and the end, as ComfyUI has them"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_where_training_ended_in_pure_noise_drawing_begins_there(
    zero_levels: NoiseLevels, sampler: str
) -> None:
    found = planned(sampler, 15, zero_levels)
    assert zero_levels.nearest(found[0]) == 999
    assert found[0] > 4000
    assert len(found) == 16


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "zero terminal"])
def test_a_perfect_answer_leads_to_the_picture(sampler: str, kind: str) -> None:
    changes = {"prediction_type": "epsilon" if kind == "epsilon" else "v_prediction"}
    levels = levels_of(schedule(**changes, rescale_betas_zero_snr=kind == "zero terminal"))
    picture = torch.linspace(-1, 1, 16).reshape(1, 4, 2, 2)

    def ask(latents: Tensor, timestep: Tensor) -> Tensor:
        sigma = nearest[int(timestep)]
        signal = 1 / math.sqrt(1 + sigma**2)
        noise_share = sigma * signal
        noise = (latents - signal * picture) / noise_share
        return noise if kind == "epsilon" else signal * noise - noise_share * picture

    nearest = {levels.nearest(sigma): sigma for sigma in planned(sampler, 10, levels)[:-1]}
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    found = sampled(noise, ask, sampler, 10, levels)
    assert torch.allclose(found, picture, atol=2e-3)


@pytest.mark.parametrize(
    ("sampler", "name", "options"),
    [
        ("euler", "EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
        ("dpmpp_2m_karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ],
)
def test_steps_are_those_of_the_library(
    levels: NoiseLevels, sampler: str, name: str, options: dict[str, Any]
) -> None:
    import diffusers

    theirs = getattr(diffusers, name).from_config(schedule().config, **options)
    theirs.set_timesteps(15)
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    latents = noise * theirs.init_noise_sigma * (14.6488 / 14.6146 if sampler == "euler" else 1)
    for timestep in theirs.timesteps:
        answer = theirs.scale_model_input(latents, timestep).sin()
        latents = theirs.step(answer, timestep, latents).prev_sample
    found = sampled(noise, lambda scaled, _: scaled.sin(), sampler, 15, levels)
    assert torch.allclose(found, latents, rtol=1e-3, atol=1e-3)


def test_a_model_that_predicts_neither_noise_nor_v_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction_type is 'sample'; wanted: epsilon or v_pred"):
        levels_of(schedule(prediction_type="sample"))


def parent(metadata: dict[str, str]) -> Parent:
    """Stand for a file that another is made of."""
    return Parent(sha256_json(metadata), "0" * 8, metadata)


def trained(zero_terminal: bool, base: dict[str, str] | None = None) -> dict[str, str]:
    """Write what a training's file says of its making."""
    recipe = {"kind": "train", "run": "64", "params": {"zero_terminal_snr": zero_terminal}}
    return made_from(recipe, {"base": parent(base or {})})


def merged(*metadata: dict[str, str]) -> dict[str, str]:
    parents = {f"m{n}": parent(text) for n, text in enumerate(metadata)}
    return made_from({"kind": "merge", "expression": "0.5*m0 + 0.5*m1"}, parents)


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ({}, False),
        ({"cosmopolitan.zero_terminal_snr": "true"}, True),
        (trained(True), True),
        (trained(False), False),
        (trained(False, trained(True)), False),
        (merged(trained(False), trained(True)), True),
        (merged({}, merged({}, trained(True))), True),
        (merged(trained(False), {}), False),
    ],
)
def test_a_file_s_lineage_says_whether_its_training_ended_in_pure_noise(
    tiny_sd: TinySD, tmp_path: Path, metadata: dict[str, str], wanted: bool
) -> None:
    file = tmp_path / "model.safetensors"
    save_single_file(file, tiny_sd.unet, tiny_sd.vae, tiny_sd.text_encoder, metadata)
    loaded = load_models(file, tiny_sd.config, dtype=torch.float32, device="cpu")
    assert levels_of(loaded.noise_scheduler).is_zero_terminal is wanted


def test_each_model_is_drawn_on_the_schedule_that_it_was_trained_on(
    tiny_sd: TinySD, tmp_path: Path
) -> None:
    described = tiny_sd.config / "scheduler" / "scheduler_config.json"
    described.write_text(json.dumps({**SCHEDULER, "prediction_type": "v_prediction"}))
    files = {is_zero: tmp_path / f"{is_zero}.safetensors" for is_zero in (False, True)}
    for is_zero, file in files.items():
        parts = (tiny_sd.unet, tiny_sd.vae, tiny_sd.text_encoder)
        save_single_file(file, *parts, trained(is_zero))
    easel = Easel(tiny_sd.config, "float32", compiled=False, tile_px=0, cache=tmp_path)
    for is_zero in (True, False, True):
        found = levels_of(easel.put(files[is_zero]).noise_scheduler)
        assert dataclasses.astuple(found)[1:] == (True, is_zero)
