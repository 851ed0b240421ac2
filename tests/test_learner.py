"""One optimizer step: what moves, how far, and what is a fault."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.diffusion.model import load_models
from stages.training.draw import Drawn
from stages.training.learner import Learner
from stages.training.params import TrainParams
from stages.training.part import make_parts
from stages.training.ranks import Ranks, alone
from tests.tiny_training import PARAMS, base, one_thread

__all__ = ["base", "one_thread"]  # fixtures are found by their names
pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
BOTH = replace(PARAMS, text_encoder_learning_rate=1e-3, ema_decay=0.0, weight_decay=0.0)


def make_learner(base: Path, params: TrainParams, ranks: Ranks | None = None) -> Learner:
    models = load_models(base / "base.safetensors", base / "config")
    return Learner(models, make_parts(models, params, CPU), params, ranks or alone(CPU))


def batch() -> Drawn:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=generator)
    return Drawn(
        ids=("a", "b"),
        latents=latents,
        noise=noise,
        timesteps=torch.tensor([100, 600]),
        captions=torch.tensor([[0, 5, 6, 1], [0, 7, 8, 1]]),
        counts=torch.ones(2),
    )


def moves(learner: Learner) -> dict[str, Tensor]:
    """Take a step and tell how far each part's weights went."""
    before = {
        name: [w.detach().clone() for w in part.weights] for name, part in learner.parts.items()
    }
    assert learner.step([batch()], 2, 0, 10).is_taken
    return {
        name: torch.cat(
            [
                (w.detach() - old).flatten()
                for w, old in zip(part.weights, before[name], strict=True)
            ]
        )
        for name, part in learner.parts.items()
    }


def test_each_part_learns_at_its_own_rate(base: Path) -> None:
    params = replace(BOTH, learning_rate=2e-3, text_encoder_learning_rate=1e-4)
    moved = moves(make_learner(base, params))
    # AdamW's first step is the rate in each direction
    assert float(moved["unet"].abs().max()) == pytest.approx(2e-3, rel=0.01)
    assert float(moved["text_encoder"].abs().max()) == pytest.approx(1e-4, rel=0.01)


def test_the_gradient_is_limited_over_all_parts_together(base: Path) -> None:
    def gradient(limit: float) -> dict[str, Tensor]:
        learner = make_learner(base, replace(BOTH, max_gradient_norm=limit))
        for part in learner.parts.values():  # plain descent at rate 1 moves by the gradient
            part.optimizer, part.learning_rate = torch.optim.SGD(part.weights), 1.0
        return moves(learner)

    free, limited = gradient(0.0), gradient(0.01)
    norm = float(torch.cat([*free.values()]).norm())
    assert norm > 0.02
    for name, moved in limited.items():  # all parts by one share, which keeps the direction
        assert free[name].norm() > 0
        assert float(moved.norm() / free[name].norm()) == pytest.approx(0.01 / norm, rel=1e-3)
    assert float(torch.cat([*limited.values()]).norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_gradient_beyond_float16_lowers_the_scale_and_is_a_fault_only_at_its_end(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = Learner.errors

    def steep(self: Learner, drawn: Drawn) -> Tensor:
        found = errors(self, drawn)
        found.register_hook(lambda gradient: gradient * inf)
        return found

    monkeypatch.setattr(Learner, "errors", steep)
    learner = make_learner(base, replace(BOTH, precision="fp16"))
    for scale, is_fault in ((65536.0, False), (2.0, False), (1.0, True)):
        learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": scale})
        step = learner.step([batch()], 2, 0, 10)
        assert (step.is_taken, step.is_fault) == (False, is_fault)
        assert learner.scaler.get_scale() == scale / 2


@pytest.mark.parametrize("value", [nan, inf])
def test_a_loss_that_is_not_finite_is_a_fault_at_once_and_leaves_the_scale(
    base: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    errors = Learner.errors
    monkeypatch.setattr(Learner, "errors", lambda self, drawn: errors(self, drawn) * value)
    learner = make_learner(base, replace(BOTH, precision="fp16"))
    step = learner.step([batch()], 2, 0, 10)
    assert (step.is_taken, step.is_fault) == (False, True)
    assert learner.scaler.get_scale() == 65536.0


def test_another_process_s_loss_that_is_not_finite_is_a_fault_here_too(base: Path) -> None:
    class WithABrokenOne(Ranks):
        def add_up(self, tensors: Sequence[Tensor]) -> None:
            for tensor in tensors:
                tensor.add_(nan)

        def agree(self, number: int) -> int:
            return max(number, 1)

    learner = make_learner(base, replace(BOTH, precision="fp16"), WithABrokenOne(0, 2, CPU))
    step = learner.step([batch()], 2, 0, 10)
    assert step.error_sum.isfinite()
    assert (step.is_taken, step.is_fault) == (False, True)
