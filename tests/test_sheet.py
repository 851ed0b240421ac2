"""Sheets: every cell and every letter of every label is on a page."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from stages import grid_sheet
from stages.sheets.layout import Page, Row, Sheet, load_font, pages, wrapped
from stages.sheets.page_file import write_jpeg, write_png
from stages.sheets.sheet_params import SheetParams

LONG_PROMPT = "a very long prompt about one red apple, glossy, " * 12
LONG_NAME = "hybrid-difference-of-the-third-version_minus_the-first.epoch_010"


def sheet_params(scale: int, max_side_px: int, format_: str = "png") -> SheetParams:
    return SheetParams(scale=scale, max_side_px=max_side_px, format=format_, quality=90)


def images(sheet: Sheet, params: SheetParams) -> Iterator[Image.Image]:
    for page in pages(sheet, params):
        yield page.image()


PARAMS = sheet_params(1, 4000)
Drawn = list[tuple[str, tuple[float, float, float, float], tuple[int, int]]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Record each text: what, its box, and the size of its page."""
    texts: Drawn = []
    write = ImageDraw.ImageDraw.text

    def record(pen: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, *args: object) -> None:
        box = pen.textbbox(xy, text, args[1])  # type: ignore[arg-type]
        texts.append((text, box, pen.im.size))
        write(pen, xy, text, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return texts


def make_sheet(
    folder: Path, *, prompts: list[str], seeds: int, columns: list[str], side: int = 64
) -> Sheet:
    """Make a sheet whose cells are of one colour each: red is the column, green the row."""
    rows = []
    for number, (prompt, seed) in enumerate((p, s) for p in prompts for s in range(seeds)):
        files = []
        for column in range(len(columns)):
            file = folder / f"{number}_{column}.png"
            Image.new("RGB", (side, side), (column + 1, number + 1, 255)).save(file)
            files.append(file)
        rows.append(Row(prompt, seed, tuple(files)))
    return Sheet("grid train.64, 64 x 64 px", tuple(columns), tuple(rows), side, side)


def cells_on(page: Image.Image, side: int = 64) -> dict[tuple[int, int], int]:
    """Count the pixels of each cell by its colour; drop what labels' smooth edges make."""
    pixels = np.asarray(page).reshape(-1, 3)
    colours, counts = np.unique(pixels[pixels[:, 2] == 255], axis=0, return_counts=True)
    return {
        (int(c[0]) - 1, int(c[1]) - 1): int(n)
        for c, n in zip(colours, counts, strict=True)
        if c[0] < 100 and n == side * side
    }


def test_every_cell_is_on_the_page_whole(tmp_path: Path) -> None:
    sheet = make_sheet(tmp_path, prompts=["a", "b"], seeds=2, columns=["x", "y", "z"])
    (page,) = images(sheet, PARAMS)
    assert cells_on(page).keys() == {(c, r) for c in range(3) for r in range(4)}


def test_labels_lie_inside_the_page_and_nothing_of_them_is_lost(
    tmp_path: Path, drawn: Drawn
) -> None:
    prompts = [LONG_PROMPT, "short", "x" * 300]
    sheet = make_sheet(tmp_path, prompts=prompts, seeds=2, columns=[LONG_NAME, "b"])
    (page,) = images(sheet, PARAMS)
    for _, (left, top, right, bottom), (width, height) in drawn:
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height
    written = "".join(text for text, *_ in drawn).replace(" ", "")
    for label in (*prompts, LONG_NAME, "seed 0", "seed 1", sheet.title):
        assert label.replace(" ", "") in written
    assert len(cells_on(page)) == 12


def test_labels_do_not_run_into_each_other(tmp_path: Path, drawn: Drawn) -> None:
    columns = [LONG_NAME, LONG_NAME + "2"]
    sheet = make_sheet(tmp_path, prompts=[LONG_PROMPT, "b"], seeds=3, columns=columns)
    list(images(sheet, PARAMS))
    boxes = [box for _, box, _ in drawn]
    for i, (left, top, right, bottom) in enumerate(boxes):
        for other_left, other_top, other_right, other_bottom in boxes[i + 1 :]:
            apart = right <= other_left or other_right <= left
            assert apart or bottom <= other_top or other_bottom <= top


def test_a_prompt_higher_than_a_page_goes_on_on_the_next(tmp_path: Path, drawn: Drawn) -> None:
    """WebP ends at 16,383 px; two thousand words take 27,000."""
    prompt = " ".join(f"word{number}" for number in range(2000))
    sheet = make_sheet(tmp_path, prompts=[prompt, "b"], seeds=2, columns=["x"])
    for params in (sheet_params(1, 99_999, "webp"), sheet_params(1, 600)):
        drawn.clear()
        found = list(images(sheet, params))
        assert len(found) > 1
        assert max(page.height for page in found) <= min(params.max_side_px, 16_383)
        assert all(box[3] <= height for _, box, (_, height) in drawn)
        written = [word for text, *_ in drawn for word in text.split()]
        assert [w for w in written if w.startswith("word")] == prompt.split()
        cells = [cell for page in found for cell in cells_on(page)]
        assert sorted(cells) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_labels_higher_than_a_cell_do_not_run_into_the_next_row(
    tmp_path: Path, drawn: Drawn
) -> None:
    sheet = make_sheet(tmp_path, prompts=["a"], seeds=3, columns=["x"])
    setting = ("dpmpp_2m_karras", "25 steps", "guidance 7", "clip skip 2")
    rows = tuple(dataclasses.replace(row, setting=setting) for row in sheet.rows)
    (page,) = images(dataclasses.replace(sheet, rows=rows), PARAMS)
    tops = [box[1] for text, box, _ in drawn if text.startswith("seed")]
    ends = [box[3] for text, box, _ in drawn if text.startswith("clip")]
    assert all(end <= top for end, top in zip(ends[:-1], tops[1:], strict=True))
    assert len(cells_on(page)) == 3


def test_cells_are_scaled_and_keep_their_shape(tmp_path: Path) -> None:
    sheet = make_sheet(tmp_path, prompts=["a"], seeds=1, columns=["x"])
    (page,) = images(sheet, sheet_params(3, 4000))
    assert cells_on(page, side=192) == {(0, 0): 192 * 192}


@pytest.mark.parametrize("max_side_px", [420, 600, 800])
def test_a_large_sheet_is_split_and_no_cell_is_lost_or_doubled(
    tmp_path: Path, max_side_px: int
) -> None:
    columns = [f"model {i}" for i in range(7)]
    sheet = make_sheet(tmp_path, prompts=["a", "b", "c", "d"], seeds=3, columns=columns)
    drawn = list(images(sheet, sheet_params(1, max_side_px)))
    assert len(drawn) > 1
    found = [cell for page in drawn for cell in cells_on(page)]
    assert len(found) == len(set(found)) == 7 * 12
    assert all(max(page.size) <= max_side_px for page in drawn)


def test_a_prompts_rows_stay_on_one_page(tmp_path: Path) -> None:
    sheet = make_sheet(tmp_path, prompts=["a", "b", "c"], seeds=3, columns=["x"])
    for page in images(sheet, sheet_params(1, 600)):
        rows = {row for _, row in cells_on(page)}
        assert rows in ({0, 1, 2, 3, 4, 5}, {6, 7, 8})


def test_a_failed_cell_is_marked(tmp_path: Path, drawn: Drawn) -> None:
    row = Row("a", 1, (None,))
    (page,) = images(Sheet("t", ("x",), (row,), 64, 64), PARAMS)
    assert "failed" in [text for text, *_ in drawn]
    colours = page.getcolors(page.width * page.height) or []
    assert any(colour == (0xF0, 0xD9, 0xD9) for _, colour in colours)


@pytest.mark.parametrize("text", [LONG_PROMPT, LONG_NAME, "x" * 200, "", "ab  c\nd", "приве́т мир"])
@pytest.mark.parametrize("width", [5, 60, 300])
def test_wrapping_loses_no_letter_and_fits_where_a_letter_does(text: str, width: int) -> None:
    font = load_font(13)
    lines = wrapped(text, font, width)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    assert all(font.getlength(line) <= width or len(line) == 1 for line in lines)


def test_names_break_after_a_hyphen_rather_than_inside_a_word() -> None:
    assert wrapped("hybrid-difference", load_font(13), 90) == ["hybrid-", "difference"]


def test_sheets_of_a_grid_are_named_by_size_and_take_the_columns_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = []
    for model in ("a", "b"):
        for number, side in enumerate((64, 96), start=1):
            file = f"{model}/{number:04}.png"
            (tmp_path / "cells" / model).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side)).save(tmp_path / "cells" / file)
            size = {"width": side, "height": side}
            entry = {"model": model, "prompt": "p", "seed": 1, "address": "", "failed": None}
            entries.append({**entry, **size, "file": file})
    models = [{"name": name, "weights": ""} for name in ("a", "b")]
    settings = {"sampler": "euler", "steps": 15, "guidance": 5.0}
    manifest = {"group": "g", "models": models, "settings": settings, "cells": entries}
    (tmp_path / "cells" / "cells.json").write_text(json.dumps(manifest))
    seen: list[Sheet] = []

    def pages_seen(sheet: Sheet, params: SheetParams) -> Iterator[Page]:
        seen.append(sheet)
        yield from pages(sheet, params)

    monkeypatch.setattr(grid_sheet, "pages", pages_seen)
    grid_sheet.run(tmp_path / "cells", tmp_path / "sheets", ["b", "a"], PARAMS)
    assert sorted(p.name for p in (tmp_path / "sheets").iterdir()) == ["64x64.png", "96x96.png"]
    assert [s.columns for s in seen] == [("b", "a"), ("b", "a")]
    with pytest.raises(ValueError, match="no model 'c' in this grid; it holds a, b"):
        grid_sheet.run(tmp_path / "cells", tmp_path / "sheets", ["c"], PARAMS)
    small = sheet_params(1, 10)
    grid_sheet.run(tmp_path / "cells", tmp_path / "sheets", [], small)
    names = sorted(p.name for p in (tmp_path / "sheets").iterdir())
    assert names == ["64x64_1.png", "64x64_2.png", "96x96_1.png", "96x96_2.png"]


@pytest.mark.parametrize("band", [16, 160, 4096])
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_page_written_in_bands_is_the_page_drawn_whole(
    tmp_path: Path, kind: str, band: int
) -> None:
    sheet = make_sheet(tmp_path, prompts=[LONG_PROMPT, "b"], seeds=3, columns=["x", LONG_NAME])
    (page,) = pages(sheet, PARAMS)
    path, whole = tmp_path / "page", page.image()
    with path.open("wb") as file:
        if kind == "png":
            write_png(file, page, band)
        else:
            write_jpeg(file, page, 90, band)
    with Image.open(path) as read:
        assert (read.format, read.size) == (kind.upper(), whole.size)
        pixels = np.asarray(read.convert("RGB")).astype(int)
    whole.save(tmp_path / "whole", kind.upper(), quality=90)
    with Image.open(tmp_path / "whole") as usual:
        assert (pixels == np.asarray(usual.convert("RGB"))).all()


@pytest.mark.parametrize(("format_", "suffix"), [("jpeg", "jpg"), ("webp", "webp"), ("png", "png")])
def test_a_format_that_cannot_hold_a_page_gets_more_of_them(
    tmp_path: Path, format_: str, suffix: str
) -> None:
    path = tmp_path / "cell.png"
    Image.new("RGB", (64, 64), (9, 9, 9)).save(path)
    rows = tuple(Row(f"p{i // 8}", i % 8, (path,)) for i in range(1200))
    sheet = Sheet("t", ("x",), rows, 64, 64)
    sizes = [(p.width, p.height) for p in pages(sheet, sheet_params(1, 10**6, format_))]
    longest = {"jpeg": 65_500, "webp": 16_383, "png": 10**6}[format_]
    assert all(max(size) <= longest for size in sizes)
    assert len(sizes) == {"jpeg": 2, "webp": 5, "png": 1}[format_]


LARGE = """
import re, sys
from pathlib import Path
from stages.sheets.sheet_params import SheetParams
from stages.sheets.page_file import save_page
from stages.sheets.layout import Row, Sheet, pages

cell, out, format_ = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
rows = tuple(Row(f"prompt {i // 4}", i % 4, (cell,) * 13) for i in range(84))
sheet = Sheet("large", tuple(f"epoch_{i:03}" for i in range(13)), rows, 512, 512)
params = SheetParams(scale=1, max_side_px=65_000, format=format_, quality=90)
for page in pages(sheet, params):
    save_page(page, out, format_, params.quality)
    print(page.width * page.height)
# not getrusage, whose peak is that of the process that started this one, if it was larger
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.parametrize("format_", ["png", "jpeg"])
def test_a_sheet_of_286_megapixels_takes_less_than_400_mb(tmp_path: Path, format_: str) -> None:
    path = tmp_path / "cell.png"
    Image.linear_gradient("L").convert("RGB").resize((512, 512)).save(path)
    command = [sys.executable, "-c", LARGE, str(path), str(tmp_path / "sheet"), format_]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    pixels, kilobytes = int(said[0]), int(said[-1])
    assert len(said) == 2, "one page"
    assert pixels > 286_000_000
    assert kilobytes < 400_000
    assert (tmp_path / "sheet").stat().st_size > 1_000_000
