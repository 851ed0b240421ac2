"""Fine-tuning: epochs over the examples, a validation after each, and what is kept of them.

Everything random belongs to a key of (seed, example id, epoch), and the order of batches to
(seed, epoch). So a run is at any moment described by its weights, its optimizer and its position,
and goes on from a checkpoint as if it had never stopped.
"""

import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from stages.diffusion import noise
from stages.diffusion.checkpoint import (
    interruptions,
    load_checkpoint,
    load_optimizer_state,
    optimizer_state,
    save_checkpoint,
)
from stages.diffusion.dataset import NO_CAPTION, Dataset, Example, encode, epoch_batches
from stages.diffusion.history import History
from stages.diffusion.loss import min_snr_weights, noise_errors
from stages.diffusion.model import Models, save_single_file
from stages.diffusion.optimizers import build_optimizer
from stages.diffusion.train_params import PRECISIONS, TrainParams
from stages.diffusion.validation import validation_errors
from stages.harness.files import replacing, sha256_bytes, sha256_json
from stages.harness.progress import Progress
from stages.images.bucket import buckets

Say = Callable[[str], None]


def say_nothing(line: str) -> None:
    """Keep a line of progress to oneself."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a finished run leaves."""

    history: History
    weights: dict[int, Path]  # single files by epoch, in the scratch folder


@dataclass
class Position:
    """How far a run is, and the loss of the epoch under way."""

    epoch: int = 1  # under way
    epoch_step: int = 0  # optimizer steps done in it
    step: int = 0  # optimizer steps done in all
    seen: int = 0  # examples of this epoch
    loss_sum: float | Tensor = 0.0  # over them; a tensor, so that no step waits for the device
    train_losses: list[float] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)  # (N, K) of each validation


@dataclass
class Part:
    """A network that learns."""

    network: nn.Module
    optimizer: Optimizer
    weights: list[Tensor]
    average: list[Tensor]  # running average of the weights; empty without EMA

    def state(self) -> dict[str, Any]:
        """Give all that changes, for a checkpoint."""
        return {
            "weights": list(self.weights),
            "average": self.average,
            "optimizer": optimizer_state(self.optimizer),
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        for weight, saved in zip(self.weights, state["weights"], strict=True):
            weight.copy_(saved)
        for mean, saved in zip(self.average, state["average"], strict=True):
            mean.copy_(saved)
        load_optimizer_state(self.optimizer, state["optimizer"])


def train(
    models: Models,
    examples: Iterable[Example],
    validation_examples: Iterable[Example],
    params: TrainParams,
    scratch: Path,
    *,
    inputs: str | None = None,
    metadata: Mapping[str, str] | None = None,
    device: torch.device | str | None = None,
    say: Say = say_nothing,
    save_every_s: float = 300,
) -> Trained:
    """Fine-tune until validation trends up or `max_epochs`; go on with what `scratch` holds.

    Killed at any moment and called again, it ends with the weights of an unbroken run.

    Args:
        models: the base; changed in place, and of no further use.
        examples: to learn from; read once, in any order.
        validation_examples: to measure by.
        params: of this run.
        scratch: a folder for this run alone; `max_epochs` and `stop_patience` may change
            between calls, anything else asks for another folder.
        inputs: a hash that names base and examples; made from their bytes if None, which reads
            every picture again at each start.
        metadata: written into the weights, with the epoch; see `write_single_file`.
        device: where to train; the first GPU if there is one, else the CPU.
        say: is told lines of progress.
        save_every_s: least time between two checkpoints within an epoch.

    Raises:
        ValueError: if the examples are bad, the scratch folder is another run's, or the loss is
            no longer finite.
        KeyboardInterrupt, SystemExit: after SIGINT or SIGTERM, with a checkpoint written.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    _claim(scratch, params, inputs or _hash_inputs(models, examples, validation_examples))
    run = _Run(models, params, scratch, dict(metadata or {}), place, say, save_every_s)
    run.prepare(examples, validation_examples)
    return run.to_the_end()


class _Run:
    """A run in memory: data, networks, position."""

    def __init__(
        self,
        models: Models,
        params: TrainParams,
        scratch: Path,
        metadata: dict[str, str],
        device: torch.device,
        say: Say,
        save_every_s: float,
    ) -> None:
        self.models, self.params, self.scratch = models, params, scratch
        self.metadata, self.device, self.say = metadata, device, say
        self.save_every_s = save_every_s
        self.total_timesteps = int(models.noise_scheduler.config.num_train_timesteps)
        self.weight_at = _timestep_weights(models, params).to(device)
        self.position = Position()
        self.signal_received: Callable[[], int] = lambda: 0
        self.checkpoints = scratch / "checkpoints"

    def prepare(self, examples: Iterable[Example], validation_examples: Iterable[Example]) -> None:
        """Encode the examples, or read what an earlier start encoded; then set up the networks."""
        self.dataset = self._encoded("train", examples)
        self.validation = self._encoded("validation", validation_examples)
        self.models.vae.cpu()
        self.parts = self._parts()
        trained = sum(weight.numel() for part in self.parts.values() for weight in part.weights)
        shapes = len({latents.shape for latents in self.dataset.latents})
        self.say(
            f"{len(self.dataset):,} examples in {shapes} buckets, {len(self.validation):,} more "
            f"for validation; {trained / 1e6:.1f} M weights to train on {self.device}; "
            f"{len(self._steps(1)):,} steps an epoch, at most {self.params.max_epochs} epochs"
        )

    def to_the_end(self) -> Trained:
        """Train what is left of the run."""
        state = load_checkpoint(self.checkpoints, self.device, self.say)
        if state and self._leads_on(state):
            self._load_state(state)
            self.say(f"going on in epoch {self.position.epoch}, step {self.position.epoch_step}")
        with interruptions() as self.signal_received:
            try:
                if not self.position.errors:
                    self._validate()
                    self.say(f"base: validation loss {self._history(self.position).means[0]:.5f}")
                while (end := self._history(self.position).end(self.params)) is None:
                    self._train_epoch()
                    self._close_epoch()
            except _InterruptedError:
                self._save_and_stop()
        history = self._history(self.position).until(end)
        return Trained(history, self._weights_paths(history))

    def _history(self, position: Position) -> History:
        """Give the figures of all finished epochs."""
        errors = torch.stack(position.errors).cpu().numpy()
        return History(self.validation.ids, errors, tuple(position.train_losses))

    def _leads_on(self, state: dict[str, Any]) -> bool:
        """Tell whether a checkpoint leads to where params now end; if not, clear the way.

        A run that went further than they now ask for may have dropped weights that were the best
        of its first epochs.
        """
        history = self._history(Position(**state["position"]))
        if (end := history.end(self.params)) is None:
            return True
        wanted = self._weights_paths(history.until(end))
        if all(path.is_file() for path in wanted.values()):
            return True
        self.say(f"the best of the first {end} epochs was not kept: training anew")
        shutil.rmtree(self.checkpoints)
        shutil.rmtree(self.scratch / "weights")
        return False

    def _encoded(self, name: str, examples: Iterable[Example]) -> Dataset:
        """Encode examples once per scratch folder."""
        params, path = self.params, self.scratch / f"{name}.safetensors"
        if not path.is_file():
            for network in (self.models.vae, self.models.text_encoder):
                nn.Module.to(network, self.device).eval()
            progress = Progress(f"encode {name}", _length(examples))
            dataset = encode(
                self.models,
                examples,
                buckets(params.resolution, params.max_aspect, params.bucket_step_px),
                keep_tokens=params.trains_text_encoder,
                dtype=PRECISIONS[params.precision],
                on_example=progress.advance,
            )
            if not len(dataset):
                raise ValueError(f"there are no examples for {name}; is the manifest empty?")
            _write_dataset(path, dataset)
            progress.close()
        return _read_dataset(path)

    def _parts(self) -> dict[str, Part]:
        """Set up what learns; the rest of the networks is left on the CPU."""
        rates = {"unet": self.params.learning_rate}
        if self.params.trains_text_encoder:
            rates["text_encoder"] = self.params.text_encoder_learning_rate
        else:
            self.models.text_encoder.cpu()
        parts = {}
        for name, rate in rates.items():
            network: nn.Module = getattr(self.models, name)
            network.to(self.device).requires_grad_(True)
            weights: list[Tensor] = list(network.parameters())
            if dtypes := {w.dtype for w in weights} - {torch.float32}:
                raise ValueError(f"{name} is in {dtypes.pop()}; load the base in float32 to train")
            for weight in weights:
                if weight.dim() == 4:  # the fast convolutions of CPU and GPU want channels last
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
            parts[name] = Part(
                network=network,
                optimizer=build_optimizer(
                    self.params.optimizer, weights, rate, self.params.weight_decay
                ),
                weights=weights,
                average=[w.detach().clone() for w in weights] if self.params.ema_decay else [],
            )
        return parts

    def _steps(self, epoch: int) -> list[list[list[int]]]:
        """List an epoch's optimizer steps, each a list of batches of rows."""
        batches = epoch_batches(self.dataset, self.params.batch_size, self.params.seed, epoch)
        size = self.params.gradient_accumulation
        return [batches[start : start + size] for start in range(0, len(batches), size)]

    def _train_epoch(self) -> None:
        """Train what is left of the epoch under way."""
        position = self.position
        steps = self._steps(position.epoch)
        for part in self.parts.values():
            part.network.train()
        progress = Progress(
            f"epoch {position.epoch} of at most {self.params.max_epochs}",
            len(self.dataset) - position.seen,
        )
        saved = time.monotonic()
        for step in steps[position.epoch_step :]:
            self._step(step)
            progress.advance(sum(map(len, step)))
            self._heed_signals()
            if time.monotonic() - saved >= self.save_every_s:
                self._save()
                saved = time.monotonic()
        if progress.done:
            progress.close()

    def _step(self, batches: list[list[int]]) -> None:
        """Move the weights once, by the mean gradient over the examples of all batches."""
        position, params = self.position, self.params
        count = sum(map(len, batches))
        for rows in batches:
            latents, noise_, timesteps, captions = self._drawn(rows)
            errors = self._errors(latents, noise_, timesteps, captions)
            ((self.weight_at[timesteps] * errors).sum() / count).backward()
            position.loss_sum = position.loss_sum + errors.detach().double().sum()
        weights = [weight for part in self.parts.values() for weight in part.weights]
        if params.max_gradient_norm:
            nn.utils.clip_grad_norm_(weights, params.max_gradient_norm)
        for part in self.parts.values():
            part.optimizer.step()
            part.optimizer.zero_grad(set_to_none=True)
            if part.average:
                decay = min(params.ema_decay, (1 + position.step) / (10 + position.step))
                with torch.no_grad():
                    torch._foreach_lerp_(part.average, part.weights, 1 - decay)
        position.seen += count
        position.step += 1
        position.epoch_step += 1

    def _drawn(self, rows: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Collect a batch and draw its noise, timesteps and left-out captions, on the device."""
        params, epoch = self.params, self.position.epoch
        batch = self.dataset.take(rows)
        shape = tuple(batch.latents.shape[1:])
        keys = [(params.seed, "train", id_, epoch) for id_ in batch.ids]
        noises = torch.stack([noise.draw_noise(shape, params.noise_offset, *key) for key in keys])
        timesteps = torch.tensor(
            [int(self.total_timesteps * noise.draw_uniform(*key)) for key in keys]
        )
        dropped = torch.tensor(
            [noise.draw_uniform(*key, "caption") < params.caption_dropout for key in keys]
        )
        captions = batch.captions
        captions[dropped] = self.dataset.captions[NO_CAPTION]
        return (
            batch.latents.to(self.device, torch.float32),
            noises.to(self.device),
            timesteps.to(self.device),
            captions.to(self.device),
        )

    def _errors(
        self, latents: Tensor, noise_: Tensor, timesteps: Tensor, captions: Tensor
    ) -> Tensor:
        """Measure the UNet's errors, (B,); captions are embeddings or token ids."""
        dtype = PRECISIONS[self.params.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            if self.params.trains_text_encoder:
                captions = self.models.text_encoder(captions).last_hidden_state
            return noise_errors(
                self.models.unet,
                self.models.noise_scheduler,
                latents.contiguous(memory_format=torch.channels_last),
                noise_,
                timesteps,
                captions,
            )

    def _measure(self, *batch: Tensor) -> Tensor:
        self._heed_signals()
        return self._errors(*batch)

    def _validate(self) -> None:
        """Measure the weights that would be kept now."""
        for part in self.parts.values():
            part.network.eval()
        with self._averaged():
            errors = validation_errors(
                self._measure,
                self.validation,
                seed=self.params.seed,
                timesteps_per_example=self.params.validation_timesteps,
                total_timesteps=self.total_timesteps,
                batch_size=self.params.batch_size,
                device=self.device,
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
        """Validate, keep the weights if they are wanted, and write a checkpoint."""
        position = self.position
        position.train_losses.append(float(position.loss_sum) / position.seen)
        self._validate()
        history = self._history(position)
        epoch = position.epoch
        change = history.change(epoch)
        loss, base = history.means[epoch], history.means[0]
        self.say(
            f"epoch {epoch}: validation loss {loss:.5f}, {100 * (loss / base - 1):+.2f} % from the "
            f"base ({100 * change.low / base:+.2f} to {100 * change.high / base:+.2f}); "
            f"train loss {position.train_losses[-1]:.5f}; best epoch {history.best}"
        )
        kept = self._weights_paths(history)
        if epoch in kept:
            self._keep(epoch)
        self.position = Position(
            epoch=epoch + 1,
            step=position.step,
            train_losses=position.train_losses,
            errors=position.errors,
        )
        self._save()
        for path in set((self.scratch / "weights").glob("epoch_*.safetensors")) - {*kept.values()}:
            path.unlink()  # once the best

    def _keep(self, epoch: int) -> None:
        with self._averaged():
            save_single_file(
                self._weights_path(epoch),
                self.models.unet,
                self.models.vae,
                self.models.text_encoder,
                {**self.metadata, "epoch": str(epoch)},
            )

    def _weights_paths(self, history: History) -> dict[int, Path]:
        """Name the files that are kept of a run with this history."""
        return {epoch: self._weights_path(epoch) for epoch in history.kept(self.params)}

    def _weights_path(self, epoch: int) -> Path:
        return self.scratch / "weights" / f"epoch_{epoch:03}.safetensors"

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the running average in the weights' place for a while, if there is one."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for part in self.parts.values():
            if part.average:
                for weight, mean in zip(part.weights, part.average, strict=True):
                    weight.data, mean.data = mean.data, weight.data

    def _save(self) -> None:
        position = vars(self.position) | {"loss_sum": float(self.position.loss_sum)}
        parts = {name: part.state() for name, part in self.parts.items()}
        save_checkpoint(
            self.checkpoints, self.position.step, {"position": position, "parts": parts}
        )

    def _load_state(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state(state["parts"][name])
        self.position = Position(**state["position"])
        self.position.errors = [errors.cpu() for errors in self.position.errors]

    def _heed_signals(self) -> None:
        if self.signal_received():
            raise _InterruptedError

    def _save_and_stop(self) -> NoReturn:
        """Save, if there is anything yet, and end as the signal would have ended the process."""
        if self.position.errors:
            self._save()
            self.say(f"saved in epoch {self.position.epoch}; start again to go on")
        if self.signal_received() == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.signal_received())


class _InterruptedError(Exception):
    """A signal asks to stop, at a moment when the run is whole."""


def _claim(scratch: Path, params: TrainParams, inputs: str) -> None:
    """Make a scratch folder this run's, or see that it is."""
    name = sha256_json({"params": params.without_ends(), "inputs": inputs})
    path = scratch / "run"
    if path.is_file() and (found := path.read_text(encoding="utf-8")) != name:
        raise ValueError(
            f"{scratch} holds another run ({found[:12]}, not {name[:12]}): other params, examples "
            "or base. Give each run its own folder, or remove this one"
        )
    with replacing(path) as partial:
        partial.write_text(name, encoding="utf-8")


def _hash_inputs(models: Models, *sides: Iterable[Example]) -> str:
    """Name base and examples by their bytes, whatever the order of the examples."""
    weights = [
        sha256_bytes(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        for network in (models.unet, models.vae, models.text_encoder)
        for tensor in network.state_dict().values()
    ]
    examples = [
        sorted((example.id, example.caption, sha256_bytes(example.image)) for example in side)
        for side in sides
    ]
    return sha256_json([weights, examples])


def _timestep_weights(models: Models, params: TrainParams) -> Tensor:
    """Weigh the error at each timestep: (1000,)."""
    predicts = models.noise_scheduler.config.prediction_type
    if predicts != "epsilon":
        raise ValueError(f"the base predicts {predicts!r}; only epsilon can be trained so far")
    if params.min_snr_gamma:
        return min_snr_weights(models.noise_scheduler, params.min_snr_gamma)
    return torch.ones(int(models.noise_scheduler.config.num_train_timesteps))


def _length(examples: Iterable[Example]) -> int:
    return len(examples) if isinstance(examples, Sized) else 0


def _write_dataset(path: Path, dataset: Dataset) -> None:
    latents = {f"latents/{id_}": t for id_, t in zip(dataset.ids, dataset.latents, strict=True)}
    tensors = {"captions": dataset.captions, "caption_rows": dataset.caption_rows}
    with replacing(path) as scratch:
        save_file({**latents, **tensors}, scratch)


def _read_dataset(path: Path) -> Dataset:
    tensors = load_file(path)
    captions, caption_rows = tensors.pop("captions"), tensors.pop("caption_rows")
    ids = sorted(key.removeprefix("latents/") for key in tensors)
    latents = tuple(tensors[f"latents/{id_}"] for id_ in ids)
    return Dataset(tuple(ids), latents, caption_rows, captions)
