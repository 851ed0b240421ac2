"""Optimizers by the name that params give them."""

from torch import Tensor
from torch.optim import AdamW, Optimizer

from stages.training.dadaptation import DAdaptAdam

BETAS = (0.9, 0.999)
EPS = 1e-8
BITSANDBYTES = "0.50.2"  # the version tried; no CPU needs it, so the lock does not hold it
SCHEDULE_FREE = "schedulefree"  # has a schedule of its own
# These want weights in the usual memory layout: bitsandbytes lays them out so in its first step,
# and its moments are bytes in the weight's order, which another layout would scramble.
ROW_MAJOR = ("adamw8bit",)


def build_optimizer(
    name: str, weights: list[Tensor], learning_rate: float, weight_decay: float
) -> Optimizer:
    """Build the optimizer of one trained part.

    Args:
        name: a key of OPTIMIZERS.
        weights: of the part.
        learning_rate: for D-Adaptation and Prodigy a multiplier of the rate that they find, 1.0.
        weight_decay: decoupled from the gradient.

    Raises:
        ValueError: if the name is unknown, or the optimizer is not installed.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} is unknown; known: {', '.join(sorted(OPTIMIZERS))}")
    return OPTIMIZERS[name](weights, learning_rate, weight_decay)


def _adamw(weights: list[Tensor], learning_rate: float, weight_decay: float) -> Optimizer:
    """Source: "Decoupled Weight Decay Regularization", arXiv 1711.05101."""
    return AdamW(
        weights, lr=learning_rate, betas=BETAS, eps=EPS, weight_decay=weight_decay, fused=True
    )


def _adamw8bit(weights: list[Tensor], learning_rate: float, weight_decay: float) -> Optimizer:
    """Source: "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861."""
    try:
        import bitsandbytes  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ValueError(
            "optimizer adamw8bit needs bitsandbytes, which is not installed: "
            f"pip install bitsandbytes=={BITSANDBYTES} (NVIDIA GPUs), or choose adamw"
        ) from None
    optimizer: Optimizer = bitsandbytes.optim.AdamW8bit(
        weights, lr=learning_rate, betas=BETAS, eps=EPS, weight_decay=weight_decay
    )
    return optimizer


def _dadaptation(weights: list[Tensor], learning_rate: float, weight_decay: float) -> Optimizer:
    return DAdaptAdam(weights, lr=learning_rate, betas=BETAS, eps=EPS, weight_decay=weight_decay)


def _prodigy(weights: list[Tensor], learning_rate: float, weight_decay: float) -> Optimizer:
    """Source: "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", arXiv 2306.06101."""
    from prodigyopt import Prodigy

    optimizer: Optimizer = Prodigy(
        [{"params": weights, "weight_decay": weight_decay}],  # as an argument it would be printed
        lr=learning_rate,
        betas=BETAS,
        eps=EPS,
        safeguard_warmup=True,
        use_bias_correction=True,
    )
    return optimizer


def _schedulefree(weights: list[Tensor], learning_rate: float, weight_decay: float) -> Optimizer:
    """Source: "The Road Less Scheduled", arXiv 2405.15682."""
    from schedulefree import AdamWScheduleFree

    optimizer: Optimizer = AdamWScheduleFree(
        weights, lr=learning_rate, betas=BETAS, eps=EPS, weight_decay=weight_decay
    )
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


OPTIMIZERS = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "dadaptation": _dadaptation,
    "prodigy": _prodigy,
    SCHEDULE_FREE: _schedulefree,
}
