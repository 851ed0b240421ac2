"""The viewer: every cell of every grid on one page that a browser opens from the disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.drawing.axes import axes_of, common_words, place_of, value_words
from stages.drawing.manifest import MANIFEST, Manifest, read_manifest
from stages.harness.files import link_or_copy

TEMPLATES = Path(__file__).parent / "templates"
VIEWER = "viewer.html"
PICTURES = "cells"  # beside the page, one folder per grid
DATA_MARK, TITLE_MARK = "@DATA@", "@TITLE@"  # where the template takes what varies
PARTS = {"@STYLE@": "viewer.css", "@SCRIPT@": "viewer.js"}  # one page to open, three to read


def write_viewer(
    folder: Path, reports: Path, order: Sequence[str], left_over: Sequence[str], title: str
) -> list[str]:
    """Put the viewer and the pictures that it shows into the site.

    Args:
        folder: of the site.
        reports: grids lie in it, or below.
        order: of the grids; others come after.
        left_over: names of grids that are not shown.
        title: of the page.

    Returns:
        The names of the grids shown; without any there is no viewer.
    """
    found = {}
    for path in sorted(reports.rglob(MANIFEST)):
        if folder not in path.parents and path.parent.name not in left_over:
            found[path.parent.name] = (path.parent, read_manifest(path.parent))
    names = sorted(found, key=lambda g: order.index(g) if g in order else len(order))
    if not names:
        return []
    for number, name in enumerate(names):
        cells, manifest = found[name]
        for entry in manifest.entries:
            if entry.file:
                link_or_copy(cells / entry.file, folder / PICTURES / str(number) / entry.file)
    shown = [
        grid_data(name, found[name][1], f"{PICTURES}/{number}/")
        for number, name in enumerate(names)
    ]
    text = _template().replace(TITLE_MARK, _escaped(title))
    page = text.replace(DATA_MARK, as_script(shown))
    (folder / VIEWER).write_text(page, encoding="utf-8")
    return names


def _template() -> str:
    """Read the page, with its style and its script in it."""
    page = (TEMPLATES / VIEWER).read_text(encoding="utf-8")
    for mark, name in PARTS.items():
        page = page.replace(mark, (TEMPLATES / name).read_text(encoding="utf-8"))
    return page


def grid_data(name: str, manifest: Manifest, base: str) -> dict[str, Any]:
    """Give what the page needs of a grid, each text once.

    Args:
        name: of the grid.
        manifest: what it holds.
        base: where its pictures lie, from the page.

    Returns:
        `axes` with the values of each in words, `common`, the settings that do not vary,
        `said`, what a prompt says after search and replace, by its number and the words replaced,
        `categories` by prompt, and `cells`: for each the numbers of its values, in the order of
        the axes, and its file, or what it failed of.
    """
    axes = axes_of(manifest)
    numbers = {
        axis: {value: number for number, value in enumerate(values)}
        for axis, values in axes.items()
    }
    category, cells, said = {}, [], {}
    for entry in manifest.entries:
        place = place_of(entry)
        category[place["prompt"]] = entry.category
        values = [known[place[axis]] for axis, known in numbers.items()]
        if entry.replaced:
            said[f"{numbers['prompt'][place['prompt']]}.{entry.replaced}"] = entry.prompt
        cells.append([*values, entry.file or "", *([entry.failed] if entry.failed else [])])
    return {
        "name": name,
        "base": base,
        "axes": {axis: [value_words(axis, v) for v in values] for axis, values in axes.items()},
        "common": common_words(manifest.settings, axes),
        "said": said,
        "categories": [category[prompt] for prompt in axes["prompt"]],
        "cells": cells,
    }


def as_script(value: Any) -> str:
    """Write JSON that may stand in a page's script element: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
