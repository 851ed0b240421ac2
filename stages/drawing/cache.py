"""Cells that were drawn once, so that no grid draws them again."""

import os
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stages.drawing.cell import NOISE_SCHEDULE, Cell
from stages.harness.files import link_or_copy

PNG_LEVEL = 1  # of zlib: 3 times as quick as its own choice of 6, files a sixth larger


class CellCache:
    """Pictures that were drawn once, by address; shared by all grids, safe to kill at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, cell: Cell) -> Path | None:
        """Give the picture's file; None if it is still to be drawn."""
        path = self._path(cell)
        return path if path.is_file() else None

    def put(self, cell: Cell, picture: Image.Image) -> Path:
        """Keep a picture: lossless, its text says how it was drawn, and nothing else is in it.

        Args:
            cell: says how it was drawn.
            picture: its `info` may name the model's noise schedule, which the cell does not know.
        """
        path = self._path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The process's own name: two grids may draw one cell at one time, and either may win.
        scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            with scratch.open("wb") as file:
                bare = Image.frombytes(picture.mode, picture.size, picture.tobytes())
                text = PngInfo()
                text.add_text("parameters", cell.parameters(picture.info.get(NOISE_SCHEDULE)))
                bare.save(file, format="PNG", pnginfo=text, compress_level=PNG_LEVEL)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        return path

    def adopt(self, cell: Cell, path: Path) -> None:
        """Take in a picture that a published grid holds, as one that came with `dvc pull`."""
        if path.is_file() and not self.find(cell):
            link_or_copy(path, self._path(cell))

    def _path(self, cell: Cell) -> Path:
        address = cell.address
        return self.folder / address[:2] / f"{address[2:]}.png"
