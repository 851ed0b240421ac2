"""Draw the pictures by which models are compared: every prompt at every size and seed.

A picture that was drawn before, by any grid, is not drawn again. A kill costs two batches of
pictures at most: the one being drawn and the one before it, which is written meanwhile.
"""

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from stages.comfy.workflow import read_workflow
from stages.diffusion.crew import Crew, crew
from stages.diffusion.device_errors import clear_device_errors
from stages.diffusion.device_kind import device_kind
from stages.drawing.cache import CellCache
from stages.drawing.cell import COMFYUI, TORCH, Cell, drawing_version
from stages.drawing.column import Column, plan_columns
from stages.drawing.grid_params import GridParams
from stages.drawing.manifest import MANIFEST, Manifest, publish, read_manifest
from stages.harness.compiled import compiled_code
from stages.harness.counted import counted
from stages.harness.files import write_json
from stages.harness.named import named_weights
from stages.harness.params import load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.harness.scratch import exclusive, replacing_folder, work_dir
from stages.harness.threads import wait_politely
from stages.images.known_hash import KnownHashes


@dataclass(frozen=True, slots=True)
class CellsOuts:
    """What `run` writes."""

    cells: Path  # a folder per model, and cells.json; what an older grid there holds is kept
    report: Path  # counts that the recipe determines, JSON
    drawn: Path | None = None  # how many pictures this run paid for, JSON


def run(
    group: str, weights: dict[str, Path], config: Path, outs: CellsOuts, params: GridParams
) -> None:
    """Draw the cells of a group of models and publish them.

    Args:
        group: names the grid.
        weights: by model; drawn one model after the other.
        config: the diffusers folder that describes them all.
        outs: what is written.
        params: the section `grid`.

    Raises:
        FileExistsError: if the folder of cells holds something else than a grid.
        ValueError: if not one cell could be drawn.
    """
    out = outs.cells
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise FileExistsError(f"{out}: will not replace it, for it holds no {MANIFEST}")
    compiled_code()  # before an import chooses another folder
    hashes = KnownHashes(work_dir("grid") / "hashes.jsonl")
    with ThreadPoolExecutor(1) as beside:  # ends before anything else imports diffusers
        if params.engine == TORCH and not all(map(hashes.knows, weights.values())):
            imports = beside.submit(_import_what_draws, params.compile)
        else:
            imports = None
        columns = plan_columns(weights, config, params, hashes, _what_draws(params, out))
    if imports:
        imports.result()
    cache = CellCache(work_dir("cells"))
    with crew() as ours, _held_once(work_dir("grid") / group, ours):
        if ours.rank == 0:
            _adopt(out, columns, cache)
        missing = _missing(columns, cache)
        missing = ours.gathered(missing)[0]  # others may have looked when some was drawn
        if ours.rank == 0:
            _say_plan(group, columns, missing)
        failures = _draw(group, columns, missing, config, cache, params, ours)
        failures = {k: v for part in ours.gathered(failures) for k, v in part.items()}
        if ours.rank == 0:
            _publish(group, columns, failures, cache, out, params)
            write_json(outs.report, _counts(columns, failures))
            if failures:
                print(f"grid {group}: {counted(len(failures), 'cell')} failed, see {outs.report}")
            if outs.drawn:
                write_json(outs.drawn, _work_done(columns, missing, failures))


def _import_what_draws(compiled: bool) -> None:
    """Import what takes seconds."""
    import_module("stages.diffusion.engine")
    from stages.diffusion.model import import_networks

    import_networks()
    if compiled:
        import_module("torch._inductor.compile_fx")


def _what_draws(params: GridParams, out: Path) -> str:
    """Name the code, or the servers' code and graph, and the kind of device that it runs on.

    Raises:
        ConnectionError: if no server answers, and `out` does not tell what drew it with this graph.
        ValueError: if the graph would draw alike what is to differ.
    """
    if params.engine == TORCH:
        return drawing_version(device_kind())
    from stages.comfy.spread import version_of

    comfyui = params.comfyui
    workflow = read_workflow(Path(comfyui.workflow))
    for word, why in _varied(params):
        if word not in workflow.words:
            raise ValueError(
                f"{comfyui.workflow}: {{{{{word}}}}} stands nowhere in it, but {why}: their "
                "pictures would be alike"
            )
    try:
        return f"{version_of(comfyui.servers, comfyui.timeout_s)}, {workflow.version}"
    except ConnectionError:
        drew = read_manifest(out).settings["drawing"] if (out / MANIFEST).is_file() else ""
        if not drew.endswith(workflow.version):
            raise
        return str(drew)  # a grid that lacks nothing needs no server


def _varied(params: GridParams) -> Iterator[tuple[str, str]]:
    """Name the words of a graph by which cells of one prompt, seed and size differ, and why."""
    axes = {
        "sampler": "sampler",
        "steps": "steps",
        "guidance": "guidance",
        "clip_layer": "clip_skip",
    }
    for word, axis in axes.items():
        if getattr(params.axes, axis):
            yield word, f"grid.axes.{axis} names several"
    if len({prompt.negative for prompt in params.all_prompts()}) > 1:
        yield "negative_prompt", "the prompts have different negative ones"


@contextmanager
def _held_once(folder: Path, ours: Crew) -> Iterator[None]:
    """Hold the scratch for the whole crew; an orphan may still be drawing."""
    if ours.rank:
        yield
    else:
        with exclusive(folder):
            yield


def _adopt(out: Path, columns: Sequence[Column], cache: CellCache) -> None:
    """Take in what an older grid holds, as one that came with `dvc pull`."""
    if not (out / MANIFEST).is_file():
        return
    wanted = {cell.address: cell for column in columns for cell in column.cells}
    for entry in read_manifest(out).entries:
        if entry.file and entry.address in wanted:
            cache.adopt(wanted[entry.address], out / entry.file)


def _missing(columns: Sequence[Column], cache: CellCache) -> dict[str, list[Cell]]:
    """List by model what is to be drawn; of models of the same weights the first draws for all."""
    taken: set[str] = set()
    missing = {}
    for column in columns:
        wanted = {cell.address: cell for cell in column.cells if not cache.find(cell)}
        missing[column.name] = [cell for address, cell in wanted.items() if address not in taken]
        taken |= wanted.keys()
    return missing


def _say_plan(group: str, columns: Sequence[Column], missing: dict[str, list[Cell]]) -> None:
    total = sum(map(len, missing.values()))
    wanted = len({cell.address for column in columns for cell in column.cells})
    print(
        f"grid {group}: {counted(wanted, 'cell')} of {counted(len(columns), 'model')}, "
        f"{wanted - total:,} drawn before, {total:,} to draw",
        flush=True,
    )


def _draw(
    group: str,
    columns: Sequence[Column],
    missing: dict[str, list[Cell]],
    config: Path,
    cache: CellCache,
    params: GridParams,
    ours: Crew,
) -> dict[str, str]:
    """Let the engine draw what is missing; tell by address why a cell failed."""
    if not any(missing.values()):
        return {}  # without an import of torch, which takes seconds
    if params.engine == COMFYUI:
        from stages.comfy import engine as servers

        return {} if ours.rank else servers.draw_missing(group, missing, cache, params.comfyui)
    from stages.diffusion import engine

    return engine.draw_missing(group, columns, missing, config, cache, ours)


def _publish(
    group: str,
    columns: Sequence[Column],
    failures: dict[str, str],
    cache: CellCache,
    out: Path,
    params: GridParams,
) -> None:
    entries = [entry for column in columns for entry in column.entries(failures, params)]
    if all(entry.failed for entry in entries):
        raise ValueError(f"grid {group}: every cell failed; the first: {entries[0].failed}")
    names = ["negative_prompt", "sampler", "steps", "guidance", "clip_skip", "engine"]
    if params.engine == TORCH:  # no server is told these
        names += ["dtype", "batch_size", "compile", "vae_tile_px"]
    settings = {name: getattr(params, name) for name in names}
    settings["drawing"] = columns[0].cells[0].drawing
    models = {column.name: column.sha256 for column in columns}
    with replacing_folder(out, "*") as scratch:
        cells = [cell for column in columns for cell in column.cells]
        publish(scratch, Manifest(group, models, settings, entries), cache, cells)


def _counts(columns: Sequence[Column], failures: dict[str, str]) -> dict[str, Any]:
    failed = {c.name: sum(cell.address in failures for cell in c.cells) for c in columns}
    return {
        "models": len(columns),
        "cells": sum(len(column.cells) for column in columns),
        "failed": sum(failed.values()),
        "failed_by_model": {name: count for name, count in failed.items() if count},
    }


def _work_done(
    columns: Sequence[Column], missing: dict[str, list[Cell]], failures: dict[str, str]
) -> dict[str, int]:
    """Count what was drawn now and what was there before; equal cells of two models are one."""
    wanted = {cell.address for column in columns for cell in column.cells} - failures.keys()
    drawn = {cell.address for cells in missing.values() for cell in cells} - failures.keys()
    return {"drawn": len(drawn), "reused": len(wanted) - len(drawn)}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.grid_cells",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="NAME=FILE, or a folder of epoch_*.safetensors whose files give the names",
    )
    parser.add_argument("--group", required=True, metavar="NAME", help="what the grid is called")
    for name, metavar, text in (
        ("config", "DIR", "the diffusers folder that describes the models"),
        ("out", "DIR", "comes to hold a folder of PNGs per model, and cells.json"),
        ("report", "FILE", "counts of cells and failures, a JSON file"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar=metavar, help=text)
    parser.add_argument(
        "--drawn",
        type=Path,
        metavar="FILE",
        help="counts of pictures drawn by this run and of those that were there, a JSON file",
    )
    add_params_option(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run from the command line."""
    wait_politely()
    options = parse()
    with clear_errors(), clear_device_errors():
        run(
            options.group,
            named_weights(options.models),
            options.config,
            CellsOuts(options.out, options.report, options.drawn),
            load_params("grid", GridParams, options.params),
        )


if __name__ == "__main__":
    main()
