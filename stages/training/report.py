"""What a finished run leaves to read: its metrics, its curves as tables, and the loss graph."""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.harness.files import replacing, write_json
from stages.training.history import History
from stages.training.params import TrainParams

DIGITS = 8  # of losses; float32 has no more to tell


def metrics(history: History, params: TrainParams) -> dict[str, Any]:
    """Sum a run up: the validation loss of the base, the lowest after it, and the change."""
    means, best = history.means, history.best
    change, start = history.change(best), means[0]
    return {
        "start": round(start, DIGITS),
        "minimum": round(means[best], DIGITS),
        "epoch_of_minimum": best,
        "change_percent": round(100 * (means[best] / start - 1), 4),
        "change_percent_low": round(100 * change.low / start, 4),
        "change_percent_high": round(100 * change.high / start, 4),
        "everydream2_start": round(history.everydream2(0), DIGITS),
        "everydream2_minimum": round(history.everydream2(best), DIGITS),
        "epochs": len(history) - 1,
        "stopped_early": len(history) - 1 < params.max_epochs,
        "kept_epochs": history.kept(params),
        "validation_examples": len(history.ids),
    }


def write_reports(folder: Path, name: str, history: History, params: TrainParams) -> None:
    """Write the tables, the figures and the graph of a run."""
    write_csv(
        folder / "loss.csv",
        ["epoch", "train_loss", "val_loss", "low", "high", "everydream2"],
        loss_rows(history),
    )
    write_csv(
        folder / "loss_by_timestep.csv",
        ["epoch", "part", "val_loss"],  # part 1 of K holds the least noise
        (
            [epoch, part, round(loss, DIGITS)]
            for epoch in range(len(history))
            for part, loss in enumerate(history.bins(epoch), start=1)
        ),
    )
    write_json(folder / "metrics.json", metrics(history, params))
    with replacing(folder / "loss.png") as scratch:
        draw_graph(scratch, name, history)


def loss_rows(history: History) -> Iterator[list[Any]]:
    """List a run's epochs; low and high bound val_loss as far as its change from the base goes."""
    start = history.means[0]
    for epoch, loss in enumerate(history.means):
        change = history.change(epoch)
        bounds = [start + change.low, start + change.high]
        train_loss = round(history.train_losses[epoch - 1], DIGITS) if epoch else ""
        rounded = [round(x, DIGITS) for x in (loss, *bounds, history.everydream2(epoch))]
        yield [epoch, train_loss, *rounded]


def write_csv(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    """Write a table whose bytes depend on its values alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    with replacing(path) as scratch:
        scratch.write_text(text.getvalue(), encoding="utf-8")


def draw_graph(path: Path, name: str, history: History) -> None:
    """Draw the loss by epoch: validation with its interval, training, and the best epoch."""
    from matplotlib.figure import Figure  # slow to import, and training needs none of it
    from matplotlib.ticker import MaxNLocator

    rows = list(loss_rows(history))
    epochs = [row[0] for row in rows]
    best, means = history.best, history.means
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(
        epochs,
        [row[3] for row in rows],
        [row[4] for row in rows],
        color="#1f6feb",
        alpha=0.18,
        linewidth=0,
        label="change from the base, 95 % interval",
    )
    axes.plot(epochs, means, color="#1f6feb", linewidth=2, label="validation")
    axes.axhline(means[0], color="#8b949e", linewidth=1, linestyle=":")
    axes.plot([best], [means[best]], "o", color="#d1242f", markersize=8)
    change = 100 * (means[best] / means[0] - 1)
    axes.annotate(
        f"epoch {best}: {means[best]:.5f} ({change:+.2f} %)",
        (best, means[best]),
        xytext=(0, -18),
        textcoords="offset points",
        ha="left" if best < len(means) / 2 else "right",
        color="#d1242f",
    )
    axes.set(title=f"Run {name}: validation loss by epoch", xlabel="epoch")
    axes.set_ylabel("validation loss", color="#1f6feb")
    axes.margins(y=0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    # losses in training are of other pictures, timesteps and noise: another scale
    training = axes.twinx()
    training.plot(epochs[1:], history.train_losses, color="#bf8700", linewidth=1, label="training")
    training.set_ylabel("training loss", color="#9a6700")
    training.spines["top"].set_visible(False)
    handles = [h for a in (axes, training) for h in a.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})
