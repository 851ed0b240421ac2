"""A stage's second way to be called: a word, and one file to look at."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from stages.harness.paths import clear_errors


def file_command(
    arguments: Sequence[str], module: str, word: str, act: Callable[[Path], None]
) -> bool:
    """Act on a file if that is what a command line asks for: `python -m MODULE WORD FILE`.

    Args:
        arguments: of the process.
        module: that was called, for the help.
        word: the first of the arguments, if this is meant.
        act: what to do with the file; its docstring is the help.

    Returns:
        Whether it was asked for.
    """
    if list(arguments[:1]) != [word]:
        return False
    parser = argparse.ArgumentParser(prog=f"python -m {module} {word}", description=act.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE")
    with clear_errors():
        act(parser.parse_args(arguments[1:]).file)
    return True
