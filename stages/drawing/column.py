"""A model of a grid, and the cells that it is to draw."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.drawing.cell import Cell
from stages.drawing.grid_params import GridParams, planned_cells
from stages.drawing.manifest import Entry, entry_name
from stages.harness.files import sha256_folder
from stages.images.known_hash import KnownHashes


@dataclass(frozen=True, slots=True)
class Column:
    """One model, which stands in a sheet as a column."""

    name: str
    weights: Path
    sha256: str
    cells: list[Cell]

    def entries(self, failures: Mapping[str, str], params: GridParams) -> Iterator[Entry]:
        """Describe its cells for the manifest.

        Args:
            failures: by address, why a cell could not be drawn.
            params: the section `grid`.
        """
        prompts = {(prompt.text, prompt.negative): prompt for prompt in params.all_prompts()}
        for number, cell in enumerate(self.cells, start=1):
            address = cell.address
            failed = failures.get(address)
            prompt = prompts[cell.prompt, cell.negative_prompt]
            yield Entry(
                model=self.name,
                prompt=cell.prompt,
                seed=cell.seed,
                width=cell.width,
                height=cell.height,
                address=address,
                file=None if failed else entry_name(self.name, number),
                failed=failed,
                negative_prompt=cell.negative_prompt,
                category=prompt.category,
                setting=params.label(cell),
                written=prompt.written,
                replaced=prompt.replaced,
            )


def plan_columns(
    weights: Mapping[str, Path],
    config: Path,
    params: GridParams,
    hashes: KnownHashes,
    drawing: str,
) -> list[Column]:
    """Plan what each model draws.

    Args:
        weights: by model.
        config: the diffusers folder that describes them all.
        params: the section `grid`.
        hashes: of weights that were read before.
        drawing: names what draws.
    """
    config_sha256 = sha256_folder(config)
    columns = []
    digests = hashes.sha256_of_all(weights.values())
    for (name, path), sha256 in zip(weights.items(), digests, strict=True):
        cells = planned_cells(params, sha256, config_sha256, drawing)
        columns.append(Column(name, path, sha256, cells))
    return columns
