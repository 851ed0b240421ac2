"""What a run needs before its first step: encoded examples, and networks that can learn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from stages.diffusion.model import Base, load_models
from stages.harness.counted import counted
from stages.training.claim import SIDES
from stages.training.dataset import Dataset
from stages.training.encode import Examples
from stages.training.encoded import encode_once
from stages.training.epoch import epoch_steps
from stages.training.learner import Learner
from stages.training.objective import settle_objective
from stages.training.params import TrainParams
from stages.training.part import make_parts
from stages.training.ranks import Ranks
from stages.training.schedule import check_warmup, idle_epochs

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What learns, what from, and what it is measured by."""

    learner: Learner
    dataset: Dataset
    validation: Dataset


def prepare(
    base: Base,
    sides: tuple[Examples, Examples],
    params: TrainParams,
    encoded: Path,
    inputs: Mapping[str, str],
    ranks: Ranks,
    say: Say,
) -> Prepared:
    """Encode the examples, or find what an earlier start encoded; then set up the networks.

    Args:
        base: to start from.
        sides: the examples to learn from, and those to measure by.
        params: of the run.
        encoded: where encoded examples are kept.
        inputs: hashes; see `encode_once`.
        ranks: who trains.
        say: is told what a person may want to know.

    Raises:
        ValueError: if an example is bad, or params do not go together with base or examples.
    """
    models = load_models(base.weights, base.config, device=ranks.device)
    settle_objective(models, base, params)
    dataset, validation = (
        encode_once(models, side, examples, params, encoded, inputs, ranks, say)
        for side, examples in zip(SIDES, sides, strict=True)
    )
    # what does not learn is not needed any more: the base's file has it, if it is to be kept
    models.vae.to("meta")
    if not params.trains_text_encoder:
        nn.Module.to(models.text_encoder, "meta")
    learner = Learner(models, make_parts(models, params, ranks.device), params, ranks)
    steps_per_epoch = len(epoch_steps(dataset, params, 1))
    check_warmup(params.schedule, params.warmup_steps, params.schedule_epochs * steps_per_epoch)
    prepared = Prepared(learner, dataset, validation)
    _say_what_will_be(prepared, steps_per_epoch, say)
    return prepared


def _say_what_will_be(prepared: Prepared, steps_per_epoch: int, say: Say) -> None:
    """Sum the run up, and warn of what will cost time for nothing."""
    learner, dataset = prepared.learner, prepared.dataset
    params, ranks = learner.params, learner.ranks
    trained = sum(weight.numel() for weight in learner.weights)
    sizes = [dataset.shapes.count(shape) for shape in set(dataset.shapes)]
    say(
        f"{len(dataset):,} examples in {len(sizes)} buckets, {len(prepared.validation):,} more "
        f"for validation; {trained / 1e6:.1f} M weights to train on {ranks.count} x "
        f"{ranks.device.type}; {steps_per_epoch:,} steps an epoch, at most {params.max_epochs} "
        "epochs"
    )
    if small := [size for size in sizes if size < params.batch_size]:
        say(
            f"{len(small)} of {len(sizes)} buckets hold fewer than batch_size "
            f"{params.batch_size} examples, the smallest {min(small)}: their batches are "
            "smaller, and count by their examples"
        )
    if idle := idle_epochs(params.schedule, params.schedule_epochs, params.max_epochs):
        say(
            f"the {params.schedule} schedule ends with a rate of 0 after schedule_epochs "
            f"{params.schedule_epochs}: the {counted(idle, 'epoch')} from there to max_epochs "
            f"{params.max_epochs} would move no weight. Lower max_epochs, or start another run "
            "with schedule_epochs raised"
        )
