"""The release's ancestry: every file that led to it, as a graph, and the merges multiplied out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from stages.lineage.ancestry import Lineage, read_lineage
from stages.merging.expression import parse_expression
from stages.merging.text import format_weight
from stages.releases.shares import leaf_shares

# px in the drawing
BOX_WIDTH, BOX_HEIGHT = 168, 58
COLUMN, ROW, MARGIN = 232, 78, 8
LONGEST_LABEL = 23  # letters that fit a box


@dataclass(frozen=True, slots=True)
class Box:
    """A file in the drawing."""

    title: str
    how: str  # it was made
    licence: str | None
    sources: str  # by name, as the making calls them
    sha256: str
    x: int
    y: int

    @property
    def label(self) -> str:
        """Give the title, cut to the box."""
        return _cut(self.title)

    @property
    def note(self) -> str:
        """Give licence or making, cut to the box."""
        return _cut(self.licence or self.how)


@dataclass(frozen=True, slots=True)
class Stop:
    """A place in the drawing: a file's box, or where its lines pass through a later column."""

    file: str | None  # None is the release
    depth: int  # columns before the release


@dataclass(frozen=True, slots=True)
class Step:
    """From one column to the next."""

    start: Stop | None  # None only says that `end` is there
    end: Stop
    weight: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """From a file to one made of it."""

    path: str  # SVG
    weight: str  # in a merge; empty elsewhere
    x: int  # middle of the weight
    y: int


@dataclass(frozen=True, slots=True)
class Share:
    """What a trained model or an ingredient makes of the release."""

    title: str
    weight: str
    part: float  # of the largest, -1 to 1, for a bar
    licence: str | None
    sha256: str


@dataclass(frozen=True, slots=True)
class Descent:
    """The graph, laid out from left (the oldest) to right (the release), and the shares."""

    boxes: list[Box]  # the release first
    inputs: list[tuple[str, str]]  # of the release: as its recipe calls it, and its title
    lines: list[Line]
    shares: list[Share]
    width: int
    height: int


def read_release(path: Path) -> Lineage:
    """Read a released file's ancestry from its header.

    Raises:
        ValueError: if it is no safetensors file, or tells nothing readable.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}. Release again") from None
    try:
        return read_lineage(metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def trace(lineage: Lineage, name: str, release: Mapping[str, Any]) -> Descent:
    """Lay the ancestry out.

    Args:
        lineage: of the release.
        name: of the release.
        release: its report, which knows the names and licences of ingredients.
    """
    ingredients = release["ingredients"].items()
    names = {used["sha256"]: name for name, used in ingredients}
    licences = {used["sha256"]: used["licence"] for _, used in ingredients}

    def title(sha256: str) -> str:
        return names.get(sha256) or lineage.title(sha256)

    steps = _steps(lineage)
    at = _places(steps)
    boxes = [
        Box(
            title=name if file is None else title(file),
            how=how_made(lineage.recipe if file is None else lineage.ancestors[file].recipe),
            licence=licences.get(file or ""),
            sources=", ".join(f"{key} = {title(s)}" for key, s in lineage.inputs(file).items()),
            sha256=release["sha256"] if file is None else file,
            x=at[Stop(file, depth)][0],
            y=at[Stop(file, depth)][1],
        )
        for file, depth in _depths(lineage).items()
    ]
    lines = [_line(step, at) for step in steps if step.start]
    width = max(x for x, _ in at.values()) + BOX_WIDTH + MARGIN
    height = max(y for _, y in at.values()) + BOX_HEIGHT + MARGIN
    inputs = [(key, title(source)) for key, source in lineage.inputs().items()]
    shares = _shares(lineage, title, licences)
    return Descent(boxes, inputs, lines, shares, width, height)


def how_made(recipe: Mapping[str, Any] | None) -> str:
    """Say in a few words how a file was made; nothing if it does not tell."""
    match recipe:
        case {"kind": "merge", "expression": expression}:
            return str(expression)
        case {"kind": "train"}:
            return "trained"
        case _:
            return ""


def _depths(lineage: Lineage) -> dict[str | None, int]:
    """Say how far each file lies before the release, by the longest way."""
    depths: dict[str | None, int] = {None: 0}
    waiting: list[str | None] = [None]
    for file in waiting:
        for source in lineage.inputs(file).values():
            if depths.get(source, -1) < depths[file] + 1 <= len(lineage.ancestors):
                depths[source] = depths[file] + 1
                waiting.append(source)
    # merged by another program, which told no recipe of ours
    return {None: 0, **dict.fromkeys(lineage.ancestors, 1), **depths}


def _steps(lineage: Lineage) -> list[Step]:
    """List the lines of the drawing, column by column; a long one passes through stops between.

    All lines that a file sends through a column share one stop there, so that none runs behind
    the boxes of others.
    """
    depths = _depths(lineage)
    steps = {Step(None, Stop(file, depth)): None for file, depth in depths.items()}
    for file, depth in depths.items():
        recipe = lineage.recipe if file is None else lineage.ancestors[file].recipe
        is_merge = bool(recipe and recipe.get("kind") == "merge")
        weights = parse_expression(recipe["expression"]) if recipe and is_merge else {}
        for key, source in lineage.inputs(file).items():
            weight = _signed(weights[key]) if key in weights else ""
            for between in range(depth + 1, depths[source]):
                start = Stop(source, between + 1)
                steps[Step(start, Stop(source, between))] = None
            steps[Step(Stop(source, depth + 1), Stop(file, depth), weight)] = None
    return list(steps)


def _places(steps: list[Step]) -> dict[Stop, tuple[int, int]]:
    """Give each stop its left upper corner, near what it leads to, so that few lines cross."""
    columns: dict[int, list[Stop]] = {}
    for stop in dict.fromkeys(stop for step in steps for stop in (step.start, step.end) if stop):
        columns.setdefault(stop.depth, []).append(stop)
    last, tallest = max(columns), max(map(len, columns.values()))
    at: dict[Stop, tuple[int, int]] = {}

    def height(stop: Stop) -> float:
        heights = [at[step.end][1] for step in steps if step.start == stop]
        return sum(heights) / len(heights) if heights else 0.0

    for depth in sorted(columns):
        top = MARGIN + (tallest - len(columns[depth])) * ROW // 2
        for number, stop in enumerate(sorted(columns[depth], key=height)):
            at[stop] = MARGIN + (last - depth) * COLUMN, top + number * ROW
    return at


def _line(step: Step, at: Mapping[Stop, tuple[int, int]]) -> Line:
    """Draw one step, as a straight run through a stop where there is no box, and a bend."""
    assert step.start
    x, y = at[step.start][0] + BOX_WIDTH, at[step.start][1] + BOX_HEIGHT // 2
    to_x, to_y = at[step.end][0], at[step.end][1] + BOX_HEIGHT // 2
    bend = (x + to_x) // 2
    is_passing = step.end.file == step.start.file
    path = f"M{x} {y}C{bend} {y} {bend} {to_y} {to_x} {to_y}"
    if is_passing:
        path += f"h{BOX_WIDTH}"
    return Line(path, step.weight, bend, (y + to_y) // 2 + 4)


def _shares(
    lineage: Lineage, title: Callable[[str], str], licences: Mapping[str, str]
) -> list[Share]:
    leaves = leaf_shares(lineage)
    largest = max((abs(weight) for weight in leaves.values()), default=1)
    ordered = sorted(leaves, key=lambda sha256: (-leaves[sha256], title(sha256)))
    return [
        Share(
            title(s),
            _signed(leaves[s]),
            float(leaves[s] / largest),
            licences.get(s),
            s,
        )
        for s in ordered
    ]


def _signed(weight: Fraction) -> str:
    return format_weight(weight).replace("-", "\N{MINUS SIGN}")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"
