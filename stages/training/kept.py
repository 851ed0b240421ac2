"""What a run keeps of its epochs in its scratch folder: weights, and pictures to look at."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from stages.diffusion.model import Base, Models, save_trained
from stages.harness.counted import counted
from stages.harness.files import sha256_json
from stages.training.history import History
from stages.training.params import TrainParams
from stages.training.part import Part
from stages.training.preview import draw_preview


class Kept:
    """The files by epoch: which are wanted, where they lie, and how they come to be."""

    def __init__(self, scratch: Path, params: TrainParams, say: Callable[[str], None]) -> None:
        self.weights = scratch / "weights"
        self.samples = scratch / "samples"
        self.params, self.say = params, say
        self.previews_left_out = 0  # by this process
        self._wanted_before: set[Path] | None = None  # by the checkpoint before; None: not known

    def weights_paths(self, history: History) -> dict[int, Path]:
        """Name the single files that are kept of a run with this history."""
        return {epoch: self._weights_path(epoch) for epoch in history.kept(self.params)}

    def sample_paths(self, end: int) -> dict[int, Path]:
        """Find the pictures that were drawn up to an epoch."""
        paths = {epoch: self._sample_path(epoch) for epoch in range(1, end + 1)}
        return {epoch: path for epoch, path in paths.items() if path.is_file()}

    def tell_missing_samples(self, end: int) -> None:
        """Say which epochs up to one have no picture, as those trained for other prompts."""
        every = self.params.samples.every_epochs
        drawn = self.sample_paths(end)
        missing = [e for e in range(every, end + 1, every) if e not in drawn] if every else []
        if missing:
            epochs = f"epoch{'s' if missing[1:] else ''} {', '.join(map(str, missing[:8]))}"
            self.say(
                f"no sample pictures with these prompts of {epochs}{' …' if missing[8:] else ''}: "
                f"none were drawn in training. To have them, remove {self.weights.parent}, "
                "and all epochs are trained anew"
            )

    def write(
        self,
        history: History,
        base: Base,
        models: Models,
        parts: dict[str, Part],
        metadata: Mapping[str, str],
    ) -> None:
        """Write what is wanted of the last epoch of a history.

        Args:
            history: of the run so far.
            base: gives what `models` no longer holds.
            models: the trained networks among them.
            parts: what learnt, by name.
            metadata: written into the weights, with the epoch.
        """
        epoch = len(history) - 1
        samples, sample_path = self.params.samples, self._sample_path(epoch)
        is_drawn = samples.every_epochs and epoch % samples.every_epochs == 0
        with as_kept(parts):
            if path := self.weights_paths(history).get(epoch):
                text = {**metadata, "epoch": str(epoch)}
                save_trained(path, base.weights, models, parts, text)
            if is_drawn and not sample_path.is_file():
                side_px, precision = self.params.resolution, self.params.precision
                try:
                    draw_preview(sample_path, base, models, samples, side_px, precision)
                except torch.OutOfMemoryError:
                    self._leave_out_preview(epoch)

    def drop_once_best(self, history: History) -> None:
        """Delete weights that were the best for a while, and that no checkpoint wants any more.

        The checkpoint before the last is kept for when that one is damaged.
        """
        wanted = set(self.weights_paths(history).values())
        if self._wanted_before is not None:
            found = {*self.weights.glob("epoch_*.safetensors")}
            for path in found - wanted - self._wanted_before:
                path.unlink()
        self._wanted_before = wanted

    def _leave_out_preview(self, epoch: int) -> None:
        """Say that pictures are missing; a run that fits is not to end for them."""
        self.previews_left_out += 1
        so_far = counted(self.previews_left_out, "epoch")
        self.say(
            f"epoch {epoch}: no memory for a sample picture of {self.params.resolution} px beside "
            f"what trains; left out, for {so_far} so far. To draw none, set samples.every_epochs "
            "to 0, with which this run goes on; as another run, optimizer adamw8bit or ema_decay 0 "
            "leave more room"
        )

    def _weights_path(self, epoch: int) -> Path:
        return self.weights / f"epoch_{epoch:03}.safetensors"

    def _sample_path(self, epoch: int) -> Path:
        """Name the picture of an epoch; other prompts are another series."""
        series = sha256_json(dataclasses.asdict(self.params.samples))[:8]
        return self.samples / series / f"epoch_{epoch:03}.png"


@contextmanager
def as_kept(parts: dict[str, Part]) -> Iterator[None]:
    """Let all parts hold the weights that would be kept, for a while."""
    with ExitStack() as stack:
        for part in parts.values():
            stack.enter_context(part.as_kept())
        yield
