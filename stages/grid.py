"""Draw the pictures by which models are compared, show them as sheets, and score them.

`cells` draws every prompt at every size and seed with each model; a picture that was drawn before,
by any grid, is not drawn again. A kill costs two batches of pictures at most: the one being drawn
and the one before it, which is written meanwhile. `sheet` puts the pictures side by side. `score`
lets a CLIP judge how well each shows its prompt.
"""

import argparse
import gc
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from stages.choice.cmmd import Floats, cmmd
from stages.choice.scorebook import ScoreBook, VectorBook
from stages.choice.scores import Score, write_scores
from stages.choice.summary import Mean, as_metrics, mean_of, mean_scores, write_means
from stages.harness.files import sha256_file, sha256_folder, sha256_json, write_json
from stages.harness.named import named_weights
from stages.harness.params import load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.harness.progress import Progress
from stages.harness.scratch import exclusive, replacing_folder, work_dir
from stages.harness.threads import wait_politely
from stages.images.cells import (
    MANIFEST,
    Cell,
    CellCache,
    Entry,
    GridParams,
    Manifest,
    ScoreParams,
    SheetParams,
    drawing_version,
    entry_name,
    planned_cells,
    publish,
    read_manifest,
)
from stages.images.known_hash import KnownHashes
from stages.images.manifest import read_manifest as read_rows
from stages.images.manifest import read_pictures
from stages.images.page_file import SUFFIX, save_page
from stages.images.sheet import Row, Sheet, pages

if TYPE_CHECKING:
    from stages.diffusion.aesthetic import AestheticHead
    from stages.diffusion.crew import Crew
    from stages.diffusion.model import Models
    from stages.diffusion.render import Easel
    from stages.diffusion.scorer import Scorer

Easels = dict[tuple[object, ...], "Easel"]  # by dtype and the like
WRITERS = 2  # threads that encode and write pictures while the next are drawn
Draw = Callable[[list[Cell]], list[Image.Image]]  # a full batch of one size and setting
# What one picture may die of: too little memory, a shape that the UNet cannot halve, NaN.
CELL_ERRORS = (RuntimeError, ValueError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class Column:
    """A model of a grid, and the cells that it is to draw."""

    name: str
    weights: Path
    sha256: str
    cells: list[Cell]


def run_cells(
    group: str, weights: dict[str, Path], config: Path, out: Path, report: Path, params: GridParams
) -> None:
    """Draw the cells of a group of models and publish them.

    Args:
        group: names the grid.
        weights: by model; drawn one model after the other.
        config: the diffusers folder that describes them all.
        out: one folder per model, and cells.json; what an older grid there holds is not drawn
            again.
        report: counts, JSON.
        params: the section `grid`.

    Raises:
        FileExistsError: if `out` holds something else than a grid.
        ValueError: if not one cell could be drawn.
    """
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise FileExistsError(f"{out}: will not replace it, for it holds no {MANIFEST}")
    drawing = _comfy_version(params) if params.engine == "comfyui" else None
    columns = _columns(weights, config, params, drawing)
    cache = CellCache(work_dir("cells"))
    with _crew() as crew, _held_once(work_dir("grid") / group, crew):
        if crew.rank == 0:
            _adopt(out, columns, cache)
        missing = _missing(columns, cache)
        missing = crew.gathered(missing)[0]  # others may have looked when some was drawn
        if params.engine == "comfyui":
            failures = _draw_on_servers(group, columns, missing, cache, params, crew)
        else:
            failures = draw_missing(group, columns, missing, config, cache, crew)
        failures = {k: v for part in crew.gathered(failures) for k, v in part.items()}
        if crew.rank == 0:
            _publish(group, columns, failures, cache, out, params)
            drawn = {cell.address for cells in missing.values() for cell in cells}
            write_json(report, _counts(columns, failures, len(drawn - failures.keys())))


def _crew() -> AbstractContextManager["Crew"]:
    """Join other processes only where there are any: torch takes seconds to import."""
    from stages.diffusion.crew import crew

    return crew()


@contextmanager
def _held_once(folder: Path, crew: "Crew") -> Iterator[None]:
    """Hold the scratch for the whole crew; an orphan may still be drawing."""
    if crew.rank:
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
    return {c.name: [cell for cell in c.cells if not cache.find(cell)] for c in columns}


def _publish(
    group: str,
    columns: Sequence[Column],
    failures: dict[str, str],
    cache: CellCache,
    out: Path,
    params: GridParams,
) -> None:
    categories = {(p.text, p.negative): p.category for p in params.all_prompts()}
    entries = [
        entry for column in columns for entry in _entries(column, failures, categories, params)
    ]
    if all(entry.failed for entry in entries):
        raise ValueError(f"grid {group}: every cell failed; the first: {entries[0].failed}")
    settings = {
        "negative_prompt": params.negative_prompt,
        "sampler": params.sampler,
        "steps": params.steps,
        "guidance": params.guidance,
        "clip_skip": params.clip_skip,
        "dtype": params.dtype,
        "batch_size": params.batch_size,
        "compile": params.compile,
        "vae_tile_px": params.vae_tile_px,
        "engine": params.engine,
        "drawing": columns[0].cells[0].drawing,
    }
    models = {column.name: column.sha256 for column in columns}
    with replacing_folder(out, "*") as scratch:
        cells = [cell for column in columns for cell in column.cells]
        publish(scratch, Manifest(group, models, settings, entries), cache, cells)


def _counts(columns: Sequence[Column], failures: dict[str, str], drawn: int) -> dict[str, Any]:
    failed = {c.name: sum(cell.address in failures for cell in c.cells) for c in columns}
    cells = sum(len(column.cells) for column in columns)
    return {
        "models": len(columns),
        "cells": cells,
        "drawn": drawn,
        "reused": cells - drawn - sum(failed.values()),
        "failed": sum(failed.values()),
        "failed_by_model": {name: count for name, count in failed.items() if count},
    }


def draw_missing(
    group: str,
    columns: Sequence[Column],
    missing: dict[str, list[Cell]],
    config: Path,
    cache: CellCache,
    crew: "Crew",
) -> dict[str, str]:
    """Draw what the cache does not hold, model by model, this process's share of it.

    Returns:
        By address, why a cell failed.
    """
    say_plan(group, columns, missing, crew)
    failures: dict[str, str] = {}
    shares = {
        column.name: list(batches(missing[column.name]))[crew.rank :: crew.size]
        for column in columns
    }
    total = sum(len(batch) for share in shares.values() for batch in share)
    progress = Progress(f"grid {group}", total)
    easels: Easels = {}  # lives as long as the job: models of one kind take each other's place
    with ThreadPoolExecutor(WRITERS) as pool:
        writing: list[Future[Path]] = []
        for column in columns:
            draw = open_model(column.weights, config, easels) if shares[column.name] else None
            for batch in shares[column.name]:
                assert draw
                drawn = draw_batch(draw, batch)
                _wait(writing)  # for the last batch: no more than one is ever unwritten
                for cell, picture in drawn.items():
                    if isinstance(picture, Image.Image):
                        writing.append(pool.submit(cache.put, cell, picture))
                    else:
                        failures[cell.address] = _told(column.name, cell, picture)
                    progress.advance()
            if draw:
                gc.collect()
        _wait(writing)
    if total:
        progress.close()
    return failures


def say_plan(
    group: str, columns: Sequence[Column], missing: dict[str, list[Cell]], crew: "Crew"
) -> None:
    """Say what will be drawn, once for the whole crew."""
    total, wanted = sum(map(len, missing.values())), sum(len(c.cells) for c in columns)
    if crew.rank == 0:
        print(
            f"grid {group}: {wanted:,} cells of {len(columns)} models, "
            f"{wanted - total:,} drawn before, {total:,} to draw",
            flush=True,
        )


def _wait(writing: list["Future[Path]"]) -> None:
    """Wait until pictures are written, and raise what befell them."""
    for future in writing:
        future.result()
    writing.clear()


def _told(model: str, cell: Cell, error: Exception) -> str:
    """Say that a cell failed, and give the reason as the manifest keeps it."""
    print(f"{model}, seed {cell.seed}, {cell.prompt!r}: {error}", flush=True)
    return f"{type(error).__name__}: {error}"


def batches(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Group cells of one size and setting, in their order, as many as are drawn at once."""
    for _, same in itertools.groupby(cells, key=_drawn_alike):
        alike = list(same)
        size = alike[0].batch_size
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _drawn_alike(cell: Cell) -> tuple[object, ...]:
    """Tell what all cells of a batch have in common."""
    shape = (cell.width, cell.height, cell.negative_prompt)
    return (*shape, cell.sampler, cell.steps, cell.guidance, cell.clip_skip)


def draw_batch(draw: Draw, batch: list[Cell]) -> dict[Cell, Image.Image | Exception]:
    """Draw a batch, filled up to its full size; after an error, each picture of it alone.

    Returns:
        By cell, the picture or what it died of.
    """
    try:
        drawn = draw([*batch, *batch[-1:] * (batch[0].batch_size - len(batch))])
        return dict(zip(batch, drawn, strict=False))
    except CELL_ERRORS as error:
        if len(batch) == 1:
            return {batch[0]: error}
    return {cell: drawn for one in batch for cell, drawn in draw_batch(draw, [one]).items()}


def open_model(weights: Path, config: Path, easels: "Easels") -> Draw:
    """Load a model when its first batch is drawn, as that batch wants it.

    Args:
        weights: of the model.
        config: the diffusers folder that describes it.
        easels: hold the last model that was drawn as a kind of batch wants it; its place is taken.
    """
    from stages.diffusion.render import Easel
    from stages.diffusion.sample import SamplingParams, draw

    loaded: dict[tuple[object, ...], Models] = {}
    refused: dict[tuple[object, ...], ValueError] = {}  # read once, not again for every cell

    def draw_cells(cells: list[Cell]) -> list[Image.Image]:
        cell = cells[0]
        kind = (cell.dtype, cell.compile, cell.vae_tile_px)
        if kind not in easels:
            easels[kind] = Easel(
                config,
                cell.dtype,
                compiled=cell.compile,
                tile_px=cell.vae_tile_px,
                cache=work_dir("compiled"),
            )
        if kind in refused:
            raise refused[kind]
        if kind not in loaded:
            try:
                loaded[kind] = easels[kind].put(weights)
            except ValueError as error:
                refused[kind] = error
                raise
        sampling = SamplingParams(
            sampler=cell.sampler,
            steps=cell.steps,
            guidance=cell.guidance,
            negative_prompt=cell.negative_prompt,
        )
        return draw(
            loaded[kind],
            [cell.prompt for cell in cells],
            [cell.seed for cell in cells],
            cell.width,
            cell.height,
            sampling,
            cell.clip_skip,
        )

    return draw_cells


def _columns(
    weights: dict[str, Path], config: Path, params: GridParams, drawing: str | None
) -> list[Column]:
    config_sha256 = sha256_folder(config)
    known = KnownHashes(work_dir("grid") / "hashes.jsonl")
    columns = []
    for name, path in weights.items():
        sha256 = known.sha256(path)
        cells = planned_cells(params, sha256, config_sha256, drawing)
        columns.append(Column(name, path, sha256, cells))
    return columns


def _entries(
    column: Column,
    failures: dict[str, str],
    categories: dict[tuple[str, str], str],
    params: GridParams,
) -> Iterator[Entry]:
    for number, cell in enumerate(column.cells, start=1):
        address = cell.address
        failed = failures.get(address)
        yield Entry(
            model=column.name,
            prompt=cell.prompt,
            seed=cell.seed,
            width=cell.width,
            height=cell.height,
            address=address,
            file=None if failed else entry_name(column.name, number),
            failed=failed,
            negative_prompt=cell.negative_prompt,
            category=categories[cell.prompt, cell.negative_prompt],
            setting=params.label(cell),
        )


def _comfy_version(params: GridParams) -> str:
    from stages.comfy.workflow import read_workflow

    return read_workflow(Path(params.comfyui.workflow)).version


def _draw_on_servers(
    group: str,
    columns: Sequence[Column],
    missing: dict[str, list[Cell]],
    cache: CellCache,
    params: GridParams,
    crew: "Crew",
) -> dict[str, str]:
    """Let ComfyUI servers draw what the cache does not hold.

    Returns:
        By address, why a cell failed.
    """
    from stages.comfy.spread import draw_on_servers
    from stages.comfy.workflow import read_workflow

    say_plan(group, columns, missing, crew)
    cells = [(name, cell) for name, wanted in missing.items() for cell in wanted]
    if crew.rank or not cells:
        return {}
    failures: dict[str, str] = {}
    progress = Progress(f"grid {group}", len(cells))

    def done(model: str, cell: Cell, drawn: Image.Image | Exception) -> None:
        if isinstance(drawn, Image.Image):
            cache.put(cell, drawn)
        else:
            failures[cell.address] = _told(model, cell, drawn)
        progress.advance()

    workflow = read_workflow(Path(params.comfyui.workflow))
    draw_on_servers(params.comfyui.servers, params.comfyui.timeout_s, workflow, cells, done)
    progress.close()
    return failures


def run_sheet(cells: Path, out: Path, columns: Sequence[str], params: SheetParams) -> None:
    """Compose a grid's cells into sheets, one per size, in pages where it is large.

    Args:
        cells: a grid that `run_cells` published.
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


def sheets(manifest: Manifest, cells: Path, columns: Sequence[str]) -> Iterator[Sheet]:
    """Arrange a grid's cells: a sheet per size, a row per prompt, seed and setting.

    There is a column per model.
    """
    at = {(e.model, *e.place): e for e in manifest.entries}
    settings = manifest.settings
    for width, height in dict.fromkeys((e.width, e.height) for e in manifest.entries):
        same_size = [e for e in manifest.entries if (e.width, e.height) == (width, height)]
        rows = []
        by_prompt = sorted(same_size, key=_prompt_order(same_size))
        for place in dict.fromkeys(e.place for e in by_prompt):
            entries = [at[name, *place] for name in columns]
            files = tuple(cells / entry.file if entry.file else None for entry in entries)
            first = entries[0]
            prompt, lines = first.prompt, first.setting.split(", ") if first.setting else []
            if first.negative_prompt != settings.get("negative_prompt", ""):
                prompt += f" (not: {first.negative_prompt})"
            rows.append(Row(prompt, first.seed, files, tuple(lines)))
        title = f"{manifest.group}, {width} x {height} px"
        if not same_size[0].setting:
            title += f", {settings['sampler']}, {settings['steps']} steps, "
            title += f"guidance {settings['guidance']:g}"
        yield Sheet(title, tuple(columns), tuple(rows), width, height)


def _prompt_order(entries: Sequence[Entry]) -> Callable[[Entry], int]:
    """Keep a prompt's rows together, in the order of the prompts."""
    order = {prompt: i for i, prompt in enumerate(dict.fromkeys(e.prompt for e in entries))}
    return lambda entry: order[entry.prompt]


@dataclass(frozen=True, slots=True)
class ScoreOuts:
    """What `run_score` writes."""

    scores: Path  # of every cell by the scorer, CSV; a failed cell's score is empty
    summary: Path | None = None  # means with intervals by model, JSON
    means: Path | None = None  # the same as CSV, to be plotted


def run_score(
    cells: Path,
    clip: Path,
    outs: ScoreOuts,
    params: ScoreParams,
    validation: Path | None = None,
) -> None:
    """Score each of a grid's cells by how well it shows its prompt, and average by model.

    Args:
        cells: a grid that `run_cells` published.
        clip: a folder with a CLIPModel, its tokenizer and image processor.
        outs: what is written.
        params: the section `grid.score`.
        validation: a manifest of real pictures, which the drawn ones are compared with.
    """
    manifest = read_manifest(cells)
    models = list(manifest.models)
    judge = Judge(clip)
    judge.look(manifest, cells)
    own = judge.scores(manifest)
    write_scores(outs.scores, own)
    if not (outs.summary or outs.means):
        return
    means = mean_scores("score", own, models, params)
    for name, folder in params.more:
        other = Judge(Path(folder))
        other.look(manifest, cells)
        means += mean_scores(name, other.scores(manifest), models, params)
    if params.aesthetic_head:
        liked = Judge(Path(params.aesthetic_clip), Path(params.aesthetic_head))
        liked.look(manifest, cells)
        means += mean_scores("aesthetic", liked.scores(manifest), models, params)
    if validation:
        means += _cmmd_means(manifest, judge, validation, params)
    if outs.means:
        write_means(outs.means, means)
    if outs.summary:
        write_json(
            outs.summary,
            {
                "scores": as_metrics(means),
                "confidence": params.confidence,
                "prompts": len({(e.prompt, e.negative_prompt) for e in manifest.entries}),
            },
        )


class Judge:
    """A CLIP, and a head if it has one, that remembers what it has seen."""

    def __init__(self, clip: Path, head: Path | None = None) -> None:
        """Open its books; the networks are loaded when there is something new to see."""
        self.clip, self.head = clip, head
        parts = [sha256_folder(clip), *([_sha256_of(head)] if head else []), drawing_version()]
        name = sha256_json(parts)[:16]
        self.book = ScoreBook(work_dir("scores"), name)
        self.vectors = VectorBook(work_dir("scores"), name)

    def look(self, manifest: Manifest, cells: Path) -> None:
        """Score the pictures that were not scored before."""
        missing = [
            entry
            for entry in manifest.entries
            if entry.file
            and (self.book.find(entry.address) is None or self.vectors.find(entry.address) is None)
        ]
        print(
            f"grid {manifest.group}: {len(manifest.entries):,} cells to score by "
            f"{(self.head or self.clip).name}, {len(missing):,} of them for the first time",
            flush=True,
        )
        if not missing:
            return
        progress = Progress(f"scores {manifest.group}", len(missing))
        scorer = _load_scorer(self.clip)
        head = _load_head(self.head, scorer.width) if self.head else None
        for entry in missing:
            assert entry.file
            with Image.open(cells / entry.file) as picture:
                embedding = scorer.embed(picture)
            score = (
                head.score(embedding) if head else scorer.score_embedding(embedding, entry.prompt)
            )
            self.vectors.put(entry.address, embedding[0].cpu().numpy())
            self.book.put(entry.address, score)
            progress.advance()
        progress.close()

    def scores(self, manifest: Manifest) -> list[Score]:
        """List every cell's score."""
        return [
            Score(
                e.model, e.prompt, e.seed, e.width, e.height, self.book.find(e.address), e.variant
            )
            for e in manifest.entries
        ]

    def real(self, validation: Path) -> Floats:
        """Embed the real pictures of a manifest, (n, D)."""
        found = []
        scorer = None
        for entry, content in read_pictures(read_rows(validation)):
            vector = self.vectors.find(entry.sha256)
            if vector is None:
                scorer = scorer or _load_scorer(self.clip)
                with Image.open(io.BytesIO(content)) as picture:
                    self.vectors.put(entry.sha256, scorer.embed(picture)[0].cpu().numpy())
                vector = self.vectors.find(entry.sha256)
            assert vector is not None
            found.append(vector)
        return np.stack(found)


def _cmmd_means(
    manifest: Manifest, judge: Judge, validation: Path, params: ScoreParams
) -> list[Mean]:
    """Compare each model's pictures with real ones."""
    real = judge.real(validation)
    if len(real) < 2:
        raise ValueError(f"{validation}: one picture is too few to compare with")
    means = []
    for model in manifest.models:
        seen = [
            (e.prompt, vector)
            for e in manifest.entries
            if e.model == model and (vector := judge.vectors.find(e.address)) is not None
        ]
        if len(seen) < 2:
            continue
        prompts = [prompt for prompt, _ in seen]
        drawn = np.stack([vector for _, vector in seen])
        value, resampled = cmmd(drawn, prompts, real, params.resamples, params.seed)
        means.append(mean_of(model, "cmmd", value, resampled, len(set(prompts)), params))
    return means


def _sha256_of(head: Path) -> str:
    if not head.is_file():
        raise FileNotFoundError(f"{head}: no such weights of an aesthetic head")
    return sha256_file(head)


def _load_scorer(clip: Path) -> "Scorer":
    from stages.diffusion.scorer import Scorer

    return Scorer(clip)


def _load_head(path: Path, width: int) -> "AestheticHead":
    from stages.diffusion.aesthetic import AestheticHead

    return AestheticHead(path, width)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.grid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = parser.add_subparsers(dest="word", required=True, metavar="cells | sheet | score")

    cells = words.add_parser("cells", help="draw the pictures of a group of models")
    cells.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="NAME=FILE, or a folder of epoch_*.safetensors whose files give the names",
    )
    cells.add_argument("--group", required=True, metavar="NAME", help="what the grid is called")
    cells.add_argument(
        "--config",
        type=Path,
        required=True,
        metavar="DIR",
        help="the diffusers folder that describes the models",
    )
    cells.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="comes to hold a folder of PNGs per model, and cells.json",
    )
    cells.add_argument(
        "--report", type=Path, required=True, metavar="FILE", help="counts, a JSON file"
    )

    sheet = words.add_parser("sheet", help="put a grid's pictures side by side, with labels")
    sheet.add_argument(
        "--cells", type=Path, required=True, metavar="DIR", help="what `cells` wrote"
    )
    sheet.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="comes to hold WIDTHxHEIGHT.png for each size, in pages if it is large",
    )
    sheet.add_argument(
        "--columns",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,NAME",
        help="the models to show, in this order (default: all)",
    )

    score = words.add_parser("score", help="let a CLIP judge each picture")
    score.add_argument(
        "--cells", type=Path, required=True, metavar="DIR", help="what `cells` wrote"
    )
    score.add_argument(
        "--clip",
        type=Path,
        required=True,
        metavar="DIR",
        help="a transformers CLIPModel, such as PickScore, with tokenizer and image processor",
    )
    score.add_argument("--out", type=Path, required=True, metavar="FILE", help="scores, a CSV file")
    for name, text in (
        ("summary", "means by model with intervals, a JSON file"),
        ("means", "the same as a CSV file, to be plotted"),
        ("validation", "a manifest of stages.split: its pictures are compared with, by CMMD"),
    ):
        score.add_argument(f"--{name}", type=Path, metavar="FILE", help=text)

    for word in (cells, sheet, score):
        add_params_option(word)
    return parser.parse_args(argv)


@contextmanager
def _clear_runtime_errors() -> Iterator[None]:
    """Tell in one message what the device lacks, as memory for a model; torch says it so."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"the device gave up: {error}") from error


def main() -> None:
    """Run from the command line."""
    wait_politely()
    options = parse()
    with clear_errors(), _clear_runtime_errors():
        match options.word:
            case "cells":
                run_cells(
                    options.group,
                    named_weights(options.models),
                    options.config,
                    options.out,
                    options.report,
                    load_params("grid", GridParams, options.params),
                )
            case "sheet":
                params = load_params("grid.sheet", SheetParams, options.params)
                run_sheet(options.cells, options.out, options.columns, params)
            case "score":
                run_score(
                    options.cells,
                    options.clip,
                    ScoreOuts(options.out, options.summary, options.means),
                    load_params("grid.score", ScoreParams, options.params),
                    options.validation,
                )


if __name__ == "__main__":
    main()
