"""What two commits differ in: params, metrics, losses and pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.drawing.manifest import Entry, Manifest, read_manifest
from stages.page.findings import Run, read_findings

CELLS = Path("reports/cells")
LAST_GRID = "final"


@dataclass(frozen=True, slots=True)
class Change:
    """A param or a metric; None where a commit lacks it."""

    name: str
    before: Any
    after: Any

    @property
    def step(self) -> float | None:
        """Tell how far a number went; None for anything else."""
        numbers = (self.before, self.after)
        if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
            return None
        return float(self.after - self.before)


@dataclass(frozen=True, slots=True)
class Pair:
    """A cell that was drawn otherwise; None where a commit has none."""

    before: Entry | None
    after: Entry | None

    @property
    def entry(self) -> Entry:
        """Give the one that tells what both show."""
        entry = self.after or self.before
        assert entry
        return entry


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid of which cells changed."""

    name: str
    pairs: list[Pair]  # those shown
    changed: int
    total: int


def changes(before: Any, after: Any) -> list[Change]:
    """List what differs between two files of nested keys, each by its dotted name."""
    old, new = dict(_flat(before)), dict(_flat(after))
    keys = sorted({**old, **new})
    return [
        Change(key, old.get(key), new.get(key))
        for key in keys
        if key not in old or key not in new or old[key] != new[key]
    ]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, value


def changed_runs(before: Path, after: Path) -> Iterator[tuple[str, Run | None, Run | None]]:
    """Find the trainings whose losses differ, in two folders of reports."""
    sides = [{run.name: run for run in read_findings(folder).runs} for folder in (before, after)]
    for name in {**sides[1], **sides[0]}:
        old, new = (side.get(name) for side in sides)
        if not (old and new and old.epochs == new.epochs):
            yield name, old, new


def changed_grids(before: Path, after: Path, most: int) -> list[Grid]:
    """Find the grids whose cells differ, the last round's first.

    Args:
        before: a folder with a folder per grid, in which cells.json is enough.
        after: another such.
        most: pairs shown of a grid; of more, some evenly spread over all.
    """
    names = {path.parent.name for side in (before, after) for path in side.glob("*/cells.json")}
    grids = []
    for name in sorted(names, key=lambda name: (name != LAST_GRID, name)):
        sides = [
            read_manifest(side / name) if (side / name).is_dir() else None
            for side in (before, after)
        ]
        pairs, total = _pairs(*sides)
        if pairs:
            shown = [pairs[len(pairs) * n // most] for n in range(most)]
            grids.append(Grid(name, shown if len(pairs) > most else pairs, len(pairs), total))
    return grids


def _pairs(before: Manifest | None, after: Manifest | None) -> tuple[list[Pair], int]:
    """Put cells of one model and place side by side; leave out those with one address."""
    old, new = (_by_place(side.entries if side else ()) for side in (before, after))
    keys = list({**new, **old})
    pairs = [Pair(old.get(key), new.get(key)) for key in keys]
    return [p for p in pairs if not (p.before and p.after) or _differ(p.before, p.after)], len(keys)


def _differ(before: Entry, after: Entry) -> bool:
    return (before.address, before.failed) != (after.address, after.failed)


def _by_place(entries: Sequence[Entry]) -> dict[tuple[Any, ...], Entry]:
    return {(entry.model, *entry.place): entry for entry in entries}
