"""The tournament as a picture: each row's candidates, the rows' winners, the finalist."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from stages.page.findings import Named, same_name

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, PAIR_GAP = 190, 30, 70, 8, 18
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
            parts.append(_box(4, y, name, won=name == row.winner))
            ends.append((y + BOX_HEIGHT / 2, name == row.winner))
            y += BOX_HEIGHT + GAP_Y
        middle = sum(at for at, _ in ends) / len(ends)
        parts += [_line(4 + BOX_WIDTH, at, 4 + BOX_WIDTH + GAP_X, middle, won) for at, won in ends]
        middles[f"row{row.name}"] = middle
        y += PAIR_GAP
    second = 4 + BOX_WIDTH + GAP_X
    height = y
    for row in rows:
        place = f"row{row.name}"
        label = f"row {row.name}: {row.winner}"
        won = final.winner == place
        parts.append(_box(second, middles[place] - BOX_HEIGHT / 2, label, won=won))
        parts.append(
            _line(second + BOX_WIDTH, middles[place], second + BOX_WIDTH + GAP_X, height / 2, won)
        )
    third = second + BOX_WIDTH + GAP_X
    parts.append(_box(third, height / 2 - BOX_HEIGHT / 2, final.winner, won=True))
    verdict = {True: "clear winner", False: "no clear winner", None: ""}[final.is_clear]
    text = '<text x="{}" y="{}" class="note">{}</text>'
    parts.append(Markup(text).format(third + 4, height / 2 + BOX_HEIGHT + 2, verdict))
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


def _box(x: float, y: float, name: str, *, won: bool) -> Markup:
    shown = name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
    kind = ' class="last"' if won else ""
    return Markup(
        f'<g{kind} transform="translate({x:g} {y:g})"><title>{escape(name)}</title>'
        f'<rect width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>'
        f'<text x="9" y="20">{escape(shown)}</text></g>'
    )


def _line(x: float, y: float, to_x: float, to_y: float, won: bool) -> Markup:
    middle = (x + to_x) / 2
    kind = ' style="stroke:var(--good);stroke-width:2.5"' if won else ""
    path = f"M{x:g} {y:g}C{middle:g} {y:g} {middle:g} {to_y:g} {to_x:g} {to_y:g}"
    return Markup(f'<path d="{path}"{kind}/>')
