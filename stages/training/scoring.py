"""The validation of checkpoints that are done, at any resolution."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from stages.diffusion.model import Base, load_models
from stages.harness.files import sha256_file
from stages.training.encode import Examples
from stages.training.encoded import encode_once
from stages.training.learner import Learner
from stages.training.objective import settle_objective
from stages.training.params import TrainParams
from stages.training.ranks import alone
from stages.training.validation import Floats, validation_errors


def score_checkpoints(
    weights: Mapping[str, Path],
    config: Path,
    examples: Examples,
    params: TrainParams,
    encoded: Path,
    inputs: Mapping[str, str],
    say: Callable[[str], None],
) -> dict[str, Floats]:
    """Ask all checkpoints the same questions.

    Args:
        weights: single files by name; the autoencoder of the first encodes the pictures.
        config: the diffusers folder that describes them.
        examples: to measure by.
        params: decide the resolution, the buckets and the questions.
        encoded: where encoded examples are kept.
        inputs: hashes that name `validation`, `config` and the code, as `encoding`.
        say: is told lines of progress.

    Returns:
        (N, K) errors of each, as in `validation_errors`.

    Raises:
        ValueError: if a checkpoint does not fit the config or gives no finite loss, or a picture
            is bad.
    """
    ranks = alone()
    # token ids, for each checkpoint may have a text encoder of its own
    tokens = replace(params, text_encoder_learning_rate=params.learning_rate)
    found: dict[str, Floats] = {}
    dataset = None
    for name, path in weights.items():
        models = load_models(path, config)
        settle_objective(models, Base(path, config), params)
        if dataset is None:
            named = {**inputs, "base": sha256_file(path)}
            dataset = encode_once(
                models, "validation", examples, tokens, encoded, named, ranks, say
            )
        models.vae.to("meta")
        models.unet.to(ranks.device)
        nn.Module.to(models.text_encoder, ranks.device)
        learner = Learner(models, {}, params, ranks)
        errors = validation_errors(
            learner.errors,
            dataset,
            ranks,
            seed=params.seed,
            timesteps_per_example=params.validation_timesteps,
            total_timesteps=learner.total_timesteps,
            batch_size=params.batch_size,
            full_batch=learner.full_batch,
        )
        if not errors.isfinite().all():
            raise ValueError(
                f"{path}: the validation loss of {name!r} is not finite; is it a sound model?"
            )
        found[name] = errors.double().numpy()
        say(f"{name}: {found[name].mean():.5f}")
    return found
