"""Where a run goes on: when its checkpoints are written, what they hold, and taking them up."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.training.cadence import Cadence
from stages.training.checkpoint import load_checkpoint, save_checkpoint
from stages.training.kept import Kept
from stages.training.learner import Learner
from stages.training.position import Position


class Checkpoints:
    """A run's checkpoints; all its processes write and take them up together."""

    def __init__(
        self,
        folder: Path,
        learner: Learner,
        kept: Kept,
        validation_ids: tuple[str, ...],
        say: Callable[[str], None],
        pause_s: float,
    ) -> None:
        """Begin to count the time.

        Args:
            folder: for them alone.
            learner: whose parts and whose scale of float16's gradients they hold.
            kept: the files of earlier epochs, which a checkpoint counts on.
            validation_ids: of the examples that the position has errors of.
            say: is told lines of progress.
            pause_s: see `Cadence`.
        """
        self.folder, self.learner, self.kept, self.say = folder, learner, kept, say
        self.validation_ids = validation_ids
        self.cadence = Cadence(pause_s)

    def save(self, position: Position) -> None:
        """Write one; all processes come here, the first one writes."""
        learner = self.learner
        loss_sum, scaler = position.loss_of_all(learner.ranks), learner.scaler.state_dict()
        with self.cadence.saving():
            if learner.ranks.is_first:
                state = {
                    "position": vars(position) | {"loss_sum": loss_sum, "scaler": scaler},
                    "parts": {name: part.state() for name, part in learner.parts.items()},
                }
                save_checkpoint(self.folder, position.step, state)
            learner.ranks.wait()

    def take_up(self) -> Position:
        """Go on with the newest one, or start anew if there is none.

        Raises:
            ValueError: if the processes find different ones.
        """
        position = Position()
        state = load_checkpoint(self.folder, self.say)
        if state and self._leads_on(Position(**state["position"])):
            position = self._restored(state)
        if not self.learner.ranks.all_have(position.step):
            raise ValueError(
                f"{self.folder}: this process found a checkpoint of step {position.step}, "
                "another process another one or none. All machines must see one and the same .work"
            )
        if position.step:
            self.say(f"going on in epoch {position.epoch}, step {position.epoch_step}")
        return position

    def _leads_on(self, position: Position) -> bool:
        """Tell whether a checkpoint leads to where params now end; if not, clear the way.

        A run that went further than they now ask for may have dropped weights that were the best
        of its first epochs.
        """
        history = position.history(self.validation_ids)
        if (end := history.end(self.learner.params)) is None:
            return True
        wanted = self.kept.weights_paths(history.until(end))
        leads_on = all(path.is_file() for path in wanted.values())
        self.learner.ranks.wait()  # all have looked
        if not leads_on and self.learner.ranks.is_first:
            self.say(f"the best of the first {end} epochs was not kept: training anew")
            shutil.rmtree(self.folder)
            shutil.rmtree(self.kept.weights)
        return leads_on

    def _restored(self, state: dict[str, Any]) -> Position:
        """Put the parts back to where they were; give the position."""
        for name, part in self.learner.parts.items():
            part.load_state(state["parts"][name])
        position = Position(**state["position"])
        self.learner.scaler.load_state_dict(position.scaler)
        if not self.learner.ranks.is_first:
            position.loss_sum = 0.0  # the first process holds the sum of all
        return position
