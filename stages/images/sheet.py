"""Sheets: cells side by side with their labels, page by page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from stages.images.cells import SheetParams

FONT = "fonts/ttf/DejaVuSans.ttf"  # comes with matplotlib; Latin, Greek, Cyrillic and more
PAPER, INK, SOFT, RULE, FAILED = "#ffffff", "#1a1a1a", "#6b6b6b", "#dddddd", "#f0d9d9"
MIN_FONT_PX, MAX_FONT_PX = 13, 34
SMALLEST_HEAD_PX = 9  # a long name's font shrinks to this before the name is broken inside a word
CELLS_PER_FONT = 10  # a cell is this many letters high
PROMPT_EMS = 13  # width of the column with the prompts, in font sizes
LINE_HEIGHT = 1.3  # in font sizes
BREAK_AFTER = "-_./"  # where a long name may go on in the next line


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and seed, drawn by every model."""

    prompt: str
    seed: int
    pictures: tuple[Path | None, ...]  # by column; None is a failed cell


@dataclass(frozen=True, slots=True)
class Sheet:
    """All cells of one size: a row for each prompt and seed, a column for each model."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]  # those of one prompt together
    width: int  # of a cell, px
    height: int


@dataclass(frozen=True, slots=True)
class Measures:
    """Lengths that every page of a sheet shares, px."""

    font: ImageFont.FreeTypeFont
    head_font: ImageFont.FreeTypeFont  # of the columns' names
    cell_width: int
    cell_height: int
    gap: int
    line: int  # from one line of text to the next
    prompt_width: int
    seed_width: int

    @property
    def left(self) -> int:
        """Where the first column of cells begins."""
        return self.gap * 6 + self.prompt_width + self.seed_width

    @property
    def rule(self) -> int:
        """Say how much the line takes that parts one prompt from the next."""
        return 2 * self.gap

    def text_height(self, lines: Sequence[str]) -> int:
        """Say how high some lines of text stand."""
        return len(lines) * self.line


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one prompt that stand on one page, and the prompt beside them."""

    prompt: tuple[str, ...]  # wrapped
    rows: tuple[Row, ...]
    height: int


def pages(sheet: Sheet, params: SheetParams) -> Iterator[Image.Image]:
    """Draw a sheet, one page at a time: models that do not fit first, then prompts.

    No label is cut: it is wrapped, and its row, column head or page grows to hold it.

    Args:
        sheet: what to show.
        params: how large.
    """
    measures = measure(sheet, params)
    step = measures.cell_width + measures.gap
    per_page = max(1, (params.max_side_px - measures.left - measures.gap) // step)
    for first in range(0, len(sheet.columns), per_page):
        shown = range(first, min(first + per_page, len(sheet.columns)))
        heads = [wrapped(sheet.columns[i], measures.head_font, measures.cell_width) for i in shown]
        width = measures.left + len(shown) * step + measures.gap
        title = wrapped(sheet.title, measures.font, width - 4 * measures.gap)
        top = _head_height(title, heads, measures)
        for blocks in paginate(sheet, measures, params.max_side_px - top):
            yield _draw_page(blocks, shown, title, heads, measures, (width, top))


def measure(sheet: Sheet, params: SheetParams) -> Measures:
    """Choose sizes by the size of the cells."""
    cell_width, cell_height = sheet.width * params.scale, sheet.height * params.scale
    font_px = min(max(cell_height // CELLS_PER_FONT, MIN_FONT_PX), MAX_FONT_PX)
    font = load_font(font_px)
    seeds = [f"seed {row.seed}" for row in sheet.rows]
    return Measures(
        font=font,
        head_font=_head_font(sheet.columns, font_px, cell_width),
        cell_width=cell_width,
        cell_height=cell_height,
        gap=max(2, font_px // 4),
        line=round(font_px * LINE_HEIGHT),
        prompt_width=font_px * PROMPT_EMS,
        seed_width=max((int(font.getlength(seed)) + 1 for seed in seeds), default=0),
    )


def _head_font(names: Sequence[str], font_px: int, width: int) -> ImageFont.FreeTypeFont:
    """Pick the largest font in which no name must be broken inside a word."""
    for size in range(font_px, SMALLEST_HEAD_PX, -1):
        font = load_font(size)
        lines = [line for name in names for line in wrapped(name, font, width)[:-1]]
        if all(line.endswith((*BREAK_AFTER, " ")) for line in lines):
            return font
    return load_font(SMALLEST_HEAD_PX)


def paginate(sheet: Sheet, measures: Measures, room: int) -> Iterator[list[Block]]:
    """Spread the rows over pages, keeping a prompt's rows together where one page holds them.

    Args:
        sheet: what to show.
        measures: its lengths.
        room: height that a page has for rows, px.
    """
    page: list[Block] = []
    for block in _blocks(sheet, measures, room):
        if page and sum(b.height for b in page) + block.height > room:
            yield page
            page = []
        page.append(block)
    if page:
        yield page


def _blocks(sheet: Sheet, measures: Measures, room: int) -> Iterator[Block]:
    step = measures.cell_height + measures.gap
    per_page = max(1, (room - measures.rule) // step)
    for prompt, group in groupby(sheet.rows, key=lambda row: row.prompt):
        lines = tuple(wrapped(prompt, measures.font, measures.prompt_width))
        rows = tuple(group)
        for first in range(0, len(rows), per_page):
            part = rows[first : first + per_page]
            height = max(len(part) * step, measures.text_height(lines) + measures.gap)
            yield Block(lines, part, height + measures.rule)


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break text into lines that fit: between words, else inside a name, else anywhere.

    Args:
        text: any; white space is one blank.
        font: measures it.
        width: of a line, px; a single character may be wider.
    """
    lines: list[str] = []
    line = ""
    for word in text.split() or [""]:
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        *full, line = _broken(word, font, width)
        lines += full
    return [*lines, line]


def _broken(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break one word into pieces that fit, after a hyphen or the like if the piece has one."""
    pieces = []
    while font.getlength(word) > width and len(word) > 1:
        fits = _letters_that_fit(word, font, width)
        marks = [n for n in range(1, fits + 1) if word[n - 1] in BREAK_AFTER]
        at = marks[-1] if marks else fits
        pieces.append(word[:at])
        word = word[at:]
    return [*pieces, word]


def _letters_that_fit(word: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """Count the letters from a word's start that a line holds, by halving; at least 1."""
    low, high = 1, len(word)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(word[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low


@lru_cache
def load_font(size_px: int) -> ImageFont.FreeTypeFont:
    """Load the labels' font; the basic layout draws alike on every machine."""
    path = Path(mpl.get_data_path(), FONT)
    return ImageFont.truetype(path, size_px, layout_engine=ImageFont.Layout.BASIC)


def _head_height(title: Sequence[str], heads: Sequence[Sequence[str]], measures: Measures) -> int:
    tallest = max(measures.text_height(head) for head in heads)
    return measures.text_height(title) + tallest + 5 * measures.gap


def _draw_page(
    blocks: Sequence[Block],
    shown: range,
    title: Sequence[str],
    heads: Sequence[Sequence[str]],
    measures: Measures,
    corner: tuple[int, int],
) -> Image.Image:
    """Draw one page.

    Args:
        blocks: rows from top to bottom.
        shown: columns, by number.
        title, heads: wrapped; one head per column shown.
        measures: of the sheet.
        corner: width of the page, and where its first row begins; px.
    """
    width, top = corner
    gap, step = measures.gap, measures.cell_width + measures.gap
    page = Image.new("RGB", (width, top + sum(block.height for block in blocks) + gap), PAPER)
    pen = ImageDraw.Draw(page)
    _draw_lines(pen, (2 * gap, 2 * gap), title, measures, SOFT)
    for column, head in enumerate(heads):
        start = (measures.left + column * step, top - gap - measures.text_height(head))
        _draw_lines(pen, start, head, measures, INK, measures.head_font)
    for block in blocks:
        pen.line((0, top, width, top), RULE)
        top += measures.rule
        _draw_lines(pen, (2 * gap, top), block.prompt, measures, INK)
        for number, row in enumerate(block.rows):
            y = top + number * (measures.cell_height + gap)
            seed_at = (measures.left - gap * 2 - measures.seed_width, y)
            _draw_lines(pen, seed_at, [f"seed {row.seed}"], measures, SOFT)
            for column, i in enumerate(shown):
                _paste(page, pen, row.pictures[i], (measures.left + column * step, y), measures)
        top += block.height - measures.rule
    return page


def _draw_lines(
    pen: ImageDraw.ImageDraw,
    start: tuple[int, int],
    lines: Sequence[str],
    measures: Measures,
    colour: str,
    font: ImageFont.FreeTypeFont | None = None,
) -> None:
    for number, line in enumerate(lines):
        at = (start[0], start[1] + number * measures.line)
        pen.text(at, line, colour, font or measures.font)


def _paste(
    page: Image.Image,
    pen: ImageDraw.ImageDraw,
    path: Path | None,
    start: tuple[int, int],
    measures: Measures,
) -> None:
    """Put a picture on a page, or the mark of a failed one."""
    size = (measures.cell_width, measures.cell_height)
    if path:
        with Image.open(path) as picture:
            shown = picture.convert("RGB")
        if shown.size != size:
            shown = shown.resize(size, Image.Resampling.LANCZOS)
        page.paste(shown, start)
    else:
        box = (*start, start[0] + size[0] - 1, start[1] + size[1] - 1)
        pen.rectangle(box, FAILED)
        inside = (start[0] + measures.gap, start[1] + measures.gap)
        mark = wrapped("failed", measures.font, size[0] - 2 * measures.gap)
        _draw_lines(pen, inside, mark, measures, INK)
