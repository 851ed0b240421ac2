"""Release the winner: a file that says what it is, a model card, and hashes to know it by.

  --weights FILE  the winner, a safetensors file that stages.merge or stages.train made
  --out DIR       where NAME.safetensors and NAME.md go; NAME is release.name in the params
  --report FILE   a JSON file with the hashes and the ingredients

The sections `release` and `ingredients` of the params say what no computer can know: title,
author, date, and whose models went in under which licence. A file whose ancestry, as its
metadata tells it, holds an ingredient that may not be merged is not released; nor is one with a
source that `ingredients` does not list.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from stages.diffusion.ancestry import read_lineage
from stages.diffusion.digests import digest_file
from stages.diffusion.ingredient import Ingredient, check_licences, hash_ingredients
from stages.diffusion.model import read_header
from stages.diffusion.model_card import model_card
from stages.diffusion.modelspec import ReleaseParams, release_metadata, write_release
from stages.diffusion.weights import TENSORS_HASH
from stages.harness.files import replacing, write_json
from stages.harness.params import load_named_params, load_params
from stages.harness.paths import clear_errors, stage_paths


def run(
    weights: Path,
    out: Path,
    report: Path,
    params: ReleaseParams,
    ingredients: Mapping[str, Ingredient],
) -> None:
    """Release one file.

    Args:
        weights: the winner.
        out: a folder; other files in it stay.
        report: a JSON file.
        params: the section `release`.
        ingredients: the section `ingredients`; those that are not in the lineage do no harm.

    Raises:
        FileNotFoundError: if the winner or an ingredient is missing.
        ValueError: if a licence forbids the release, a source is unknown, or the file is damaged.
    """
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file. Which one won? Run `dvc repro` first")
    metadata = read_header(weights).metadata
    try:
        lineage = read_lineage(metadata)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error
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
    new = release_metadata(params, lineage, metadata, before.tensors_sha256, title)
    write_release(weights, path, new)
    digests = digest_file(path)
    with replacing(path.with_suffix(".md")) as scratch:
        card = model_card(params, lineage, digests, ingredients, names)
        scratch.write_text(card, encoding="utf-8")
    shares = lineage.shares()
    used = {
        name: {"sha256": sha256, "licence": ingredients[name].licence, "weight": float(share)}
        for sha256, share in shares.items()
        if (name := names.get(sha256))
    }
    size = path.stat().st_size
    write_json(report, {"name": params.name, "bytes": size, "ingredients": used, **asdict(digests)})
    print(f"Released {path}: {size / 1e9:.2f} GB, {len(used)} ingredients, {digests.auto_v2}")


def main() -> None:
    """Run from the command line."""
    weights, out, report, params = stage_paths(__doc__, "weights", "out", "report")
    with clear_errors():
        run(
            weights,
            out,
            report,
            load_params("release", ReleaseParams, params),
            load_named_params("ingredients", Ingredient, params),
        )


if __name__ == "__main__":
    main()
