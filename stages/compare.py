"""Show on one page what differs between two commits: params, metrics, losses and pictures.

  python -m stages.compare [A] [B] --out DIR     or     make compare A=… B=…

A and B are commits, branches, tags or names of experiments; `workspace`, the default of B, is the
folder as it stands, and A is by default HEAD. Pictures come from DVC's cache; what the cache or the
folder lacks is named, with the command that fetches it, and not called changed. Neither this nor
the page needs a network.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from markupsafe import Markup

from stages.harness.dvc_command import DVC
from stages.harness.paths import DEFAULT_PARAMS, clear_errors
from stages.harness.scratch import replacing_folder
from stages.page.commit import WORKSPACE, Commit, find_commit
from stages.page.curves import draw_both
from stages.page.difference import CELLS, Change, Grid, changed_grids, changed_runs, changes
from stages.page.template import open_template
from stages.storage.conflict import LOCK, refuse_cut_short, refuse_unresolved

SIDES = ("before", "after")
PAGE = "index.html"
MARK = ".made-by-compare"  # in a folder that the next comparison may replace
METRICS = Path("reports/metrics.json")
LOSSES = Path("reports/train")
CELLS_SHOWN = 24  # pairs of a grid, unless told otherwise


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that the page shows."""

    commits: tuple[Commit, Commit]
    params: list[Change]
    metrics: list[Change]
    curves: list[tuple[str, Markup]]  # run, its losses at both
    grids: list[Grid]
    missing: list[str]  # what the cache or the folder lacks


def run(before: str, after: str, out: Path, cells: int = CELLS_SHOWN) -> Comparison:
    """Compare two commits of the repository around.

    Args:
        before: a commit, branch, tag, name of an experiment, or `workspace`.
        after: another.
        out: becomes the folder of the page.
        cells: pairs of pictures shown of each grid.

    Raises:
        FileExistsError: if `out` holds something else than such a page.
        ValueError: if there is no such commit, or a file at one is damaged or in conflict.
    """
    _refuse_strange(out)
    if cells < 1:
        raise ValueError(f"--cells must be at least 1, got {cells}")
    if WORKSPACE in (before, after):
        refuse_unresolved(Path())
        refuse_cut_short(Path(LOCK))
    with Repo() as repo, replacing_folder(out, "*") as folder:
        commits = (find_commit(repo, before), find_commit(repo, after))
        sides = [folder / side for side in SIDES]
        missing: list[str] = []
        unknown: set[str] = set()  # grids of which nobody can tell what changed
        for commit, side in zip(commits, sides, strict=True):
            _write_losses(commit, side)
            lists = [grid / "cells.json" for grid in commit.folders(CELLS)]
            lost = [path for path in lists if not commit.copy(path, side / path)]
            missing += [f"{path} at {commit.name}" for path in lost]
            unknown |= {path.parent.name for path in lost}
        found = changed_grids(sides[0] / CELLS, sides[1] / CELLS, cells)
        grids = [grid for grid in found if grid.name not in unknown]
        for number, (commit, side) in enumerate(zip(commits, sides, strict=True)):
            pictures = list(_pictures(grids, number))
            count = sum(not commit.copy(path, side / path) for path in pictures)
            missing += [f"{count} of {len(pictures)} pictures at {commit.name}"] if count else []
        runs = changed_runs(sides[0] / "reports", sides[1] / "reports")
        comparison = Comparison(
            commits,
            changes(*(commit.values(DEFAULT_PARAMS) for commit in commits)),
            changes(*(commit.values(METRICS) for commit in commits)),
            [(name, Markup(draw_both(old, new, before, after))) for name, old, new in runs],
            grids,
            missing,
        )
        (folder / PAGE).write_text(_render(comparison), encoding="utf-8")
        (folder / MARK).touch()
    return comparison


def _refuse_strange(out: Path) -> None:
    """Stop where a folder holds anything that no comparison made.

    Raises:
        FileExistsError: naming it.
    """
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    ours = {PAGE, MARK, *SIDES} if MARK in found else set()
    if strange := sorted(found - ours):
        raise FileExistsError(
            f"{out}: will not replace it, for no comparison made {', '.join(strange[:3])} in there "
            f"(in what one made lies {MARK}). Name a new folder, or take this one away"
        )


def _write_losses(commit: Commit, side: Path) -> None:
    """Put the tables of losses into a folder, as the page's readers want them."""
    (side / "reports").mkdir(parents=True)
    for path in commit.list_files(LOSSES):
        if path.name == "loss.csv" and (table := commit.read(path)):
            (side / path).parent.mkdir(parents=True, exist_ok=True)
            (side / path).write_bytes(table)


def _pictures(grids: list[Grid], number: int) -> Iterator[Path]:
    """List the pictures that are shown of the first or the second commit."""
    for grid in grids:
        for pair in grid.pairs:
            entry = (pair.before, pair.after)[number]
            if entry and entry.file:
                yield CELLS / grid.name / entry.file


def _render(comparison: Comparison) -> str:
    filters = {
        "value": _value,
        "step": lambda step: f"{step:+.5g}".replace("-", "\N{MINUS SIGN}"),
    }
    template = open_template("compare.html.j2", filters)
    return template.render(found=comparison, sides=SIDES, cells=CELLS.as_posix())


def _value(value: Any) -> str:
    """Write a param or a metric as params.yaml would; a dash where a commit has none."""
    if value is None:
        return "\N{EN DASH}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list) else str(value)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("before", nargs="?", default="HEAD", metavar="A", help="default: HEAD")
    parser.add_argument(
        "after", nargs="?", default=WORKSPACE, metavar="B", help=f"default: {WORKSPACE}"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="becomes the page")
    parser.add_argument(
        "--cells",
        type=int,
        default=CELLS_SHOWN,
        metavar="N",
        help=f"pairs of pictures shown of each grid (default: {CELLS_SHOWN})",
    )
    options = parser.parse_args()
    with clear_errors():
        try:
            found = run(options.before, options.after, options.out, options.cells)
        except DvcException as error:
            raise ValueError(f"DVC: {error}") from error
        for change in found.params:
            print(f"{change.name}: {_value(change.before)} -> {_value(change.after)}")
        changed = sum(grid.changed for grid in found.grids)
        print(
            f"{options.out / PAGE} shows what differs: params {len(found.params)}, metrics "
            f"{len(found.metrics)}, curves {len(found.curves)}, cells {changed:,}"
        )
        if found.missing:
            print(f"not at hand: {', '.join(found.missing)}")
            print(
                f"`{DVC} fetch --all-commits reports/cells` fetches all cells from the remote, "
                f"`{DVC} checkout reports/cells` puts this commit's into the folder"
            )


if __name__ == "__main__":
    main()
