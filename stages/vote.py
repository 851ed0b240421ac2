"""Ask a person which of two pictures is better, blind, and keep the answers in a file.

It opens a page for a browser on this machine (a phone may come through `ssh -L` or `adb reverse`,
by the same port's number): two pictures of one prompt and seed, by two models that are not named,
sides by chance. Every answer is a line of `VOTER.jsonl` at once; stop when you like, and go on with
the same command.
`python -m stages.select` counts the votes; commit the file as any data.
"""

import argparse
import signal
from collections.abc import Sequence
from pathlib import Path

from stages.choice.booth import Booth, serve
from stages.choice.pairs import question_pairs
from stages.drawing.manifest import read_manifest
from stages.harness.named import NAME
from stages.harness.paths import clear_errors

MAX_PORT = 65_535
VOTES = Path("data/votes")


def open_booth(cells: Path, voter: str, votes: Path) -> Booth:
    """Make a grid's questions ready for a voter.

    Args:
        cells: a grid that `python -m stages.grid_cells` published.
        voter: the name of a file.
        votes: folder of the voters' files.

    Raises:
        ValueError: if the voter's name could not be a file's, or the grid has nothing to compare.
    """
    if not NAME.fullmatch(voter):
        raise ValueError(
            f"{voter!r} cannot name a voter; use letters, digits, '.', '_', '-', and begin with a "
            "letter or digit"
        )
    manifest = read_manifest(cells)
    pairs = question_pairs(manifest)
    if not pairs:
        raise ValueError(
            f"{cells}: nothing to compare: no two models of different weights drew the same place"
        )
    return Booth(manifest.group, voter, votes, pairs, manifest.models)


def run(cells: Path, voter: str, votes: Path, port: int) -> None:
    """Serve the page until the person ends it."""
    booth = open_booth(cells, voter, votes)
    for problem in booth.problems:
        print(f"not counted: {problem}")
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a script's `&` had them ignored
        signal.signal(number, signal.default_int_handler)
    try:
        with serve(booth, cells, port) as server:
            host, opened = server.server_address[:2]
            print(
                f"grid {booth.grid}, {len(booth.pairs):,} questions: http://{host!s}:{opened}/\n"
                f"Answers go to {booth.path}. Ctrl+C ends.",
                flush=True,
            )
            server.serve_forever()
    except KeyboardInterrupt:
        done = booth.state()["done"]
        print(f"\n{done:,} questions answered in all: {booth.path}")
    finally:
        booth.close()


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r}: a port is a number from 0 to {MAX_PORT}")
    return int(text)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.vote",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cells",
        type=Path,
        required=True,
        metavar="DIR",
        help="a grid that `python -m stages.grid_cells` drew, such as reports/cells/final",
    )
    parser.add_argument("--voter", required=True, metavar="NAME", help="you; names your file")
    parser.add_argument(
        "--votes",
        type=Path,
        default=VOTES,
        metavar="DIR",
        help=f"where the voters' files lie (default: {VOTES})",
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=8765,
        metavar="NUMBER",
        help="on 127.0.0.1; 0 takes any (default: 8765)",
    )
    return parser.parse_args(argv)


def main() -> None:
    """Run from the command line."""
    options = parse()
    with clear_errors():
        run(options.cells, options.voter, options.votes, options.port)


if __name__ == "__main__":
    main()
