"""Fine-tune a base on the pictures of a manifest, until validation trends up.

  python -m stages.train RUN --base FILE --config DIR --train FILE --validation FILE
                             --out DIR --report DIR

RUN names a section of the params, `train.RUN`, such as 512. The folder --out becomes the weights
of every checkpoint_every_epochs-th epoch and of the best one, as epoch_010.safetensors; --report
holds loss.csv, loss_by_timestep.csv, metrics.json and loss.png.

Epochs are kept in .work/train while it runs. Killed at any moment, it goes on where it was when
started again with the same command; more max_epochs or another stop_patience go on too.
"""

import argparse
import ast
import csv
import functools
import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.diffusion.ancestry import made_from, read_parent
from stages.harness.files import replacing, sha256_file, sha256_folder, sha256_json, write_json
from stages.harness.params import load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.harness.scratch import exclusive, replacing_folder, work_dir
from stages.harness.threads import wait_politely
from stages.images.manifest import Entry, read_manifest, read_pictures

if TYPE_CHECKING:  # what imports torch waits for `wait_politely`
    from stages.diffusion.dataset import Example
    from stages.diffusion.history import History
    from stages.diffusion.train_params import TrainParams

RUN_NAME = re.compile(r"[A-Za-z0-9_-]+")
ROOT = Path(__file__).parent.parent
DIGITS = 8  # of losses in reports; float32 has no more to tell

say = functools.partial(print, flush=True)


def run(
    name: str,
    base: Path,
    config: Path,
    manifests: tuple[Path, Path],
    out: Path,
    report: Path,
    params: "TrainParams",
    work: Path | None = None,
) -> None:
    """Train one run and publish what is kept of it.

    Args:
        name: of the run.
        base: a single file in the original SD 1.x layout.
        config: the diffusers folder that describes it.
        manifests: of the examples to train on, and of those to validate on.
        out: becomes the folder of weights; that of an earlier run is replaced.
        report: a folder.
        params: the section `train.<name>`.
        work: scratch that outlives the process; by default `.work/train`.

    Raises:
        ValueError: if an input is bad, or training diverges.
        OSError: if a file is missing, another process is at the same work, or the disk is full.
    """
    from stages.diffusion.header import read_header
    from stages.diffusion.loop import train
    from stages.diffusion.model import load_models

    entries, validation_entries = (read_manifest(path) for path in manifests)
    parent = read_parent(base, read_header(base).metadata)
    data = {
        side: sha256_file(p) for side, p in zip(("train", "validation"), manifests, strict=True)
    }
    inputs = {"base": parent.sha256, "config": sha256_folder(config), "code": code_hash(), **data}
    recipe = {"kind": "train", "run": name, "params": params.without_ends(), "data": data}
    fingerprint = sha256_json([params.without_ends(), inputs, name])
    scratch = (work or work_dir("train")) / name / fingerprint[:16]
    say(f"train {name}: {base}, {manifests[0]} ({len(entries):,} pictures); scratch in {scratch}")
    with exclusive(scratch):
        trained = train(
            load_models(base, config),
            Pictures(entries),
            Pictures(validation_entries),
            params,
            scratch,
            inputs=sha256_json(inputs),
            metadata=made_from(recipe, {"base": parent}),
            say=say,
        )
        with replacing_folder(out, "*.safetensors") as folder:
            for path in trained.weights.values():
                hand_over(path, folder / path.name)
    write_reports(report, name, trained.history, params)
    summary = metrics(trained.history, params)
    say(
        f"train {name}: validation loss {summary['start']:.5f} -> {summary['minimum']:.5f} "
        f"({summary['change_percent']:+.2f} %) at epoch {summary['epoch_of_minimum']} of "
        f"{summary['epochs']}; {len(trained.weights)} checkpoints in {out}"
    )


@dataclass(frozen=True, slots=True)
class Pictures:
    """The examples of a manifest, read one by one when they are asked for."""

    entries: list[Entry]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator["Example"]:
        from stages.diffusion.dataset import Example

        for entry, image in read_pictures(self.entries):
            yield Example(entry.id, entry.caption, image)


def code_hash() -> str:
    """Hash this module and those of ours that it imports, all the way down."""
    found: dict[str, str] = {}
    waiting = ["stages.train"]
    for module in waiting:
        path = ROOT / (module.replace(".", "/") + ".py")
        if module not in found and path.is_file():
            found[module] = sha256_file(path)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = (f"{node.module}.{alias.name}" for alias in node.names)
                    waiting += (n for n in (node.module, *names) if n.startswith("stages."))
    return sha256_json(found)


def hand_over(path: Path, to: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)


def metrics(history: "History", params: "TrainParams") -> dict[str, Any]:
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


def write_reports(folder: Path, name: str, history: "History", params: "TrainParams") -> None:
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


def loss_rows(history: "History") -> Iterator[list[Any]]:
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


def draw_graph(path: Path, name: str, history: "History") -> None:
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


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = _parser().parse_args(argv)
    wait_politely()
    from stages.diffusion.train_params import TrainParams

    with clear_errors():
        if not RUN_NAME.fullmatch(options.run):
            raise ValueError(f"RUN {options.run!r}: letters, digits, _ and - make a run's name")
        run(
            options.run,
            options.base,
            options.config,
            (options.train, options.validation),
            options.out,
            options.report,
            load_params(f"{options.section}.{options.run}", TrainParams, options.params),
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="name of the params' section train.RUN")
    parser.add_argument(
        "--section",
        default="train",
        metavar="NAME",
        help="where RUN is looked for (default: train)",
    )
    for name, metavar, text in (
        ("base", "FILE", "the model to start from, a .safetensors in the original layout"),
        ("config", "DIR", "the diffusers folder that describes it"),
        ("train", "FILE", "manifest of the pictures to train on"),
        ("validation", "FILE", "manifest of the pictures held out"),
        ("out", "DIR", "becomes the folder of weights"),
        ("report", "DIR", "folder of losses, figures and the graph"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar=metavar, help=text)
    add_params_option(parser)
    return parser


if __name__ == "__main__":
    main()
