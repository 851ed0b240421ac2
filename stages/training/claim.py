"""Which run a scratch folder belongs to."""

from collections.abc import Mapping
from pathlib import Path

from stages.diffusion.model import Base
from stages.harness.files import replacing, sha256_bytes, sha256_file, sha256_folder, sha256_json
from stages.training.encode import Examples
from stages.training.params import TrainParams

SIDES = ("train", "validation")


def claim(scratch: Path, params: TrainParams, inputs: Mapping[str, str]) -> None:
    """Make a scratch folder this run's, or see that it is."""
    name = sha256_json({"params": params.without_ends(), "inputs": dict(inputs)})
    path = scratch / "run"
    if path.is_file() and (found := path.read_text(encoding="utf-8")) != name:
        raise ValueError(
            f"{scratch} holds another run ({found[:12]}, not {name[:12]}): other params, examples "
            "or base. Give each run its own folder, or remove this one"
        )
    with replacing(path) as partial:
        partial.write_text(name, encoding="utf-8")


def hash_inputs(base: Base, *sides: Examples) -> dict[str, str]:
    """Name base and examples by their bytes, whatever the order of the examples."""
    examples = {
        side: sha256_json(sorted((e.id, e.caption, sha256_bytes(e.image)) for e in found[:]))
        for side, found in zip(SIDES, sides, strict=True)
    }
    return {"base": sha256_file(base.weights), "config": sha256_folder(base.config), **examples}
