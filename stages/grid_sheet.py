"""Put a grid's pictures side by side, with labels: one sheet per size, in pages if it is large."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stages.drawing.manifest import read_manifest
from stages.harness.params import load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.harness.scratch import replacing_folder
from stages.sheets.arrange import sheets
from stages.sheets.layout import pages
from stages.sheets.page_file import SUFFIX, save_page
from stages.sheets.sheet_params import SheetParams


def run(cells: Path, out: Path, columns: Sequence[str], params: SheetParams) -> None:
    """Compose a grid's cells into sheets, one per size, in pages where it is large.

    Args:
        cells: a grid that `stages.grid_cells` published.
        out: comes to hold WIDTHxHEIGHT.png, or WIDTHxHEIGHT_1.png and on; .jpg or .webp, if the
            params say so.
        columns: models to show, in this order; none shows all.
        params: the section `grid.sheet`.

    Raises:
        ValueError: if a column is no model of the grid.
    """
    manifest = read_manifest(cells)
    if unknown := [name for name in columns if name not in manifest.models]:
        known = ", ".join(manifest.models)
        raise ValueError(f"{cells}: no model {unknown[0]!r} in this grid; it holds {known}")
    suffix = SUFFIX[params.format]
    with replacing_folder(out, "*x*.*") as scratch:
        for sheet in sheets(manifest, cells, columns or list(manifest.models)):
            name = f"{sheet.width}x{sheet.height}"
            for number, page in enumerate(pages(sheet, params), start=1):
                path = scratch / f"{name}_{number}{suffix}"
                save_page(page, path, params.format, params.quality)
                print(f"{sheet.title}, page {number}: {page.width:,} x {page.height:,} px")
            if not (scratch / f"{name}_2{suffix}").exists():
                (scratch / f"{name}_1{suffix}").rename(scratch / f"{name}{suffix}")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m stages.grid_sheet", description=__doc__)
    parser.add_argument(
        "--cells", type=Path, required=True, metavar="DIR", help="what `stages.grid_cells` wrote"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="comes to hold WIDTHxHEIGHT.png for each size, in pages if it is large",
    )
    parser.add_argument(
        "--columns",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,NAME",
        help="the models to show, in this order (default: all)",
    )
    add_params_option(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run from the command line."""
    options = parse()
    with clear_errors():
        params = load_params("grid.sheet", SheetParams, options.params)
        run(options.cells, options.out, options.columns, params)


if __name__ == "__main__":
    main()
