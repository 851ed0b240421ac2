"""Validation losses of a run's checkpoints, as candidates of a choice."""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path

CHECKPOINT = re.compile(r"(?:.*-)?epoch_0*(\d+)")


def validation_losses(path: Path, candidates: Sequence[str]) -> dict[str, float]:
    """Read the loss of each candidate, `epoch_010` being that of the row whose epoch is 10.

    Args:
        path: a run's loss.csv, with columns epoch and val_loss at least.
        candidates: names of checkpoints.

    Returns:
        By candidate; infinity, which is worse than any, where the loss is no finite number.

    Raises:
        ValueError: if a column is missing, or a candidate is no epoch of this run.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := {"epoch", "val_loss"} - set(reader.fieldnames or ()):
            raise ValueError(f"{path}: no column {sorted(missing)[0]!r}. Is this a loss.csv?")
        by_epoch = {int(row["epoch"]): float(row["val_loss"]) for row in reader if row["val_loss"]}
    losses = {}
    for name in candidates:
        found = CHECKPOINT.fullmatch(name)
        if found is None or int(found[1]) not in by_epoch:
            raise ValueError(
                f"{path}: no loss of {name!r}; it holds epochs {', '.join(map(str, by_epoch))}. "
                "Do weights and losses come from one run?"
            )
        loss = by_epoch[int(found[1])]
        losses[name] = loss if math.isfinite(loss) else math.inf
    return losses
