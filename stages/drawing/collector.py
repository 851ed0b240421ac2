"""Pictures as they come from an engine: written while the next are drawn, failures kept in mind."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from PIL import Image

from stages.drawing.cache import CellCache
from stages.drawing.cell import Cell
from stages.harness.progress import Progress

WRITERS = 2  # threads that encode and write
BLACK = "a picture that is black throughout, as ComfyUI makes it of NaN; are the weights broken?"


class Collector:
    """Takes what is drawn, one cell at a time; use it as a context, whose end waits for the disk.

    A kill costs what is being drawn, and at most `ahead` pictures that were still to be written.
    """

    def __init__(self, cache: CellCache, job: str, total: int, ahead: int) -> None:
        """Start a job's clock.

        Args:
            cache: where pictures go.
            job: what the progress calls it.
            total: cells that will come.
            ahead: so many pictures may wait for the disk before the next must.
        """
        self.failures: dict[str, str] = {}  # by address, why a cell could not be drawn
        self._said: set[tuple[str, str]] = set()  # what models failed of, told once
        self._cache, self._ahead = cache, ahead
        self._progress = Progress(job, total)
        self._pool = ThreadPoolExecutor(WRITERS)
        self._writing: deque[Future[Path]] = deque()

    def __enter__(self) -> "Collector":
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait until all is written, and say how it went."""
        self._pool.shutdown()
        if kind is None:
            self._settle(0)
            if self._progress.total:
                self._progress.close()

    def take(self, model: str, cell: Cell, drawn: Image.Image | Exception) -> None:
        """Take a picture, or what it died of. One that is black throughout counts as failed.

        Raises:
            OSError: if an earlier picture could not be written.
        """
        if isinstance(drawn, Image.Image) and drawn.getbbox() is None:
            drawn = FloatingPointError(BLACK)
        if isinstance(drawn, Image.Image):
            self._settle(self._ahead - 1)
            self._writing.append(self._pool.submit(self._cache.put, cell, drawn))
        else:
            if (model, str(drawn)) not in self._said:  # a file cut short says the same of each
                print(f"{model}, seed {cell.seed}, {cell.prompt!r}: {drawn}", flush=True)
            self._said.add((model, str(drawn)))
            self.failures[cell.address] = f"{type(drawn).__name__}: {drawn}"
        self._progress.advance()

    def _settle(self, left: int) -> None:
        """Wait until no more than `left` pictures are unwritten; raise what befell the others."""
        while len(self._writing) > left:
            self._writing.popleft().result()
