"""Loss curves as SVG that takes the page's own ink, so that light and dark schemes can read it."""

import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stages.page.findings import Run

INK = "#010203"  # no curve has it; the page's text colour takes its place
VALIDATION, TRAINING, PICKED = "#3b82f6", "#d97706", "#e5484d"
STYLE: Any = {
    "svg.hashsalt": "cosmopolitan",  # ids in the file come from it, not from chance
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
}


def draw_run(run: Run, picked: int | None) -> str:
    """Draw a run's losses by epoch, validation above and training below: their scales differ.

    Args:
        run: its name, epochs and figures.
        picked: the epoch that was chosen, marked; None if nobody chose.

    Returns:
        An `<svg>` element.
    """
    epochs = [row.epoch for row in run.epochs]
    losses = [row.val_loss for row in run.epochs]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
        upper.fill_between(
            epochs,
            [row.low for row in run.epochs],
            [row.high for row in run.epochs],
            color=VALIDATION,
            alpha=0.2,
            linewidth=0,
            label="95 % interval of the change from the base",
        )
        upper.plot(epochs, losses, "o-", color=VALIDATION, markersize=4, label="validation loss")
        upper.axhline(losses[0], color=INK, linewidth=1, linestyle=":", label="the base")
        if picked in epochs:
            loss = losses[epochs.index(picked)]
            upper.axvline(picked, color=PICKED, linewidth=1, linestyle="--")
            upper.plot(
                [picked],
                [loss],
                "D",
                color=PICKED,
                markersize=8,
                label=f"picked: epoch {picked}, {loss:.5f}",
            )
        upper.set_ylabel("validation loss")
        upper.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9, ncols=1)
        trained = [row for row in run.epochs if row.train_loss is not None]
        lower.plot(
            [row.epoch for row in trained],
            [row.train_loss for row in trained],
            "o-",
            color=TRAINING,
            markersize=3,
        )
        lower.set(xlabel="epoch (0 is the base)", ylabel="training loss")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _as_svg(figure)


def draw_both(before: Run | None, after: Run | None, *names: str) -> str:
    """Draw a run's validation loss by epoch at two commits, in one picture.

    Args:
        before: the run at the one; None if it had no such run.
        after: the run at the other.
        names: of both commits.

    Returns:
        An `<svg>` element.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = figure.subplots()
        labels = []
        sides = zip((before, after), names, (INK, VALIDATION), ("o:", "o-"), strict=True)
        for run, name, colour, line in sides:
            if run is None:
                continue
            epochs = [row.epoch for row in run.epochs]
            losses = [row.val_loss for row in run.epochs]
            best = min(run.epochs, key=lambda row: row.val_loss)
            labels.append(f"{name}: {best.val_loss:.5f} at epoch {best.epoch}")
            axes.plot(epochs, losses, line, color=colour, markersize=4, label="a commit")
        axes.set(xlabel="epoch (0 is the base)", ylabel="validation loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9)
        # A branch may be called _slow, which matplotlib would hide, or a$b$c, which is no formula.
        for text, label in zip(legend.get_texts(), labels, strict=True):
            text.set(text=label, parse_math=False)
        return _as_svg(figure)


def _as_svg(figure: Figure) -> str:
    """Write a figure as an element whose bytes depend on what it shows alone."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # the page scales it, and tells screen readers what it is
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace(INK, "currentColor")
