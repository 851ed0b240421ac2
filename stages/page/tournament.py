"""The tournament as a picture: each row's candidates, the rows' winners, the finalist."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from stages.page.findings import Named, same_name

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, PAIR_GAP = 190, 30, 70, 8, 18
LEGEND_WIDTH, LEGEND_HEIGHT = 200, 20
LETTERS = 26  # of a name that a box holds
ROW = re.compile(r"row\.(.+)")


@dataclass(frozen=True, slots=True)
class Round:
    """A choice of one among some."""

    name: str
    candidates: tuple[str, ...]
    winner: str
    is_clear: bool | None


def draw_tournament(choices: Sequence[Named]) -> Markup | None:
    """Draw both rounds as SVG; None where there are not both."""
    rows, final = _rounds(choices)
    if not rows or not final:
        return None
    parts: list[Markup] = []
    middles: dict[str, float] = {}
    y = 4.0
    for row in rows:
        ends = []
        for name in row.candidates:
            parts.append(_box(4, y, name, row if name == row.winner else None))
            ends.append((y + BOX_HEIGHT / 2, name == row.winner))
            y += BOX_HEIGHT + GAP_Y
        middle = sum(at for at, _ in ends) / len(ends)
        parts += [
            _line(4 + BOX_WIDTH, at, 4 + BOX_WIDTH + GAP_X, middle, row, won=won)
            for at, won in ends
        ]
        middles[f"row{row.name}"] = middle
        y += PAIR_GAP
    second = 4 + BOX_WIDTH + GAP_X
    third = second + BOX_WIDTH + GAP_X
    height = y
    labels = {final.winner: final.winner}  # of the finalists: the row, and what won it
    for row in rows:
        place = f"row{row.name}"
        labels[place] = f"row {row.name}: {row.winner}"
        won = final.winner == place
        top = middles[place] - BOX_HEIGHT / 2
        parts.append(_box(second, top, labels[place], final if won else None))
        parts.append(_line(second + BOX_WIDTH, middles[place], third, height / 2, final, won=won))
    parts.append(_box(third, height / 2 - BOX_HEIGHT / 2, labels[final.winner], final))
    legend = {True: "clear winner", False: "no clear winner", None: "nothing to measure it by"}
    shown = [v for v in legend if v in {choice.is_clear for choice in (*rows, final)}]
    for number, verdict in enumerate(shown):
        parts.append(_key(4 + number * LEGEND_WIDTH, height + 8, verdict, legend[verdict]))
    height += LEGEND_HEIGHT
    width = third + BOX_WIDTH + 4
    head = f'<svg width="{width}" height="{height:.0f}" viewBox="0 0 {width} {height:.0f}" '
    return Markup(head + 'aria-hidden="true">') + Markup("").join(parts) + Markup("</svg>")


def _rounds(choices: Sequence[Named]) -> tuple[list[Round], Round | None]:
    rows, final = [], None
    for choice in choices:
        content, name = choice.content, same_name(choice.name)
        if not isinstance(content["choice"], str):
            continue
        found = Round(
            name, tuple(content["candidates"]), content["choice"], content.get("is_clear")
        )
        if row := ROW.fullmatch(name):
            rows.append(Round(row[1], found.candidates, found.winner, found.is_clear))
        elif name == "final":
            final = found
    return rows, final


def _box(x: float, y: float, name: str, won: Round | None) -> Markup:
    """Draw a name; `won` is the choice that it won, if any."""
    shown = name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
    style = f' style="{_mark(won.is_clear)}"' if won else ""
    return Markup(
        f'<g transform="translate({x:g} {y:g})"><title>{escape(name)}</title>'
        f'<rect width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"{style}/>'
        f'<text x="9" y="20">{escape(shown)}</text></g>'
    )


def _line(x: float, y: float, to_x: float, to_y: float, choice: Round, *, won: bool) -> Markup:
    middle = (x + to_x) / 2
    style = f' style="{_mark(choice.is_clear)}"' if won else ""
    path = f"M{x:g} {y:g}C{middle:g} {y:g} {middle:g} {to_y:g} {to_x:g} {to_y:g}"
    return Markup(f'<path d="{path}"{style}/>')


def _key(x: float, y: float, verdict: bool | None, words: str) -> Markup:
    """Draw an entry of the legend."""
    return Markup(
        f'<path d="M{x:g} {y:g}h30" style="{_mark(verdict)}"/>'
        f'<text x="{x + 38:g}" y="{y + 4:g}" class="note">{words}</text>'
    )


def _mark(is_clear: bool | None) -> str:
    """Mark what won: a whole line where it surely did, a dashed one where that is unclear."""
    if is_clear is None:
        return "stroke:var(--soft);stroke-width:2.5"
    if is_clear:
        return "stroke:var(--good);stroke-width:2.5"
    return "stroke:var(--warn);stroke-width:2;stroke-dasharray:6 4"
