"""The search for pickles finds them in every disguise, and nothing else."""

import ast
import gzip
import io
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.imports import ROOT
from tests.pickles import pickles_below


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("true",)


def plain(path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(Payload(), protocol))


def plain_data(path: Path) -> None:
    path.write_bytes(pickle.dumps({"steps": [1, 2, 3]}))


def torch_zip(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path)


def torch_legacy(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


def object_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Payload()], dtype=object), allow_pickle=True)


def packed(path: Path) -> None:
    path.write_bytes(gzip.compress(pickle.dumps(Payload())))


def in_a_tar(path: Path) -> None:
    content = pickle.dumps(Payload())
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo("0001.png")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))


def in_a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes/readme.txt", pickle.dumps(Payload(), 0))


def behind_weights(path: Path) -> None:
    save_file({"weight": torch.zeros(64)}, path)
    path.write_bytes(path.read_bytes() + pickle.dumps(Payload()))


PLANTED: dict[str, Callable[[Path], None]] = {
    **{f"protocol_{n}": lambda path, n=n: plain(path, n) for n in range(6)},  # type: ignore[misc]
    **{make.__name__: make for make in (plain_data, torch_zip, torch_legacy, object_array, packed)},
    **{make.__name__: make for make in (in_a_tar, in_a_zip, behind_weights)},
}


@pytest.mark.parametrize("make", PLANTED.values(), ids=PLANTED)
def test_a_planted_pickle_is_found_whatever_its_name(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    innocent = tmp_path / "models/weights.safetensors"
    innocent.parent.mkdir()
    make(innocent)
    (found,) = pickles_below([tmp_path])
    assert found.startswith(str(innocent))


def test_weights_pictures_tables_and_pages_are_no_pickles(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(4 * 2**20)
    (tmp_path / "noise.bin").write_bytes(noise)
    save_file({"weight": torch.randn(512, 512)}, tmp_path / "weights.safetensors")
    (tmp_path / "stop.txt").write_text(".", encoding="utf-8")
    (tmp_path / "empty").touch()
    assert not pickles_below([tmp_path, ROOT / "models/base", ROOT / "reports", ROOT / "README.md"])


def test_no_code_of_ours_can_read_a_pickle() -> None:
    """None imports a library for it, calls `torch.load`, or lets numpy.

    But compiled code, which torch wrote and nobody pulls: one module reads it from the scratch.
    """
    found = []
    for path in [*(ROOT / "stages").rglob("*.py"), *(ROOT / "models/base").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if reads_pickles(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")  # type: ignore[attr-defined]
    (compiled,) = found
    assert compiled.startswith("stages/diffusion/stored_code.py:")


def reads_pickles(node: ast.AST) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = {alias.name.split(".")[0] for alias in node.names}
        names.add((getattr(node, "module", None) or "").split(".")[0])
        return bool(names & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"})
    if isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        unpickles = {"read_pickle", "load_compiled_function"}
        return (owner, node.attr) == ("torch", "load") or node.attr in unpickles
    return isinstance(node, ast.keyword) and node.arg == "allow_pickle"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path, weights_only=True)",
        "pandas.read_pickle(path)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_code_that_reads_pickles_is_recognised(code: str) -> None:
    assert any(reads_pickles(node) for node in ast.walk(ast.parse(code)))
