"""The training objective: what base, config and params say of it, and what each timestep weighs."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from stages.diffusion.model import Base, Models, load_models, read_single_file, write_single_file
from stages.lineage.ancestry import Parent, made_from
from stages.training.loss import EPSILON, V_PREDICTION, min_snr_weights
from stages.training.objective import settle_objective
from stages.training.params import TrainParams
from tests.tiny_training import PARAMS, base

__all__ = ["base"]  # fixtures are found by their names

V_PARAMS = replace(PARAMS, prediction_type=V_PREDICTION)


@pytest.fixture
def models(base: Path) -> Models:
    return load_models(base / "base.safetensors", base / "config")


def predict(models: Models, prediction_type: str) -> None:
    models.noise_scheduler.register_to_config(prediction_type=prediction_type)


@pytest.mark.parametrize(
    ("prediction_type", "gamma", "weights"),
    [
        (EPSILON, 5.0, [5 / 9, 1, 1]),  # min(SNR, gamma) / SNR
        (EPSILON, 0.5, [0.5 / 9, 0.5, 1]),
        (V_PREDICTION, 5.0, [5 / 10, 1 / 2, 1 / 10]),  # min(SNR, gamma) / (SNR + 1)
        (V_PREDICTION, 0.5, [0.5 / 10, 0.5 / 2, 1 / 10]),
    ],
)
def test_min_snr_weighs_as_its_paper_says(
    prediction_type: str, gamma: float, weights: list[float]
) -> None:
    scheduler = DDPMScheduler(
        num_train_timesteps=3,
        trained_betas=[0.1, 4 / 9, 0.8],  # the signal's shares 0.9, 0.5, 0.1; SNR 9, 1, 1/9
        prediction_type=prediction_type,
    )
    assert min_snr_weights(scheduler, gamma).tolist() == pytest.approx(weights, rel=1e-5)


def test_the_last_timestep_is_pure_noise_if_params_say_so_and_only_then(
    base: Path, models: Models
) -> None:
    predict(models, V_PREDICTION)
    start = Base(base / "base.safetensors", base / "config")
    settle_objective(models, start, V_PARAMS)
    assert float(models.noise_scheduler.alphas_cumprod[-1]) > 1e-3
    settle_objective(models, start, replace(V_PARAMS, zero_terminal_snr=True))
    assert float(models.noise_scheduler.alphas_cumprod[-1]) == 0
    assert models.noise_scheduler.config.prediction_type == V_PREDICTION
    assert float(min_snr_weights(models.noise_scheduler, 5.0)[-1]) == 0


def test_a_base_that_knows_pure_noise_is_trained_further_with_it_alone(
    base: Path, tmp_path: Path
) -> None:
    """Be it a merge of such a training, or a config folder that says so."""
    told = {"prediction_type": V_PREDICTION, "zero_terminal_snr": True}
    parent = Parent("0" * 64, "0" * 8, {})
    trained = made_from({"kind": "train", "run": "64", "params": told}, {"base": parent})
    merge = {"kind": "merge", "expression": "a + b"}
    parents = {"a": Parent("1" * 64, "1" * 8, trained), "b": parent}
    path = tmp_path / "merged.safetensors"
    tensors = read_single_file(base / "base.safetensors")
    write_single_file(path, tensors, made_from(merge, parents), torch.float16)
    config = tmp_path / "config"
    shutil.copytree(base / "config", config)
    schedule = config / "scheduler/scheduler_config.json"
    text = schedule.read_text(encoding="utf-8").replace("{", '{"rescale_betas_zero_snr": true,', 1)
    schedule.write_text(text, encoding="utf-8")
    for start, named in (
        (Base(path, base / "config"), path),
        (Base(base / "base.safetensors", config), config),
    ):
        models = load_models(start.weights, start.config)
        assert float(models.noise_scheduler.alphas_cumprod[-1]) == 0
        predict(models, V_PREDICTION)
        with pytest.raises(ValueError, match=f"zero_terminal_snr is false in params, but {named}"):
            settle_objective(models, start, V_PARAMS)
        settle_objective(models, start, replace(V_PARAMS, zero_terminal_snr=True))


@pytest.mark.parametrize("generations", [1, 2])
@pytest.mark.parametrize(("learnt", "params"), [(V_PREDICTION, PARAMS), (EPSILON, V_PARAMS)])
def test_a_checkpoint_is_trained_further_only_for_what_it_learnt(
    base: Path, models: Models, tmp_path: Path, learnt: str, params: TrainParams, generations: int
) -> None:
    """Be it an epoch of a training, or a merge of such."""
    recipe = {"kind": "train", "run": "64", "params": {"prediction_type": learnt}}
    metadata = made_from(recipe, {"base": Parent("0" * 64, "0" * 8, {})})
    if generations == 2:
        merge = {"kind": "merge", "expression": "a"}
        metadata = made_from(merge, {"a": Parent("1" * 64, "1" * 8, metadata)})
    path = tmp_path / "epoch_001.safetensors"
    write_single_file(path, read_single_file(base / "base.safetensors"), metadata, torch.float16)
    start = Base(path, base / "config")
    predict(models, params.prediction_type)
    with pytest.raises(ValueError, match=f"the training that made {path} says '{learnt}'"):
        settle_objective(models, start, params)
    predict(models, learnt)
    settle_objective(models, start, replace(params, prediction_type=learnt))


def test_a_release_is_taken_at_its_word_though_a_little_of_it_learnt_something_else(
    base: Path, models: Models, tmp_path: Path
) -> None:
    recipe = {"kind": "train", "run": "64", "params": {"prediction_type": V_PREDICTION}}
    trained = made_from(recipe, {"base": Parent("0" * 64, "0" * 8, {})})
    merge = {"kind": "merge", "expression": "0.99*a + 0.01*b"}
    parents = {"a": Parent("1" * 64, "1" * 8, {}), "b": Parent("2" * 64, "2" * 8, trained)}
    metadata = {**made_from(merge, parents), "modelspec.prediction_type": EPSILON}
    path = tmp_path / "release.safetensors"
    write_single_file(path, read_single_file(base / "base.safetensors"), metadata, torch.float16)
    settle_objective(models, Base(path, base / "config"), PARAMS)
    predict(models, V_PREDICTION)
    with pytest.raises(ValueError, match=f"{path} says 'epsilon'"):
        settle_objective(models, Base(path, base / "config"), V_PARAMS)
