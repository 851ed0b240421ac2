"""Release the winner: a file that says what it is, a model card, and hashes to know it by.

  python -m stages.release --weights FILE --config DIR --cells DIR --choice FILE --reports DIR
                           --split DIR --reference FILE --out DIR --report FILE
  python -m stages.release verify FILE

The sections `release` and `ingredients` of the params say what no computer can know: title,
author, date, and whose models went in under which licence. A file whose ancestry, as its
metadata tells it, holds an ingredient that may not be merged is not released; nor is one with a
source that `ingredients` does not list.

--out comes to hold NAME.safetensors, NAME.md, hashes.json, pictures, and the same model as a
diffusers folder; NAME is release.name in the params. `verify` hashes a released file again,
compares with hashes.json and with what the file says of itself, and shows its ancestry.
"""

import argparse
import base64
import io
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image
from pyarrow.parquet import read_metadata

from stages.diffusion.ancestry import Lineage, read_lineage
from stages.diffusion.comparison import Reference
from stages.diffusion.digests import TENSORS_HASH, digest_file
from stages.diffusion.header import read_header
from stages.diffusion.header_length import check_header_length
from stages.diffusion.ingredient import Ingredient, check_licences, hash_ingredients
from stages.diffusion.model import save_diffusers
from stages.diffusion.model_card import Choice, Sample, ancestor_tree, model_card
from stages.diffusion.modelspec import (
    ReleaseParams,
    check_filled_in,
    release_metadata,
    write_release,
)
from stages.diffusion.shares import leaf_shares, merge_shares
from stages.harness.file_command import file_command
from stages.harness.files import replacing, sha256_file, write_json
from stages.harness.params import load_named_params, load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.images.cells import Entry, read_manifest

HASHES = "hashes.json"
SAMPLES = 12  # pictures on the card
THUMBNAIL_PX = 256  # longer side; ModelSpec asks for a small picture


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the stages before know of the winner."""

    cells: Path  # the last grid, in which the winner drew
    choice: Path  # the report of the last choice
    reports: Path  # folder of the stages' counts
    split: Path  # folder of the manifests, train.parquet and validation.parquet
    reference: Path  # the cocktail before, with which the choice compares


def run(
    weights: Path,
    out: Path,
    report: Path,
    params: ReleaseParams,
    ingredients: Mapping[str, Ingredient],
    config: Path | None = None,
    evidence: Evidence | None = None,
) -> None:
    """Release one file.

    Args:
        weights: the winner.
        out: a folder; other files in it stay.
        report: a JSON file.
        params: the section `release`.
        ingredients: the section `ingredients`; those that are not in the lineage do no harm.
        config: the diffusers folder that describes it; without it no such folder is written.
        evidence: for the card and the thumbnail; without it they tell less.

    Raises:
        FileNotFoundError: if the winner or an ingredient is missing.
        ValueError: if a licence forbids the release, a source is unknown, or the file is damaged.
    """
    check_filled_in(params)
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file. Which one won? Run `dvc repro` first")
    metadata = read_header(weights).metadata
    lineage = lineage_of(weights, metadata)
    before = digest_file(weights)
    if metadata.get(TENSORS_HASH) not in (None, f"0x{before.tensors_sha256}"):
        raise ValueError(
            f"{weights}: its tensors are not those that its metadata names ({TENSORS_HASH}). "
            "Was it changed after it was made? Make it again"
        )
    names = hash_ingredients(ingredients)
    check_licences(weights, before.sha256, lineage, ingredients, names)

    def title(sha256: str) -> str:
        return names.get(sha256) or lineage.title(sha256)

    path = out / f"{params.name}.safetensors"
    samples = winner_samples(evidence) if evidence else []
    new = release_metadata(
        params,
        lineage,
        metadata,
        before.tensors_sha256,
        title,
        thumbnail(samples[0][0]) if samples else "",
    )
    write_release(weights, path, new)
    digests = digest_file(path)
    write_json(out / HASHES, {path.name: {**asdict(digests), "bytes": path.stat().st_size}})
    if config:
        save_diffusers(path, config, out / "diffusers")
    choice = None
    if evidence:
        shown = publish_samples(samples, out / "pictures")
        choice = Choice(_read(evidence.choice)["reason"], shown)
    counts = data_counts(evidence) if evidence else None
    reference = read_reference(evidence, names) if evidence else None
    with replacing(path.with_suffix(".md")) as scratch:
        card = model_card(params, lineage, digests, ingredients, names, choice, counts, reference)
        scratch.write_text(card, encoding="utf-8")
    used = {
        names[s]: {"sha256": s, "licence": ingredients[names[s]].licence}
        for s in lineage.ancestors
        if s in names
    }
    size = path.stat().st_size
    write_json(
        report,
        {
            "name": params.name,
            "bytes": size,
            "ingredients": used,
            "leaves": weights_by_title(leaf_shares(lineage), title),
            "merges": weights_by_title(merge_shares(lineage), title),
            **asdict(digests),
        },
    )
    print(f"Released {path}: {size / 1e9:.2f} GB, {len(used)} ingredients, {digests.auto_v2}")


def weights_by_title(
    shares: Mapping[str, Fraction], title: Callable[[str], str]
) -> dict[str, dict[str, str | float]]:
    """Name shares for a report; where two files have one title, by their hashes, too."""
    counts = Counter(map(title, shares))
    return {
        title(s) if counts[title(s)] == 1 else f"{title(s)}, {s[:10]}": {
            "sha256": s,
            "weight": float(share),
        }
        for s, share in shares.items()
    }


def lineage_of(path: Path, metadata: Mapping[str, str]) -> Lineage:
    """Read what a file says it was made of.

    Raises:
        ValueError: naming the file, if what it says is damaged.
    """
    try:
        return read_lineage(metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def winner_samples(evidence: Evidence) -> list[tuple[Path, Entry]]:
    """Find pictures that the winner drew, at the largest size, one per prompt."""
    name = _read(evidence.choice)["choice"]
    manifest = read_manifest(evidence.cells)
    drawn = [entry for entry in manifest.entries if entry.model == name and entry.file]
    if not drawn:
        raise ValueError(
            f"{evidence.cells}: no picture by {name!r}, which {evidence.choice} chose; the grid "
            f"holds {', '.join(manifest.models)}. Draw it again: dvc repro grid_cells_final"
        )
    largest = max(entry.width * entry.height for entry in drawn)
    by_prompt = {e.prompt: e for e in reversed(drawn) if e.width * e.height == largest}
    chosen = list(reversed(by_prompt.values()))[:SAMPLES]
    return [(evidence.cells / str(entry.file), entry) for entry in chosen]


def publish_samples(samples: Sequence[tuple[Path, Entry]], folder: Path) -> list[Sample]:
    """Copy pictures beside the card."""
    folder.mkdir(parents=True, exist_ok=True)
    published = []
    for number, (path, entry) in enumerate(samples, start=1):
        shutil.copyfile(path, folder / f"{number:02}.png")
        published.append(Sample(f"{folder.name}/{number:02}.png", entry.prompt, entry.seed))
    return published


def thumbnail(path: Path) -> str:
    """Make a small JPEG of a picture, as a data: URL."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def data_counts(evidence: Evidence) -> dict[str, dict[str, int]]:
    """Collect whole numbers from the reports of filter and download, and the split's rows."""
    counts = {}
    for stage in ("filter", "download"):
        report = _read(evidence.reports / f"{stage}.json")
        counts[stage] = {key: value for key, value in report.items() if type(value) is int}
    counts["split"] = {
        what: read_metadata(evidence.split / f"{name}.parquet").num_rows
        for what, name in (("trained_on", "train"), ("held_out", "validation"))
    }
    return counts


def read_reference(evidence: Evidence, names: Mapping[str, str]) -> Reference:
    """Read what the cocktail before this one was made of, and how both did in the last choice.

    Raises:
        FileNotFoundError: if its file is missing.
        ValueError: naming the file, if it is damaged.
    """
    path = evidence.reference
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it is the reference cocktail (dvc pull)")
    sha256 = sha256_file(path)
    choice = _read(evidence.choice)
    ours = choice.get("candidates", {}).get(choice["choice"], {})
    theirs = choice.get("reference", {})
    figures = {
        what: (ours.get(what), theirs.get(what))
        for what in dict.fromkeys((*ours, *theirs))
        if what not in ("name", "label") and not what.endswith(("_low", "_high", "_lead"))
    }
    lineage = lineage_of(path, read_header(path).metadata)
    return Reference(names.get(sha256, path.stem), sha256, lineage, figures)


def verify(path: Path) -> None:
    """Hash a released file again and show its ancestry.

    Its tensors are compared with the hash in its own metadata; with a hashes.json beside it that
    knows its name, or its SHA-256 under another, the whole file is.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the first hash that differs, what was wanted and what was found.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    check_header_length(path)
    metadata = read_header(path).metadata
    found: dict[str, Any] = {**asdict(digest_file(path)), "bytes": path.stat().st_size}
    beside = path.parent / HASHES
    files = _read(beside) if beside.is_file() else {}
    renamed = [figures for figures in files.values() if figures.get("sha256") == found["sha256"]]
    known = files.get(path.name) or (renamed[0] if renamed else {})
    for name, value in found.items():
        if known and known.get(name) != value:
            raise ValueError(
                f"{path}: changed since its release: {name} is {value}, "
                f"{HASHES} says {known.get(name)}. Fetch it again (dvc checkout, dvc pull)"
            )
    if metadata.get(TENSORS_HASH) != f"0x{found['tensors_sha256']}":
        raise ValueError(
            f"{path}: its tensors are not those that {TENSORS_HASH} in its metadata names, or it "
            "is no release"
        )
    lineage = lineage_of(path, metadata)
    if known:
        print(f"{path}: {len(known)} figures of {HASHES} agree")
    else:
        print(f"{path}: its tensors are those that its metadata name; its SHA-256 is")
        print(f"{found['sha256']}, with no {HASHES} beside it to compare that with")
    print(ancestor_tree(lineage, lineage.title))


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file. Run `dvc repro` first") from None
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    return content


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if file_command(arguments, "stages.release", "verify", verify):
        return
    options = _parser().parse_args(arguments)
    with clear_errors():
        run(
            options.weights,
            options.out,
            options.report,
            load_params("release", ReleaseParams, options.params),
            load_named_params("ingredients", Ingredient, options.params),
            options.config,
            Evidence(
                options.cells, options.choice, options.reports, options.split, options.reference
            ),
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, metavar, text in (
        ("weights", "FILE", "the winner, a safetensors file that stages.merge or .train made"),
        ("config", "DIR", "the diffusers folder that describes it"),
        ("cells", "DIR", "the last grid, in which the winner drew"),
        ("choice", "FILE", "the report of the last choice, JSON"),
        ("reports", "DIR", "where filter.json and download.json lie"),
        ("split", "DIR", "where train.parquet and validation.parquet lie"),
        ("reference", "FILE", "the cocktail before, with which the choice compares"),
        ("out", "DIR", "comes to hold the release"),
        ("report", "FILE", "a JSON file with the hashes and the ingredients"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar=metavar, help=text)
    add_params_option(parser)
    return parser


if __name__ == "__main__":
    main()
