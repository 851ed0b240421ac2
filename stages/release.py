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
import errno
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from stages.diffusion.header import read_header
from stages.diffusion.model import save_diffusers
from stages.diffusion.writing import free_bytes
from stages.harness.counted import counted
from stages.harness.dvc_command import DVC
from stages.harness.file_command import file_command
from stages.harness.files import replacing, write_json
from stages.harness.new_file import check_new_files
from stages.harness.params import load_named_params, load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.lineage.digests import TENSORS_HASH, digest_file
from stages.lineage.in_file import lineage_of
from stages.lineage.ingredient import Ingredient, check_licences, hash_ingredients
from stages.releases.card import Choice, model_card
from stages.releases.evidence import (
    Evidence,
    data_counts,
    publish_samples,
    read_choice,
    read_reference,
    thumbnail,
    winner_samples,
)
from stages.releases.modelspec import (
    ReleaseParams,
    check_filled_in,
    release_metadata,
    write_release,
)
from stages.releases.prediction import prediction_warning
from stages.releases.shares import leaf_shares, merge_shares, named_shares
from stages.releases.verification import HASHES, verify_release


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
        ValueError: if a licence forbids the release, a source is unknown, the file is damaged, or
            what would be written is also read.
    """
    check_filled_in(params)
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file. Which one won? Run `{DVC} repro` first")
    path = out / f"{params.name}.safetensors"
    read = {
        "the winner": weights,
        **{f"the ingredient {n!r}": Path(i.path) for n, i in ingredients.items()},
    }
    if evidence:
        read |= {"the reference": evidence.reference, "the report of the choice": evidence.choice}
    check_new_files([path, path.with_suffix(".md"), out / HASHES, report], read)
    metadata = read_header(weights).metadata
    before = digest_file(weights)
    lineage = lineage_of(weights, metadata, before.tensors_sha256)
    leaves, merges = leaf_shares(lineage), merge_shares(lineage)
    if metadata.get(TENSORS_HASH) not in (None, f"0x{before.tensors_sha256}"):
        raise ValueError(
            f"{weights}: its tensors are not those that its metadata names ({TENSORS_HASH}). "
            "Was it changed after it was made, or did another program copy the metadata of one of "
            "its inputs? Make it again"
        )
    if lineage.doubt:
        raise ValueError(f"{weights}: {lineage.doubt}. Make it again")
    names = hash_ingredients(ingredients)
    check_licences(weights, before.sha256, lineage, ingredients, names)
    if warning := prediction_warning(lineage):
        print(f"Warning: {weights}: {warning}", file=sys.stderr)

    def title(sha256: str) -> str:
        return names.get(sha256) or lineage.title(sha256)

    samples = winner_samples(evidence) if evidence else []
    counts = data_counts(evidence) if evidence else None
    reference = read_reference(evidence, names) if evidence else None
    new = release_metadata(
        params,
        lineage,
        metadata,
        before.tensors_sha256,
        title,
        thumbnail(samples[0][0]) if samples else "",
    )
    check_room(weights, path, copies=2 if config else 1)
    write_release(weights, path, new)
    digests = digest_file(path)
    write_json(out / HASHES, {path.name: {**asdict(digests), "bytes": path.stat().st_size}})
    if config:
        save_diffusers(path, config, out / "diffusers")
        for part in (out / "diffusers").rglob("*.safetensors"):
            shutil.copymode(path, part)  # the library lets nobody but their owner read them
    choice = None
    if evidence:
        shown = publish_samples(samples, out / "pictures")
        choice = Choice(read_choice(evidence.choice)["reason"], shown)
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
            "leaves": named_shares(leaves, title),
            "merges": named_shares(merges, title),
            **asdict(digests),
        },
    )
    print(f"Released {path}: {size / 1e9:.2f} GB, {len(used)} ingredients, {digests.auto_v2}")


def check_room(weights: Path, out: Path, copies: int) -> None:
    """Know before the work whether the disk has room for all copies of the weights.

    Raises:
        OSError: naming the new file, if it has not.
    """
    needed, free = copies * weights.stat().st_size, free_bytes(out)
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"No room for the release: {counted(copies, 'copy', 'copies')} of the weights take "
            f"{needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
            str(out),
        )


def verify(path: Path) -> None:
    """Hash a released file again and show its ancestry.

    Its tensors are compared with the hash in its own metadata; with a hashes.json beside it that
    knows its name, or its SHA-256 under another, the whole file is.
    """
    verify_release(path)


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
