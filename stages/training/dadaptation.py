"""D-Adaptation: Adam that finds its own learning rate."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# d starts far too low and may grow by 2 % a step, which warms the rate up.
FIRST_D = 1e-6
GROWTH_RATE = 1.02


class DAdaptAdam(Optimizer):
    """Adam with decoupled weight decay, its learning rate found on the way.

    Equal, step by step, to `dadaptation.DAdaptAdam(decouple=True)` of version 3.2, but all
    parameters at once, and the scalars stay on the device: no step waits for it.

    Source: "Learning-Rate-Free Learning by D-Adaptation", arXiv 2301.07733, algorithm 5.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        d0: float = FIRST_D,
        growth_rate: float = GROWTH_RATE,
    ) -> None:
        """Prepare.

        Args:
            params: one group, all on one device.
            lr: multiplier of the rate found; 1 unless training is unstable.
            betas, eps: of Adam.
            weight_decay: share of each weight taken away per step and unit of rate.
            d0: first estimate of the distance to the solution.
            growth_rate: most that the estimate grows by in a step; infinity for no limit.
        """
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(list(params), {**defaults, "growth_rate": growth_rate})
        group = self.param_groups[0]
        device = group["params"][0].device
        # float64, as the package's Python floats
        group["d"] = torch.tensor(d0, dtype=torch.float64, device=device)
        group["numerator"] = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        loss = closure() if closure else None
        for group in self.param_groups:
            self._step(group)
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        weights = [p for p in group["params"] if p.grad is not None]
        if not weights:
            return
        grads = [p.grad for p in weights]
        s, exp_avg, exp_avg_sq = (
            [self._state(p)[name] for p in weights] for name in ("s", "exp_avg", "exp_avg_sq")
        )
        beta1, beta2 = group["betas"]
        sqrt_beta2 = beta2**0.5
        rate = group["d"] * group["lr"]  # dlr in the package

        # <g, s / (sqrt(v) + eps)>, with s and v from before this step
        denominators = _denominators(exp_avg_sq, group["eps"])
        found = rate * _sum(
            torch._foreach_mul(grads, torch._foreach_div(s, denominators)), group["d"].device
        )
        scaled = torch._foreach_mul(grads, rate.float())
        torch._foreach_mul_(exp_avg, beta1)
        torch._foreach_add_(exp_avg, scaled, alpha=1 - beta1)
        torch._foreach_mul_(exp_avg_sq, beta2)
        torch._foreach_addcmul_(exp_avg_sq, grads, grads, value=1 - beta2)
        torch._foreach_mul_(s, sqrt_beta2)
        torch._foreach_add_(s, scaled, alpha=1 - sqrt_beta2)

        numerator = sqrt_beta2 * group["numerator"] + (1 - sqrt_beta2) * found
        s_l1 = torch.stack(torch._foreach_norm(s, 1)).double().sum()
        moved = s_l1 > 0  # false only while every gradient was zero: then nothing changes
        estimate = numerator / ((1 - sqrt_beta2) * s_l1)
        d = torch.maximum(group["d"], torch.minimum(estimate, group["d"] * group["growth_rate"]))
        group["numerator"].copy_(torch.where(moved, numerator, group["numerator"]))
        group["d"].copy_(torch.where(moved, d, group["d"]))

        # not weights * (1 - decay): float32 would round that factor
        decay = torch.where(moved, group["weight_decay"] * rate, torch.zeros_like(rate))
        torch._foreach_sub_(weights, torch._foreach_mul(weights, decay.float()))
        denominators = _denominators(exp_avg_sq, group["eps"])
        torch._foreach_addcdiv_(weights, exp_avg, denominators, value=-1)

    def _state(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            for name in ("s", "exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(weight)
        return state


def _denominators(exp_avg_sq: list[Tensor], eps: float) -> list[Tensor]:
    roots: list[Tensor] = list(torch._foreach_sqrt(exp_avg_sq))
    torch._foreach_add_(roots, eps)
    return roots


def _sum(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Add up all elements, in float64 across tensors, as one 0-dim tensor."""
    return torch.stack([t.sum() for t in tensors]).to(device, torch.float64).sum()
