"""One epoch of optimizer steps: which rows each takes, and what becomes of a step that fails."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

from stages.harness.progress import Progress
from stages.training.dataset import Dataset, ahead, epoch_batches
from stages.training.draw import draw_training
from stages.training.learner import Learner
from stages.training.params import TrainParams
from stages.training.position import Position

Say = Callable[[str], None]


def epoch_steps(dataset: Dataset, params: TrainParams, epoch: int) -> list[list[list[int]]]:
    """List an epoch's optimizer steps, each a list of batches of rows; all have as many steps."""
    batches = epoch_batches(dataset, params.batch_size, params.seed, epoch)
    size = params.gradient_accumulation
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def train_epoch(
    learner: Learner,
    dataset: Dataset,
    position: Position,
    say: Say,
    pause: Callable[[], None],
) -> None:
    """Train what is left of the epoch under way.

    Args:
        learner: takes the steps.
        dataset: the examples.
        position: of the run; moves with each step.
        say: is told of steps that are left out.
        pause: called after each step, when the run is whole; it may end the epoch by an error.

    Raises:
        ValueError: if too many steps are left out.
    """
    params, ranks = learner.params, learner.ranks
    all_steps = epoch_steps(dataset, params, position.epoch)
    schedule_steps = params.schedule_epochs * len(all_steps)
    steps = all_steps[position.epoch_step :]
    own = [ranks.share(step) for step in steps]
    draw = partial(
        draw_training,
        dataset,
        params,
        learner.total_timesteps,
        learner.full_batch,
        position.epoch,
    )
    drawn = ahead(draw, [rows for batches in own for rows in batches])
    label = f"epoch {position.epoch} of at most {params.max_epochs}"
    progress = Progress(label, len(dataset) - position.seen, is_shown=ranks.is_first)
    for batches, share in zip(steps, own, strict=True):
        count = sum(map(len, batches))
        step = learner.step(islice(drawn, len(share)), count, position.step, schedule_steps)
        if step.is_loss_finite:
            position.loss_sum = position.loss_sum + step.error_sum
            position.counted += count
        position.step += step.is_taken
        position.skipped += step.is_fault
        position.epoch_step += 1
        position.seen += count
        progress.advance(count)
        if step.is_fault:
            say(_told(position, [dataset.ids[row] for rows in batches for row in rows]))
            _check_share(position, len(all_steps), params.max_skipped_share)
        pause()
    if progress.done:
        progress.close()


def _told(position: Position, ids: Sequence[str]) -> str:
    """Say which step was left out."""
    return (
        f"epoch {position.epoch}, step {position.epoch_step}: a loss or gradient is not "
        f"finite; left out, with examples {', '.join(ids[:8])}{' …' if ids[8:] else ''}"
    )


def _check_share(position: Position, steps_per_epoch: int, share: float) -> None:
    """Stop if too many steps were left out."""
    if position.skipped > share * steps_per_epoch:
        raise ValueError(
            f"{position.skipped} of the {position.epoch_step} steps of epoch {position.epoch} "
            f"had a loss or gradient that is not finite, more than max_skipped_share {share} "
            "of an epoch allows: training diverges. Lower the learning rate, limit gradients "
            "with max_gradient_norm, or use bf16 or fp32 instead of fp16"
        )
