"""Weights named on the command line: `NAME=FILE`, `DIR` or `NAME=DIR`."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

EPOCHS = "epoch_*.safetensors"  # how a training run names what it saved
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def named_weights(arguments: Iterable[str]) -> dict[str, Path]:
    """Give each file of weights its name, in the order written.

    `NAME=FILE` is one file. `DIR` is a run's checkpoints, each by its file's name (`epoch_010`),
    first epoch first; `NAME=DIR` puts `NAME-` before them. A bare `FILE` goes by its own name.

    Raises:
        FileNotFoundError: if a path is missing, or a folder holds no checkpoint.
        ValueError: if two files have one name, or a name could not be a folder's.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        for name, path in _expand(argument):
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{argument!r}: {name!r} cannot name a model; use letters, digits, '.', '_', "
                    "'-', and begin with a letter or digit"
                )
            if name in found:
                raise ValueError(
                    f"two models are named {name!r}: {found[name]} and {path}. "
                    "Write NAME=PATH to tell them apart"
                )
            found[name] = path
    return found


def _expand(argument: str) -> Iterator[tuple[str, Path]]:
    name, equals, rest = argument.partition("=")
    path = Path(rest if equals else argument)
    if path.is_dir():
        files = sorted(path.glob(EPOCHS), key=lambda file: (len(file.stem), file.stem))
        if not files:
            raise FileNotFoundError(f"{path}: no {EPOCHS} in this folder. Did the training run?")
        for file in files:
            yield (f"{name}-{file.stem}" if equals else file.stem), file
    elif path.is_file():
        yield (name if equals else path.stem), path
    else:
        raise FileNotFoundError(f"{path}: no such weights (from {argument!r})")
