"""The command line of a stage: `--name PATH` options, and one clear message when it fails."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

DEFAULT_PARAMS = Path("params.yaml")
OPTION_LINE = re.compile(r"^ *--(?P<name>[a-z-]+) (?P<metavar>[A-Z.a-z]+) {2,}(?P<help>.+)$")


def stage_paths(doc: str | None, *names: str, argv: Sequence[str] | None = None) -> list[Path]:
    """Read one path per name from the command line, and last the params file.

    The stage's docstring is its `--help`. A line of it such as

        --export FILE   the messages, as CSV or parquet

    becomes the help of that option; the other lines are printed as they stand.

    Args:
        doc: the module's docstring.
        names: of required options, without dashes.
        argv: the arguments, by default the process's own.

    Returns:
        The paths in the order of `names`, then that of `--params` (default params.yaml).
    """
    lines = (doc or "").splitlines()
    described = {found["name"]: found for line in lines if (found := OPTION_LINE.match(line))}
    parser = argparse.ArgumentParser(
        prog=_program_name(),
        description="\n".join(line for line in lines if not OPTION_LINE.match(line)).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in names:
        found = described.get(name)
        parser.add_argument(
            f"--{name}",
            type=Path,
            required=True,
            metavar=found["metavar"] if found else "PATH",
            help=found["help"] if found else None,
        )
    add_params_option(parser)
    options = vars(parser.parse_args(argv))
    return [options[name.replace("-", "_")] for name in (*names, "params")]


def add_params_option(parser: argparse.ArgumentParser) -> None:
    """Let a command line name the params file, as every stage's does."""
    parser.add_argument(
        "--params",
        type=Path,
        default=DEFAULT_PARAMS,
        metavar="FILE",
        help=f"every value that one may change (default: {DEFAULT_PARAMS})",
    )


@contextmanager
def clear_errors() -> Iterator[None]:
    """End the process with status 1 and one message where the input is bad, not a traceback.

    Built-in errors of bad input are caught; the rest are bugs and keep their traceback, as all
    do with TRACEBACK=1 in the environment. Ctrl-C ends with the status that shells give it.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("TRACEBACK"):
            raise
        sys.exit(f"{_program_name()}: {error}\n(TRACEBACK=1 shows where)")
    except KeyboardInterrupt:
        if os.environ.get("TRACEBACK"):
            raise
        if sys.stderr.isatty():
            sys.stderr.write("\n")  # behind a line of progress and the terminal's ^C
        sys.stderr.write(f"{_program_name()}: stopped by Ctrl-C (SIGINT)\n")
        sys.exit(128 + signal.SIGINT)


def _program_name() -> str:
    """Name the module that runs, as one types it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else Path(sys.argv[0]).name
