"""Optimizers: D-Adaptation is the package's, step by step, and rates follow their schedule."""

import pytest
import torch
from dadaptation import DAdaptAdam as Reference  # type: ignore[import-untyped]

from stages.training.dadaptation import DAdaptAdam
from stages.training.optimizers import OPTIMIZERS, SCHEDULE_FREE, build_optimizer
from stages.training.schedule import check_warmup, rate_factor
from tests.benchmarks.resume import ROWS


def test_our_dadaptation_equals_the_package_step_by_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = [torch.randn(6, 5, generator=generator), torch.randn(7, generator=generator)]
    ours = [weight.clone().requires_grad_() for weight in theirs]
    theirs = [weight.requires_grad_() for weight in theirs]
    pairs = (
        (theirs, Reference(theirs, weight_decay=0.1, growth_rate=1.5, decouple=True)),
        (
            ours,
            DAdaptAdam(
                ours, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, growth_rate=1.5
            ),
        ),
    )
    for step in range(60):
        target = torch.randn(6, 5, generator=generator)
        for weights, optimizer in pairs:
            optimizer.zero_grad()
            # nothing to learn from at first: no step, and no division by zero
            ((weights[0] - target).square().mean() + weights[1].sin().sum()).mul(
                float(step > 0)
            ).backward()
            optimizer.step()
        d = [float(optimizer.param_groups[0]["d"]) for _, optimizer in pairs]
        assert d[0] == pytest.approx(d[1], rel=1e-5)
        for a, b in zip(theirs, ours, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert d[1] > 1e-4


@pytest.mark.parametrize("name", sorted({*OPTIMIZERS} - {"adamw8bit"}))
def test_every_optimizer_finds_the_bottom_of_a_bowl(name: str) -> None:
    weight = torch.full((8,), 3.0, requires_grad=True)
    rate = 1.0 if name in ("dadaptation", "prodigy") else 0.1
    optimizer = build_optimizer(name, [weight], rate, 0.0)
    for _ in range(1500):
        optimizer.zero_grad()
        (weight - 1).square().sum().backward()
        optimizer.step()
    assert weight.detach() == pytest.approx(torch.ones(8), abs=0.05)


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(ValueError, match="optimizer 'sgd' is unknown; known: adamw, adamw8bit"):
        build_optimizer("sgd", [], 1.0, 0.0)


def test_rates_rise_and_fall_as_told() -> None:
    def rates(name: str, warmup_steps: int = 0) -> list[float]:
        return [round(rate_factor(name, step, warmup_steps, 8), 3) for step in (0, 2, 4, 6, 8, 99)]

    assert rates("constant") == [1, 1, 1, 1, 1, 1]
    assert rates("linear") == [1, 0.75, 0.5, 0.25, 0, 0]
    assert rates("cosine") == [1, 0.854, 0.5, 0.146, 0, 0]
    assert rates("linear", 4) == [0.25, 0.75, 1, 0.5, 0, 0]


@pytest.mark.parametrize("warmup_steps", [50, 100])
def test_a_warm_up_that_outlasts_its_schedule_is_refused(warmup_steps: int) -> None:
    for name in ("cosine", "linear"):
        words = f"warmup_steps is {warmup_steps}, but the whole {name} schedule has 50 steps"
        with pytest.raises(ValueError, match=words):
            check_warmup(name, warmup_steps, 50)
        check_warmup(name, 49, 50)
    check_warmup("constant", warmup_steps, 50)


def test_every_optimizer_has_a_row_that_kills_its_run_on_a_gpu() -> None:
    assert {params.optimizer for params in ROWS.values()} == set(OPTIMIZERS)
    with_average = {params.optimizer for params in ROWS.values() if params.ema_decay}
    assert with_average == set(OPTIMIZERS) - {SCHEDULE_FREE}
