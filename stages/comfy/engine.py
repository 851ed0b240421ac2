"""The engine `comfyui`: cells drawn by ComfyUI servers."""

from collections.abc import Mapping
from pathlib import Path

from stages.comfy.spread import draw_on_servers
from stages.comfy.workflow import read_workflow
from stages.drawing.cache import CellCache
from stages.drawing.cell import Cell
from stages.drawing.collector import WRITERS, Collector
from stages.drawing.grid_params import ComfyParams


def draw_missing(
    group: str, missing: Mapping[str, list[Cell]], cache: CellCache, params: ComfyParams
) -> dict[str, str]:
    """Let ComfyUI servers draw what the cache does not hold.

    Args:
        group: names the grid.
        missing: cells to draw, by model.
        cache: where pictures go.
        params: the section `grid.comfyui`.

    Returns:
        By address, why a cell failed.
    """
    cells = [(name, cell) for name, wanted in missing.items() for cell in wanted]
    workflow = read_workflow(Path(params.workflow))
    with Collector(cache, f"grid {group}", len(cells), WRITERS) as collector:
        draw_on_servers(params.servers, params.timeout_s, workflow, cells, collector.take)
    return collector.failures
