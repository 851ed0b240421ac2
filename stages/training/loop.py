"""Fine-tuning: epochs over the examples, a validation after each, and what is kept of them.

Everything random belongs to a key of (seed, example id, epoch), and the order of batches to
(seed, epoch). So a run is at any moment described by its weights, its optimizer and its position,
and goes on from a checkpoint as if it had never stopped.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from stages.diffusion.model import Base
from stages.harness.scratch import exclusive
from stages.training.claim import claim, hash_inputs
from stages.training.encode import Examples
from stages.training.epoch import epoch_steps, train_epoch
from stages.training.history import History
from stages.training.interruption import AskedToStopError, Interruptions
from stages.training.kept import Kept, as_kept
from stages.training.params import TrainParams
from stages.training.preparation import Prepared, prepare
from stages.training.ranks import Ranks, alone
from stages.training.resume import Checkpoints
from stages.training.room import no_room_to_begin, what_would_fit
from stages.training.validation import validation_errors

Say = Callable[[str], None]


def say_nothing(line: str) -> None:
    """Keep a line of progress to oneself."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a finished run leaves."""

    history: History
    weights: dict[int, Path]  # single files by epoch, in the scratch folder
    samples: dict[int, Path]  # pictures by epoch, there too


def train(
    base: Base,
    examples: Examples,
    validation_examples: Examples,
    params: TrainParams,
    scratch: Path,
    *,
    inputs: Mapping[str, str] | None = None,
    encoded: Path | None = None,
    metadata: Mapping[str, str] | None = None,
    ranks: Ranks | None = None,
    say: Say = say_nothing,
    save_every_s: float = 300,
) -> Trained:
    """Fine-tune until validation trends up or `max_epochs`; go on with what `scratch` holds.

    Killed at any moment and called again, it ends with the weights of an unbroken run.

    Args:
        base: to start from.
        examples: to learn from; in any order.
        validation_examples: to measure by.
        params: of this run.
        scratch: a folder for this run alone; the params named in ENDS may change between calls,
            anything else asks for another folder.
        inputs: hashes that name `base`, `config`, `train`, `validation` and the code; made from
            their bytes if None, which reads every picture again at each start.
        encoded: where encoded examples are kept, for all runs that see the same ones; `scratch`
            if None.
        metadata: written into the weights, with the epoch; see `write_single_file`.
        ranks: who trains; this process alone if None.
        say: is told lines of progress.
        save_every_s: least time between two checkpoints within an epoch; see `Cadence`.

    Raises:
        ValueError: if the examples are bad, the scratch folder is another run's, the loss is no
            longer finite, or the networks or a batch do not fit the device.
        BlockingIOError: if another process is at work in `scratch`.
        KeyboardInterrupt, SystemExit: after SIGINT or SIGTERM, with a checkpoint written.
    """
    ranks = ranks or alone()
    inputs = inputs or hash_inputs(base, examples, validation_examples)
    with ExitStack() as held:
        if ranks.is_first:
            held.enter_context(exclusive(scratch))
            claim(scratch, params, inputs)
        ranks.wait()
        tell = say if ranks.is_first else say_nothing
        sides = examples, validation_examples
        try:
            prepared = prepare(base, sides, params, encoded or scratch, inputs, ranks, tell)
        except torch.OutOfMemoryError:
            raise ValueError(no_room_to_begin(params, ranks.device)) from None
        return _Run(base, prepared, scratch, metadata or {}, tell, save_every_s).to_the_end()


class _Run:
    """A run in memory: what learns, and how far it is."""

    def __init__(
        self,
        base: Base,
        prepared: Prepared,
        scratch: Path,
        metadata: Mapping[str, str],
        say: Say,
        save_every_s: float,
    ) -> None:
        self.learner = prepared.learner
        self.dataset, self.validation = prepared.dataset, prepared.validation
        self.params, self.ranks = self.learner.params, self.learner.ranks
        self.base, self.metadata, self.say = base, metadata, say
        self.kept = Kept(scratch, self.params, say)
        self.checkpoints = Checkpoints(
            scratch / "checkpoints",
            self.learner,
            self.kept,
            self.validation.ids,
            say,
            save_every_s,
        )
        self.interruptions = Interruptions(self.ranks)

    def to_the_end(self) -> Trained:
        """Train what is left of the run."""
        self.position = self.checkpoints.take_up()
        self.kept.tell_missing_samples(len(self.position.errors) - 1)
        with self.interruptions:
            try:
                end = self._epochs()
            except AskedToStopError as request:
                self._save_and_stop(request)
            except torch.OutOfMemoryError:
                end = 0
        if not end:  # out here, where the error no longer holds what did not fit
            batches = (batches[0] for batches in epoch_steps(self.dataset, self.params, 1))
            raise ValueError(what_would_fit(self.learner, self.dataset, max(batches, key=len)))
        history = self._history().until(end)
        return Trained(history, self.kept.weights_paths(history), self.kept.sample_paths(end))

    def _epochs(self) -> int:
        """Train epoch by epoch; give the one with which the run ends."""
        if not self.position.errors:
            self._validate()
            self.say(f"base: validation loss {self._history().means[0]:.5f}")
        while (end := self._history().end(self.params)) is None:
            train_epoch(self.learner, self.dataset, self.position, self.say, self._pause)
            self._close_epoch()
        return end

    def _history(self) -> History:
        """Give the figures of all finished epochs."""
        return self.position.history(self.validation.ids)

    def _pause(self) -> None:
        """Stop if that is asked for, or write a checkpoint if it is time to."""
        if self.interruptions.heed(self.checkpoints.cadence.is_due(within_epoch=True)):
            self.checkpoints.save(self.position)

    def _validate(self) -> None:
        """Measure the weights that would be kept now."""
        params, learner = self.params, self.learner

        def measure(drawn: Any) -> Tensor:
            self.interruptions.heed()
            return learner.errors(drawn)

        with as_kept(learner.parts):
            errors = validation_errors(
                measure,
                self.validation,
                self.ranks,
                seed=params.seed,
                timesteps_per_example=params.validation_timesteps,
                total_timesteps=learner.total_timesteps,
                batch_size=learner.full_batch or params.batch_size,
                full_batch=learner.full_batch,
            )
        epoch = len(self.position.errors)
        if not errors.isfinite().all():
            raise ValueError(
                f"after epoch {epoch} the validation loss is no longer finite: training diverged. "
                "Lower the learning rate, or limit gradients with max_gradient_norm"
                if epoch
                else "the base's validation loss is not finite; is the base a sound model?"
            )
        self.position.errors.append(errors)

    def _close_epoch(self) -> None:
        """Validate, keep the weights if they are wanted, and perhaps write a checkpoint."""
        position = self.position
        loss_sum = position.loss_of_all(self.ranks)
        self._validate()  # a signal may end it: the epoch is then closed again, from its loss on
        position.train_losses.append(loss_sum / position.counted)
        history = self._history()
        epoch = position.epoch
        change = history.change(epoch)
        loss, base = history.means[epoch], history.means[0]
        self.say(
            f"epoch {epoch}: validation loss {loss:.5f}, {100 * (loss / base - 1):+.2f} % from the "
            f"base ({100 * change.low / base:+.2f} to {100 * change.high / base:+.2f}); "
            f"train loss {position.train_losses[-1]:.5f}; best epoch {history.best}"
        )
        if self.ranks.is_first:
            learner = self.learner
            self.kept.write(history, self.base, learner.models, learner.parts, self.metadata)
        self.position = position.next_epoch()
        is_last = history.end(self.params) is not None
        is_due = is_last or self.checkpoints.cadence.is_due(within_epoch=False)
        if self.interruptions.heed(is_due):
            self.checkpoints.save(self.position)
            if self.ranks.is_first:
                self.kept.drop_once_best(history)

    def _save_and_stop(self, request: AskedToStopError) -> NoReturn:
        """Leave a checkpoint, and end as the signal would have ended the process."""
        if self.position.errors:  # else there is nothing to keep yet
            self.checkpoints.save(self.position)
        self.say(f"stopped by {request.name}; start it again and it goes on")
        raise request.end
