"""Sheets: cells side by side with their labels, page by page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from stages.sheets.sheet_params import SheetParams

FONT = "fonts/ttf/DejaVuSans.ttf"  # comes with matplotlib; Latin, Greek, Cyrillic and more
PAPER, INK, SOFT, RULE, FAILED = "#ffffff", "#1a1a1a", "#6b6b6b", "#dddddd", "#f0d9d9"
MIN_FONT_PX, MAX_FONT_PX = 13, 34
SMALLEST_HEAD_PX = 9  # a long name's font shrinks to this before the name is broken inside a word
CELLS_PER_FONT = 10  # a cell is this many letters high
PROMPT_EMS = 13  # width of the column with the prompts, in font sizes
LONGEST_SIDE_PX = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}  # that a format can hold
MOST_PIXELS = {"webp": 40_000_000}  # libwebp wants the whole page in memory, 4 bytes a pixel
LINE_HEIGHT = 1.3  # in font sizes
BREAK_AFTER = "-_./"  # where a long name may go on in the next line


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and seed, drawn by every model."""

    prompt: str
    seed: int
    pictures: tuple[Path | None, ...]  # by column; None is a failed cell
    setting: tuple[str, ...] = ()  # what else varies, a line each

    @property
    def label(self) -> tuple[str, ...]:
        """Name the row among those of its prompt."""
        return (f"seed {self.seed}", *self.setting)


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
    row_height: int  # of a cell, or of the labels beside it where those are higher
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
    """Rows of one prompt that stand on one page, and the prompt beside them, or a part of it."""

    prompt: tuple[str, ...]  # wrapped
    rows: tuple[Row, ...]
    height: int


@dataclass(frozen=True, slots=True)
class Band:
    """A strip of a page that is being drawn."""

    image: Image.Image
    pen: ImageDraw.ImageDraw
    above: int  # px of the page above it


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text on a page."""

    x: int
    top: int
    text: str
    colour: str
    font: ImageFont.FreeTypeFont
    height: int

    def paint(self, band: "Band") -> None:
        """Draw it on a band."""
        band.pen.text((self.x, self.top - band.above), self.text, self.colour, self.font)


@dataclass(frozen=True, slots=True)
class Rule:
    """A line that parts one prompt from the next."""

    top: int
    width: int
    height: int = 1

    def paint(self, band: "Band") -> None:
        """Draw it on a band."""
        y = self.top - band.above
        band.pen.line((0, y, self.width, y), RULE)


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture on a page, or the mark of a failed one."""

    x: int
    top: int
    width: int
    height: int
    path: Path | None
    measures: Measures

    def paint(self, band: "Band") -> None:
        """Draw it on a band."""
        x, y, size = self.x, self.top - band.above, (self.width, self.height)
        if self.path:
            band.image.paste(_opened(self.path, size), (x, y))
            return
        band.pen.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), FAILED)
        gap = self.measures.gap
        for number, line in enumerate(wrapped("failed", self.measures.font, size[0] - 2 * gap)):
            at = (x + gap, y + gap + number * self.measures.line)
            band.pen.text(at, line, INK, self.measures.font)


@lru_cache(maxsize=64)
def _opened(path: Path, size: tuple[int, int]) -> Image.Image:
    """Read a picture in the size shown; the last are kept, for bands cut through pictures."""
    with Image.open(path) as picture:
        shown = picture.convert("RGB")
    return shown if shown.size == size else shown.resize(size, Image.Resampling.LANCZOS)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a sheet, drawn when it is asked for, whole or band by band."""

    width: int
    height: int
    items: tuple[Text | Rule | Cell, ...]  # from top to bottom

    def image(self) -> Image.Image:
        """Draw the whole page."""
        return next(self.bands(self.height))

    def bands(self, height: int) -> Iterator[Image.Image]:
        """Draw the page in bands from top to bottom; only one is in memory.

        Args:
            height: of a band, px; the last one may be lower.
        """
        _opened.cache_clear()  # a picture may have been drawn anew
        for top in range(0, self.height, height):
            bottom = min(top + height, self.height)
            image = Image.new("RGB", (self.width, bottom - top), PAPER)
            band = Band(image, ImageDraw.Draw(image), top)
            for item in self.items:
                if item.top < bottom and item.top + item.height > top:
                    item.paint(band)
            yield image


def pages(sheet: Sheet, params: SheetParams) -> Iterator[Page]:
    """Lay a sheet out, one page at a time: models that do not fit first, then prompts.

    No label is cut: it is wrapped, and its row, column head or page grows to hold it.

    Args:
        sheet: what to show.
        params: how large; a page is never larger than its file's format holds.
    """
    measures = measure(sheet, params)
    longest = min(params.max_side_px, LONGEST_SIDE_PX[params.format])
    step = measures.cell_width + measures.gap
    per_page = max(1, (longest - measures.left - measures.gap) // step)
    for first in range(0, len(sheet.columns), per_page):
        shown = range(first, min(first + per_page, len(sheet.columns)))
        heads = [wrapped(sheet.columns[i], measures.head_font, measures.cell_width) for i in shown]
        width = measures.left + len(shown) * step + measures.gap
        title = wrapped(sheet.title, measures.font, width - 4 * measures.gap)
        top = _head_height(title, heads, measures)
        tallest = min(longest, MOST_PIXELS.get(params.format, width * longest) // width)
        for blocks in paginate(sheet, measures, tallest - top):
            yield _lay_out(blocks, shown, title, heads, measures, (width, top))


def measure(sheet: Sheet, params: SheetParams) -> Measures:
    """Choose sizes by the size of the cells."""
    cell_width, cell_height = sheet.width * params.scale, sheet.height * params.scale
    font_px = min(max(cell_height // CELLS_PER_FONT, MIN_FONT_PX), MAX_FONT_PX)
    font = load_font(font_px)
    line = round(font_px * LINE_HEIGHT)
    labels = [text for row in sheet.rows for text in row.label]
    return Measures(
        font=font,
        head_font=_head_font(sheet.columns, font_px, cell_width),
        cell_width=cell_width,
        cell_height=cell_height,
        row_height=max([cell_height, *(len(row.label) * line for row in sheet.rows)]),
        gap=max(2, font_px // 4),
        line=line,
        prompt_width=font_px * PROMPT_EMS,
        seed_width=max((int(font.getlength(text)) + 1 for text in labels), default=0),
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
    """Cut what no page holds: rows, and a prompt's lines, which then begin anew or go on alone."""
    step = measures.row_height + measures.gap
    rows_held = max(1, (room - measures.rule) // step)
    lines_held = max(1, (room - measures.rule - measures.gap) // measures.line)
    for prompt, group in groupby(sheet.rows, key=lambda row: row.prompt):
        lines = tuple(wrapped(prompt, measures.font, measures.prompt_width))
        texts = [lines[at : at + lines_held] for at in range(0, len(lines), lines_held)]
        rows = tuple(group)
        parts = [rows[at : at + rows_held] for at in range(0, len(rows), rows_held)]
        for number in range(max(len(texts), len(parts))):
            text = texts[number % len(texts)]
            part = parts[number] if number < len(parts) else ()
            height = max(len(part) * step, measures.text_height(text) + measures.gap)
            yield Block(text, part, height + measures.rule)


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


def _lay_out(
    blocks: Sequence[Block],
    shown: range,
    title: Sequence[str],
    heads: Sequence[Sequence[str]],
    measures: Measures,
    corner: tuple[int, int],
) -> Page:
    """Say where everything on a page stands.

    Args:
        blocks: rows from top to bottom.
        shown: columns, by number.
        title, heads: wrapped; one head per column shown.
        measures: of the sheet.
        corner: width of the page, and where its first row begins; px.
    """
    width, top = corner
    gap, step = measures.gap, measures.cell_width + measures.gap
    height = top + sum(block.height for block in blocks) + gap
    items: list[Text | Rule | Cell] = [*_lines((2 * gap, 2 * gap), title, measures, SOFT)]
    for column, head in enumerate(heads):
        start = (measures.left + column * step, top - gap - measures.text_height(head))
        items += _lines(start, head, measures, INK, measures.head_font)
    for block in blocks:
        items.append(Rule(top, width))
        top += measures.rule
        items += _lines((2 * gap, top), block.prompt, measures, INK)
        for number, row in enumerate(block.rows):
            y = top + number * (measures.row_height + gap)
            seed_at = (measures.left - gap * 2 - measures.seed_width, y)
            items += _lines(seed_at, row.label, measures, SOFT)
            for column, i in enumerate(shown):
                size = (measures.cell_width, measures.cell_height)
                x = measures.left + column * step
                items.append(Cell(x, y, *size, row.pictures[i], measures))
        top += block.height - measures.rule
    return Page(width, height, tuple(items))


def _lines(
    start: tuple[int, int],
    lines: Sequence[str],
    measures: Measures,
    colour: str,
    font: ImageFont.FreeTypeFont | None = None,
) -> Iterator[Text]:
    for number, line in enumerate(lines):
        # letters reach a little above and below their line
        top = start[1] + number * measures.line
        yield Text(start[0], top, line, colour, font or measures.font, 2 * measures.line)
