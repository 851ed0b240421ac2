"""Fine-tune a base on the pictures of a manifest, until validation trends up.

  python -m stages.train RUN --base MODEL --config DIR --train FILE --validation FILE
                             --out DIR --report DIR

MODEL is a .safetensors in the original SD 1.x layout, or a diffusers folder. RUN names a section
of the params, `train.RUN`, such as 512. The folder --out becomes the weights
of every checkpoint_every_epochs-th epoch and of the best one, as epoch_010.safetensors; --report
holds loss.csv, loss_by_timestep.csv, metrics.json, loss.png and the pictures drawn on the way.

Epochs are kept in .work/train while it runs. Killed at any moment, it goes on where it was when
started again with the same command; more max_epochs or another stop_patience go on too.

Several GPUs train together, to the same losses as one:

  torchrun --nproc-per-node 2 -m stages.train RUN …     or     TRAIN_PROCESSES=2 dvc repro

With several machines the project must lie on a disk that all of them share. torchrun ends its
processes 30 s after SIGTERM or Ctrl-C, whatever they do: a checkpoint that takes longer to write is
then lost, and the run goes on from the one before it. TRAIN_COMPILE=0 keeps
the UNet from being compiled, which takes a minute or two at the first start on a GPU.
"""

import argparse
import functools
import os
import re
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from stages.harness.compiled import compiled_code
from stages.harness.counted import counted
from stages.harness.files import sha256_file, sha256_folder, sha256_json
from stages.harness.params import load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.harness.scratch import replacing_folder, work_dir
from stages.harness.threads import wait_politely
from stages.images.manifest import Pictures, read_manifest
from stages.lineage.ancestry import made_from, read_parent
from stages.lineage.in_file import doubt_warning
from stages.training.code_hash import code_hash

if TYPE_CHECKING:  # what imports torch waits for `wait_politely`
    from stages.training.params import TrainParams
    from stages.training.ranks import Ranks

RUN_NAME = re.compile(r"[A-Za-z0-9_-]+")
PROCESSES = "TRAIN_PROCESSES"  # in the environment: how many to train with on this machine

say = functools.partial(print, flush=True)


def run(
    name: str,
    base: Path,
    config: Path,
    manifests: tuple[Path, Path],
    out: Path,
    report: Path,
    params: "TrainParams",
    ranks: "Ranks",
    work: Path | None = None,
) -> None:
    """Train one run and publish what is kept of it.

    Args:
        name: of the run.
        base: a single file in the original SD 1.x layout, or a diffusers folder.
        config: the diffusers folder that describes it.
        manifests: of the examples to train on, and of those to validate on.
        out: becomes the folder of weights; that of an earlier run is replaced.
        report: a folder.
        params: the section `train.<name>`.
        ranks: who trains; the first of them publishes.
        work: scratch that outlives the process; by default `.work`.

    Raises:
        ValueError: if an input is bad, or training diverges.
        OSError: if a file is missing, another process is at the same work, or the disk is full.
    """
    from stages.diffusion.folder import single_file_of
    from stages.diffusion.header import read_header
    from stages.diffusion.model import Base, import_networks
    from stages.training.encode import as_example
    from stages.training.loop import train
    from stages.training.report import metrics, write_reports

    work = work or work_dir()
    if base.is_dir():
        base = single_file_of(base, work / "bases")
    entries, validation_entries = (read_manifest(path) for path in manifests)
    with ThreadPoolExecutor(1) as thread:  # hashing gigabytes leaves the interpreter to imports
        hashed = thread.submit(read_parent, base, read_header(base).metadata)
        import_networks()
        parent = hashed.result()
    data = {
        side: sha256_file(p) for side, p in zip(("train", "validation"), manifests, strict=True)
    }
    inputs = {"base": parent.sha256, "config": sha256_folder(config), **data}
    inputs |= {"code": code_hash("stages.train"), "encoding": code_hash("stages.training.encode")}
    recipe = {
        "kind": "train",
        "run": name,
        "params": params.without_ends(),
        "data": data,
        "pictures": {"train": len(entries), "validation": len(validation_entries)},
    }
    fingerprint = sha256_json([params.without_ends(), inputs, name])
    scratch = work / "train" / name / fingerprint[:16]
    tell = say if ranks.is_first else _say_nothing
    tell(f"train {name}: {base}, {manifests[0]} ({len(entries):,} pictures); scratch in {scratch}")
    if warning := doubt_warning(base, parent):
        tell(f"Warning: {warning}")
    trained = train(
        Base(base, config),
        Pictures(entries, as_example),
        Pictures(validation_entries, as_example),
        params,
        scratch,
        inputs=inputs,
        encoded=work / "encoded",
        metadata=made_from(recipe, {"base": parent}),
        ranks=ranks,
        say=tell,
    )
    if not ranks.is_first:
        return
    for folder, pattern, files in (
        (out, "*.safetensors", trained.weights),
        (report / "samples", "*.png", trained.samples),
    ):
        with replacing_folder(folder, pattern) as fresh:
            for path in files.values():
                hand_over(path, fresh / path.name)
    write_reports(report, name, trained.history, params)
    summary = metrics(trained.history, params)
    say(
        f"train {name}: validation loss {summary['start']:.5f} -> {summary['minimum']:.5f} "
        f"({summary['change_percent']:+.2f} %) at epoch {summary['epoch_of_minimum']} of "
        f"{summary['epochs']}; {counted(len(trained.weights), 'checkpoint')} in {out}"
    )


def _say_nothing(line: str) -> None:
    """Leave the talking to the first process."""


def hand_over(path: Path, to: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = _parser().parse_args(argv)
    wait_politely()
    with clear_errors():
        processes = _processes_asked_for()
        if processes != 1 and "WORLD_SIZE" not in os.environ:
            _start_again_by_torchrun(processes, sys.argv[1:] if argv is None else argv)
        compiled_code()
        from stages.training.params import TrainParams
        from stages.training.ranks import joined

        with joined() as ranks:
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
                ranks,
            )


def _processes_asked_for() -> int:
    text = os.environ.get(PROCESSES) or "1"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{PROCESSES} must be a whole number of at least 1, got {text!r}")
    return int(text)


def _start_again_by_torchrun(processes: int, argv: Sequence[str]) -> NoReturn:
    """Become torchrun, which starts this command several times on this machine."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = [sys.executable, *torchrun, "-m", "stages.train", *argv]
    os.execv(sys.executable, words)


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
        (
            "base",
            "MODEL",
            "to start from: a .safetensors, or a diffusers folder",
        ),
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
