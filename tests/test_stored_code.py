"""Compiled code is stored, and a later process answers by it without tracing anything.

With the real compiler and a network of two layers, which takes seconds where a UNet takes minutes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from stages.diffusion.model import save_single_file
from stages.diffusion.stored_code import StoredCode
from tests.imports import ROOT
from tests.tiny_sd import make_tiny_sd

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # torch's own

CONFIG = {"width": 8}


def scaled(forward: Callable[[Any, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Decorate a `forward`, as diffusers does a UNet's."""

    @wraps(forward)
    def with_scale(self: nn.Module, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return forward(self, x) * scale

    return with_scale


class Small(nn.Module):
    """A network of two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))

    @scaled
    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layers(x)
        return answer


class Halting(Small):
    """One whose trace breaks off in the middle."""

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        answer: Tensor = self.layers(x)
        return answer


def stored(folder: Path, config: dict[str, int] | None = None) -> tuple[nn.Module, StoredCode]:
    """Give a new network, as a process has that knows of no compiled code."""
    torch._dynamo.reset()
    counters.clear()
    network = Small().eval().requires_grad_(False)
    return network, StoredCode(network, config or CONFIG, folder, "inductor", {})


def was_traced() -> bool:
    return bool(counters["stats"]["unique_graphs"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the code for one row of eight."""
    folder = tmp_path_factory.mktemp("stored")
    network, code = stored(folder)
    with torch.inference_mode():
        assert torch.allclose(code(torch.ones(1, 8)), network(torch.ones(1, 8)))
    assert was_traced()
    assert len(list(folder.iterdir())) == 1
    return folder


@torch.inference_mode()
def test_code_that_is_stored_answers_without_being_traced_and_by_other_weights(
    folder: Path,
) -> None:
    network, code = stored(folder)
    for weight in network.parameters():
        weight.mul_(2)
    assert torch.allclose(code(torch.ones(1, 8)), network(torch.ones(1, 8)))
    next(network.parameters()).zero_()
    assert torch.allclose(code(torch.ones(1, 8)), network(torch.ones(1, 8)))
    assert not was_traced()


def test_another_process_answers_by_stored_code_to_the_last_bit(folder: Path) -> None:
    script = (
        "import torch\n"
        "from pathlib import Path\n"
        "from tests.test_stored_code import stored, was_traced\n"
        f"_, code = stored(Path({str(folder)!r}))\n"
        "with torch.inference_mode():\n"
        "    print(code(torch.ones(1, 8)).numpy().tobytes().hex(), was_traced())\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        here = stored(folder)[1](torch.ones(1, 8)).numpy().tobytes().hex()
    assert done.stdout.split() == [here, "False"]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("x", "named", "config"),
    [
        (torch.ones(2, 8), {}, CONFIG),
        (torch.ones(8, 1).T, {}, CONFIG),  # the same shape, other strides
        (torch.ones(1, 8), {"scale": 3.0}, CONFIG),
        (torch.ones(1, 8), {}, {"width": 9}),
    ],
    ids=["shape", "strides", "named input", "config"],
)
def test_what_code_was_not_made_for_gets_code_of_its_own(
    folder: Path, x: Tensor, named: dict[str, float], config: dict[str, int]
) -> None:
    before = set(folder.iterdir())
    network, code = stored(folder, config)
    assert torch.allclose(code(x, **named), network(x, **named))
    assert was_traced()
    assert len(set(folder.iterdir()) - before) == 1


def flip(content: bytes) -> bytes:
    """Change one bit, of the machine's code or the text it was made of."""
    changed = bytearray(content)
    changed[content.index(b"float")] ^= 1
    return bytes(changed)


@torch.inference_mode()
@pytest.mark.parametrize(
    "damage",
    [lambda content: content[: len(content) // 2], lambda _: b"", flip],
    ids=["cut", "empty", "flipped"],
)
def test_stored_code_that_is_damaged_is_said_and_made_anew(
    folder: Path,
    damage: Callable[[bytes], bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, code = stored(folder)
    code(torch.ones(1, 8))
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(damage(path.read_bytes()))
    made_anew_once(tmp_path, capsys)


@torch.inference_mode()
def test_stored_code_that_does_not_fit_is_said_and_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rows in (1, 2):
        _, code = stored(tmp_path / str(rows))
        code(torch.ones(rows, 8))
    (right,), (wrong,) = ((tmp_path / str(rows)).iterdir() for rows in (1, 2))
    right.write_bytes(wrong.read_bytes())
    made_anew_once(tmp_path / "1", capsys)


def made_anew_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, code = stored(folder)
    assert torch.allclose(code(torch.ones(1, 8)), network(torch.ones(1, 8)))
    assert "stored code that cannot be used, made anew (" in capsys.readouterr().out
    _, code = stored(folder)
    code(torch.ones(1, 8))
    assert not was_traced()
    assert not capsys.readouterr().out


@torch.inference_mode()
def test_code_is_not_used_where_torch_computes_otherwise(folder: Path) -> None:
    _, code = stored(folder)
    code(torch.ones(1, 8))
    assert not was_traced()
    with torch.autocast("cpu", torch.bfloat16):
        _, code = stored(folder)
        assert code(torch.ones(1, 8)).dtype == torch.bfloat16
    assert was_traced()


def test_every_process_finds_the_code_of_networks_whose_config_is_an_older_one(
    tmp_path: Path,
) -> None:
    """Settings that a config lacks are noted by diffusers in an order of each process's own."""
    sd = make_tiny_sd(tmp_path / "config")
    save_single_file(tmp_path / "model.safetensors", sd.unet, sd.vae, sd.text_encoder, {})
    for part in ("unet", "vae"):
        path = tmp_path / "config" / part / "config.json"
        config = json.loads(path.read_text("utf-8"))
        for name in ("act_fn", "dropout", "norm_eps", "downsample_padding", "scaling_factor"):
            config.pop(name, None)
        path.write_text(json.dumps(config), "utf-8")
    script = (
        "from pathlib import Path; from stages.diffusion.easel import Easel\n"
        "from stages.diffusion.sample import SamplingParams, draw\n"
        "how = SamplingParams(sampler='euler', steps=1, guidance=1.0, negative_prompt='')\n"
        "easel = Easel(Path('config'), 'float32', compiled=True, tile_px=0, cache=Path('.'),\n"
        "              backend='eager')\n"
        "draw(easel.put(Path('model.safetensors')), ['cat'], [1], 32, 32, how)\n"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", script]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
        assert len(list((tmp_path / "stored").iterdir())) == 2, "the UNet's and the decoder's"


@torch.inference_mode()
def test_code_that_cannot_be_stored_is_said_and_answers_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Halting().eval()
    code = StoredCode(network, CONFIG, tmp_path, "eager", {})
    assert torch.allclose(code(torch.ones(1, 8)), network(torch.ones(1, 8)))
    said = capsys.readouterr().out
    assert said.startswith("Halting: its compiled code cannot be stored (")
    assert said.count("\n") == 1
    assert not any(tmp_path.iterdir())


@torch.inference_mode()
def test_where_nothing_can_be_written_compiled_code_answers_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    network, code = stored(tmp_path / "file")
    assert torch.allclose(code(torch.ones(1, 8)), network(torch.ones(1, 8)))
    traces = counters["stats"]["unique_graphs"]
    code(torch.ones(1, 8))
    assert counters["stats"]["unique_graphs"] == traces == 1, "compiled once"
    assert "Small: its compiled code cannot be stored (" in capsys.readouterr().out
