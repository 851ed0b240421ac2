"""Fine-tuning: epochs over the examples, a validation after each, and what is kept of them.

Everything random belongs to a key of (seed, example id, epoch), and the order of batches to
(seed, epoch). So a run is at any moment described by its weights, its optimizer and its position,
and goes on from a checkpoint as if it had never stopped.
"""

import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from stages.diffusion.model import Base, load_models
from stages.harness.counted import counted
from stages.harness.progress import Progress
from stages.harness.scratch import exclusive
from stages.training.cadence import Cadence
from stages.training.checkpoint import interruptions, load_checkpoint, save_checkpoint
from stages.training.claim import SIDES, claim, hash_inputs
from stages.training.dataset import ahead, epoch_batches
from stages.training.draw import draw_training
from stages.training.encode import Examples
from stages.training.encoded import encode_once
from stages.training.history import History
from stages.training.kept import Kept, as_kept
from stages.training.learner import Learner
from stages.training.objective import settle_objective
from stages.training.params import TrainParams
from stages.training.part import make_parts
from stages.training.position import Position
from stages.training.ranks import Ranks, alone
from stages.training.room import what_would_fit
from stages.training.schedule import check_warmup, idle_epochs
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
            longer finite, or a batch does not fit the device.
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
        run = _Run(base, params, scratch, dict(metadata or {}), ranks, tell, save_every_s)
        run.prepare((examples, validation_examples), encoded or scratch, inputs)
        return run.to_the_end()


class _Run:
    """A run in memory: data, networks, position."""

    def __init__(
        self,
        base: Base,
        params: TrainParams,
        scratch: Path,
        metadata: dict[str, str],
        ranks: Ranks,
        say: Say,
        save_every_s: float,
    ) -> None:
        self.base, self.params = base, params
        self.metadata, self.ranks, self.say = metadata, ranks, say
        self.position = Position()
        self.signal_received: Callable[[], int] = lambda: 0
        self.checkpoints = scratch / "checkpoints"
        self.kept = Kept(scratch, params, say)
        self.cadence = Cadence(save_every_s)

    def prepare(
        self, sides: tuple[Examples, Examples], encoded: Path, inputs: Mapping[str, str]
    ) -> None:
        """Encode the examples, or find what an earlier start encoded; then set up the networks."""
        params = self.params
        models = load_models(self.base.weights, self.base.config, device=self.ranks.device)
        settle_objective(models, self.base, params)
        self.dataset, self.validation = (
            encode_once(models, side, examples, params, encoded, inputs, self.ranks, self.say)
            for side, examples in zip(SIDES, sides, strict=True)
        )
        # what does not learn is not needed any more: the base's file has it, if it is to be kept
        models.vae.to("meta")
        if not params.trains_text_encoder:
            nn.Module.to(models.text_encoder, "meta")
        self.models = models
        self.parts = make_parts(models, params, self.ranks.device)
        self.learner = Learner(models, self.parts, params, self.ranks)
        trained = sum(weight.numel() for weight in self.learner.weights)
        shapes = len(set(self.dataset.shapes))
        self.steps_per_epoch = len(self._steps(1))
        self.schedule_steps = params.schedule_epochs * self.steps_per_epoch
        check_warmup(params.schedule, params.warmup_steps, self.schedule_steps)
        on = f"{self.ranks.count} x {self.ranks.device.type}"
        self.say(
            f"{len(self.dataset):,} examples in {shapes} buckets, {len(self.validation):,} more "
            f"for validation; {trained / 1e6:.1f} M weights to train on {on}; "
            f"{self.steps_per_epoch:,} steps an epoch, at most {self.params.max_epochs} epochs"
        )
        self._warn_of_small_buckets()
        if idle := idle_epochs(params.schedule, params.schedule_epochs, params.max_epochs):
            self.say(
                f"the {params.schedule} schedule ends with a rate of 0 after schedule_epochs "
                f"{params.schedule_epochs}: the {counted(idle, 'epoch')} from there to max_epochs "
                f"{params.max_epochs} would move no weight. Lower max_epochs, or start another run "
                "with schedule_epochs raised"
            )

    def to_the_end(self) -> Trained:
        """Train what is left of the run."""
        self._go_on()
        with interruptions() as self.signal_received:
            try:
                end = self._epochs()
            except _InterruptedError as error:
                self._save_and_stop(error.number)
            except torch.OutOfMemoryError:
                end = 0
        if not end:  # out here, where the error no longer holds what did not fit
            largest = max((batches[0] for batches in self._steps(1)), key=len)
            raise ValueError(what_would_fit(self.learner, self.dataset, largest))
        history = self._history(self.position).until(end)
        return Trained(history, self.kept.weights_paths(history), self.kept.sample_paths(end))

    def _go_on(self) -> None:
        """Take up what a checkpoint holds, if there is one."""
        state = load_checkpoint(self.checkpoints, self.say)
        if state and self._leads_on(state):
            self._load_state(state)
        step = self.position.step
        if not self.ranks.all_have(step):
            raise ValueError(
                f"{self.checkpoints}: this process found a checkpoint of step {step}, "
                "another process another one or none. All machines must see one and the same .work"
            )
        if step:
            self.say(f"going on in epoch {self.position.epoch}, step {self.position.epoch_step}")

    def _epochs(self) -> int:
        """Train epoch by epoch; give the one with which the run ends."""
        if not self.position.errors:
            self._validate()
            self.say(f"base: validation loss {self._history(self.position).means[0]:.5f}")
        while (end := self._history(self.position).end(self.params)) is None:
            self._train_epoch()
            self._close_epoch()
        return end

    def _history(self, position: Position) -> History:
        """Give the figures of all finished epochs."""
        errors = torch.stack(position.errors).numpy()
        return History(self.validation.ids, errors, tuple(position.train_losses))

    def _leads_on(self, state: dict[str, Any]) -> bool:
        """Tell whether a checkpoint leads to where params now end; if not, clear the way.

        A run that went further than they now ask for may have dropped weights that were the best
        of its first epochs.
        """
        history = self._history(Position(**state["position"]))
        if (end := history.end(self.params)) is None:
            return True
        wanted = self.kept.weights_paths(history.until(end))
        leads_on = all(path.is_file() for path in wanted.values())
        self.ranks.wait()  # all have looked
        if not leads_on and self.ranks.is_first:
            self.say(f"the best of the first {end} epochs was not kept: training anew")
            shutil.rmtree(self.checkpoints)
            shutil.rmtree(self.kept.weights)
        return leads_on

    def _warn_of_small_buckets(self) -> None:
        """Say where batches are smaller than params ask for: they still train, only slower."""
        sizes = [self.dataset.shapes.count(shape) for shape in set(self.dataset.shapes)]
        if small := [size for size in sizes if size < self.params.batch_size]:
            self.say(
                f"{len(small)} of {len(sizes)} buckets hold fewer than batch_size "
                f"{self.params.batch_size} examples, the smallest {min(small)}: their batches are "
                "smaller, and count by their examples"
            )

    def _steps(self, epoch: int) -> list[list[list[int]]]:
        """List an epoch's optimizer steps, each a list of batches of rows."""
        batches = epoch_batches(self.dataset, self.params.batch_size, self.params.seed, epoch)
        size = self.params.gradient_accumulation
        return [batches[start : start + size] for start in range(0, len(batches), size)]

    def _train_epoch(self) -> None:
        """Train what is left of the epoch under way."""
        position, params, learner = self.position, self.params, self.learner
        steps = self._steps(position.epoch)[position.epoch_step :]
        own = [self.ranks.share(step) for step in steps]
        draw = partial(
            draw_training,
            self.dataset,
            params,
            learner.total_timesteps,
            learner.full_batch,
            position.epoch,
        )
        drawn = ahead(draw, [rows for batches in own for rows in batches])
        label = f"epoch {position.epoch} of at most {params.max_epochs}"
        count = len(self.dataset) - position.seen
        progress = Progress(label, count, is_shown=self.ranks.is_first)
        for batches, share in zip(steps, own, strict=True):
            count = sum(map(len, batches))
            of_step = islice(drawn, len(share))
            step = learner.step(of_step, count, position.step, self.schedule_steps)
            if step.is_taken:
                position.loss_sum = position.loss_sum + step.error_sum
                position.counted += count
                position.step += 1
            position.skipped += step.is_fault
            position.epoch_step += 1
            position.seen += count
            progress.advance(count)
            if step.is_fault:
                self._heed_fault(batches)
            if self._heed_signals(self.cadence.is_due(within_epoch=True)):
                self._save()
        if progress.done:
            progress.close()

    def _heed_fault(self, batches: list[list[int]]) -> None:
        """Say that a step was left out; stop if there are too many."""
        position, share = self.position, self.params.max_skipped_share
        ids = [self.dataset.ids[row] for rows in batches for row in rows]
        self.say(
            f"epoch {position.epoch}, step {position.epoch_step}: a loss or gradient is not "
            f"finite; left out, with examples {', '.join(ids[:8])}{' …' if ids[8:] else ''}"
        )
        if position.skipped > share * self.steps_per_epoch:
            raise ValueError(
                f"{position.skipped} of the {position.epoch_step} steps of epoch {position.epoch} "
                f"had a loss or gradient that is not finite, more than max_skipped_share {share} "
                "of an epoch allows: training diverges. Lower the learning rate, limit gradients "
                "with max_gradient_norm, or use bf16 or fp32 instead of fp16"
            )

    def _validate(self) -> None:
        """Measure the weights that would be kept now."""
        params, learner = self.params, self.learner

        def measure(drawn: Any) -> Tensor:
            self._heed_signals(False)
            return learner.errors(drawn)

        with as_kept(self.parts):
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
        loss_sum = self._loss_sum()
        if not position.counted:
            raise ValueError(f"no step of epoch {position.epoch} had a finite loss: nothing learnt")
        self._validate()  # a signal may end it: the epoch is then closed again, from its loss on
        position.train_losses.append(loss_sum / position.counted)
        history = self._history(position)
        epoch = position.epoch
        change = history.change(epoch)
        loss, base = history.means[epoch], history.means[0]
        self.say(
            f"epoch {epoch}: validation loss {loss:.5f}, {100 * (loss / base - 1):+.2f} % from the "
            f"base ({100 * change.low / base:+.2f} to {100 * change.high / base:+.2f}); "
            f"train loss {position.train_losses[-1]:.5f}; best epoch {history.best}"
        )
        if self.ranks.is_first:
            self.kept.write(history, self.base, self.models, self.parts, self.metadata)
        self.position = position.next_epoch()
        is_last = history.end(self.params) is not None
        if self._heed_signals(is_last or self.cadence.is_due(within_epoch=False)):
            self._save()
            if self.ranks.is_first:
                self.kept.drop_once_best(history)

    def _loss_sum(self) -> float:
        """Add up what the processes have seen of the epoch."""
        total = torch.tensor(float(self.position.loss_sum), dtype=torch.float64)
        self.ranks.add_up([total])
        return float(total)

    def _save(self) -> None:
        """Write a checkpoint; all processes come here, the first one writes."""
        scaler = self.learner.scaler.state_dict()
        position = vars(self.position) | {"loss_sum": self._loss_sum(), "scaler": scaler}
        with self.cadence.saving():
            if self.ranks.is_first:
                parts = {name: part.state() for name, part in self.parts.items()}
                state = {"position": position, "parts": parts}
                save_checkpoint(self.checkpoints, self.position.step, state)
            self.ranks.wait()

    def _load_state(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state(state["parts"][name])
        self.position = Position(**state["position"])
        self.learner.scaler.load_state_dict(self.position.scaler)
        if not self.ranks.is_first:
            self.position.loss_sum = 0.0  # the first process holds the sum of all

    def _heed_signals(self, is_due: bool) -> bool:
        """Stop where any process was asked to; else tell whether any one's checkpoint is due."""
        agreed = self.ranks.agree(2 * self.signal_received() + is_due)
        if agreed > 1:
            raise _InterruptedError(agreed // 2)
        return agreed == 1

    def _save_and_stop(self, number: int) -> NoReturn:
        if self.position.errors:  # else there is nothing to keep yet
            self._save()
        self.say(f"stopped by {signal.Signals(number).name}; start it again and it goes on")
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


class _InterruptedError(Exception):
    """A signal asks to stop, at a moment when the run is whole."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
