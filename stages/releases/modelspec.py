"""What a released file says about itself, in the words that other programs read."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from stages.diffusion.header import header_bytes, read_header
from stages.diffusion.writing import writing
from stages.harness.params import Params
from stages.lineage.ancestry import ANCESTRY, MODELS, OURS, RECIPE, STEP, Lineage
from stages.lineage.digests import CHUNK_BYTES, TENSORS_HASH
from stages.lineage.noise_schedule import MARKERS, ZERO_TERMINAL_SNR, zero_terminal_snr
from stages.merging.expression import parse_expression
from stages.merging.terms import Call, Weights, model_weights
from stages.releases.prediction import prediction_type

PLACEHOLDER = "to be filled in"  # as profiles/sd15.yaml has it
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseParams(Params):
    """The section `release`: what no computer can know."""

    name: str  # of the file, without .safetensors
    title: str
    author: str
    description: str  # Markdown
    date: str  # ISO 8601; written down, for the clock would change the bytes
    licence: str  # of the release; no ingredient's may forbid it
    tags: tuple[str, ...]
    usage_hint: str
    resolution: int  # px, of the square that it draws best

    def __post_init__(self) -> None:
        """Check what becomes a file's name and a date."""
        if not FILE_NAME.fullmatch(self.name):
            raise ValueError(
                f"name {self.name!r} cannot name a file everywhere; use letters, digits, . _ -"
            )
        try:
            date.fromisoformat(self.date)
        except ValueError:
            raise ValueError(f"date {self.date!r} is no date such as 2026-01-31") from None


def check_filled_in(params: ReleaseParams) -> None:
    """Refuse to publish the words that a profile leaves for a person to write."""
    for name in ("title", "author", "description", "usage_hint"):
        if PLACEHOLDER in getattr(params, name):
            raise ValueError(
                f"release.{name} is still {PLACEHOLDER!r}; write what is to be published"
            )


def release_metadata(
    params: ReleaseParams,
    lineage: Lineage,
    ours: Mapping[str, str],
    tensors_hash: str,
    title: Callable[[str], str],
    thumbnail: str = "",
) -> dict[str, str]:
    """Write a release's metadata: ModelSpec, A1111's merge keys, and our own ancestry.

    Args:
        params: the section `release`.
        lineage: of the file.
        ours: the metadata of the file that wins.
        tensors_hash: SHA-256 of the tensors' bytes.
        title: names an ancestor by SHA-256.
        thumbnail: a picture as a data: URL, if there is one.

    Source: https://github.com/Stability-AI/ModelSpec
    """
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": "stable-diffusion-v1",
        "implementation": "https://github.com/CompVis/stable-diffusion",
        "title": params.title,
        "author": params.author,
        "description": params.description,
        "date": params.date,
        "license": params.licence,
        "usage_hint": params.usage_hint,
        "tags": ", ".join(params.tags),
        "resolution": f"{params.resolution}x{params.resolution}",
        # only what predicts v draws from pure noise, and another program's file tells no training
        "prediction_type": "v" if zero_terminal_snr(ours) else prediction_type(lineage),
        "thumbnail": thumbnail,
        "merged_from": ", ".join(title(sha256) for sha256 in lineage.inputs().values()),
    }
    metadata = {f"modelspec.{key}": value for key, value in spec.items() if value}
    metadata[TENSORS_HASH] = f"0x{tensors_hash}"
    metadata |= {key: ours[key] for key in (RECIPE, ANCESTRY, ZERO_TERMINAL_SNR) if key in ours}
    if merged := sd_merge_recipe(lineage.recipe, params.name):
        models = {
            sha256: {
                "name": title(sha256),
                "legacy_hash": ancestor.legacy_hash,
                "sd_merge_recipe": sd_merge_recipe(ancestor.recipe, title(sha256))
                or ancestor.sd_merge_recipe,
            }
            for sha256, ancestor in lineage.ancestors.items()
        }
        metadata[STEP] = json.dumps(merged)
        metadata[MODELS] = json.dumps(models)
    return metadata


def sd_merge_recipe(recipe: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """Tell a merge in A1111's keys, which know three models and two methods; None if it is none.

    What these do not hold, `expression` and `inputs` say; `type` tells whose recipe it is.

    Source: run_modelmerger in https://github.com/AUTOMATIC1111/stable-diffusion-webui,
    modules/extras.py
    """
    if not recipe or recipe.get("kind") != "merge":
        return None
    terms = parse_expression(recipe["expression"])
    is_sum = not any(isinstance(term, Call) for term in terms)
    method, multiplier = _method(list(terms.values())) if is_sum else ("expression", None)
    hashes = [recipe["inputs"][key] for key in model_weights(terms)]
    return {
        "type": OURS,
        **dict(
            zip(
                ("primary_model_hash", "secondary_model_hash", "tertiary_model_hash"),
                [*hashes[:3], None, None][:3],
                strict=True,
            )
        ),
        "interp_method": method,
        "multiplier": multiplier,
        "save_as_half": recipe.get("dtype") == "float16",
        "custom_name": name,
        "config_source": None,
        "bake_in_vae": _baked_vae(terms),
        "discard_weights": "",
        "is_inpainting": bool(recipe.get("is_inpainting")),
        "is_instruct_pix2pix": False,
        "expression": recipe["expression"],
        "inputs": recipe["inputs"],
    }


def write_release(weights: Path, out: Path, metadata: Mapping[str, str]) -> None:
    """Copy a file's tensors, byte by byte, under other metadata.

    Where these say that its schedule ends in pure noise, it gets the markers of it.

    Raises:
        ValueError: if the tensors do not follow each other without gaps.
        OSError: if the file cannot be written; an older one stays.
    """
    tensors = read_header(weights).tensors
    entries = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop))
    for (_, before), (key, entry) in pairwise(entries):
        if before.stop != entry.start:
            raise ValueError(f"{weights}: damaged: {key!r} does not follow the tensor before it")
    shapes = {key: (entry.dtype, entry.shape) for key, entry in entries}
    if zero_terminal_snr(metadata):
        shapes |= dict.fromkeys(MARKERS, ("F16", (0,)))  # behind the rest, and of no bytes
    header = header_bytes(shapes, metadata)
    start, stop = entries[0][1].start, entries[-1][1].stop
    length = len(header)
    with weights.open("rb") as source, writing(out, length, length + stop - start) as file:
        source.seek(start)
        while chunk := source.read(CHUNK_BYTES):
            file.write(chunk)
        file.finish()
        file.write_header(header)


def _baked_vae(weights: Weights) -> str | None:
    """Name the model whose VAE a merge bakes in, if it does no more than that to the VAE."""
    (term, *more) = weights
    if more or isinstance(term, str) or term.method != "parts":
        return None
    baked = dict(term.models).get("vae")
    names = [name for name, weight in baked[0] if isinstance(name, str) and weight] if baked else []
    return names[0] if len(names) == 1 else None


def _method(weights: list[Fraction]) -> tuple[str, float | None]:
    """Find A1111's method and multiplier for a sum, if it has them."""
    if len(weights) == 2 and min(weights) >= 0 and sum(weights) == 1:
        return "Weighted sum", float(weights[1])
    if len(weights) == 3 and weights[0] == 1 and weights[1] == -weights[2] > 0:
        return "Add difference", float(weights[1])
    return "expression", None
