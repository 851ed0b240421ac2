"""Parts in training: how their weights lie in memory, and how fast and how far they move."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from stages.diffusion.model import load_models
from stages.training import optimizers
from stages.training.checkpoint import (
    load_checkpoint,
    load_optimizer_state,
    optimizer_state,
    save_checkpoint,
)
from stages.training.part import make_parts
from tests.tiny_training import PARAMS, base, one_thread

__all__ = ["base", "one_thread"]  # fixtures are found by their names
pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "last"), [("adamw", True), ("adamw8bit", False)])
def test_convolutions_lie_with_channels_last_unless_the_optimizer_cannot_have_it(
    base: Path, monkeypatch: pytest.MonkeyPatch, name: str, last: bool
) -> None:
    monkeypatch.setitem(optimizers.OPTIMIZERS, "adamw8bit", optimizers.OPTIMIZERS["adamw"])
    models = load_models(base / "base.safetensors", base / "config")
    parts = make_parts(models, replace(PARAMS, optimizer=name), CPU)
    # a layout that both names fit would tell nothing
    convolutions = [w for w in parts["unet"].weights if w.dim() == 4 and min(w.shape) > 1]
    assert convolutions
    for weight in convolutions:
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
        assert weight.is_contiguous() != last


def test_moments_come_back_in_their_weights_layout_however_deep_they_lie(tmp_path: Path) -> None:
    class Nested(Optimizer):
        def __init__(self, weights: list[Tensor]) -> None:
            super().__init__(weights, {})

        def move(self) -> None:
            for weight in self.param_groups[0]["params"]:
                self.state[weight] = {"quant": {"state1": torch.empty_like(weight).copy_(weight)}}

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    before, after = Nested([weight]), Nested([weight])
    before.move()
    save_checkpoint(tmp_path, 1, {"optimizer": optimizer_state(before)})
    state = load_checkpoint(tmp_path, print)
    assert state is not None
    load_optimizer_state(after, state["optimizer"])
    moment = after.state[weight]["quant"]["state1"]
    assert torch.equal(moment, weight)
    assert moment.stride() == weight.stride()


def test_what_is_kept_is_the_running_average_and_training_goes_on_with_the_weights(
    base: Path,
) -> None:
    models = load_models(base / "base.safetensors", base / "config")
    part = make_parts(models, replace(PARAMS, ema_decay=0.5), CPU)["unet"]
    weight = part.weights[0]
    mean = weight.detach().double()
    for step in range(12):
        with torch.no_grad():
            weight.add_(1.0)
        part.update_average(0.5, step)
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * weight.detach().double()
    trained = weight.detach().clone()
    with part.as_kept():
        assert weight.detach().double().allclose(mean, rtol=1e-5)
        assert not weight.equal(trained)
        assert not part.network.training
    assert weight.equal(trained)
    assert part.network.training
