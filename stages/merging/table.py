"""The methods that a merge expression may call, and the presets of block weights; names alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

MIDDLE, LAST = 12, 24  # of the UNet's blocks IN00 to IN11, M00, OUT00 to OUT11


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a method."""

    name: str
    kind: Literal["model", "models", "number", "blocks"]
    low: float = 0.0  # bounds of numbers
    high: float = 1.0
    default: str | None = None  # of a number; None: must be given
    is_optional: bool = False  # a model that may be left out, and is given by its name


Numbers = Mapping[str, tuple[Fraction, ...]]


@dataclass(frozen=True, slots=True)
class Method:
    """How a method is called, and what it takes of each model."""

    parameters: tuple[Parameter, ...]
    # Each model parameter's share of the result if all models were equal but for their names;
    # what picks or scales by the values themselves counts as a plain average.
    shares: Callable[[Numbers], dict[str, Fraction]]
    # float32 tensors that it holds at a time, besides one of each model: measured, torch 2
    working: int = 0
    bytes_per_s: int = 500_000_000  # of inputs, by one thread; what a dry run tells the time by


def _models(*names: str) -> tuple[Parameter, ...]:
    return tuple(Parameter(name, "model") for name in names)


ONE = Fraction(1)
METHODS = {
    "slerp": Method(
        (*_models("a", "b"), Parameter("t", "number")),
        lambda n: {"a": 1 - n["t"][0], "b": n["t"][0]},
    ),
    "train_difference": Method(
        (*_models("a", "b", "c"), Parameter("scale", "number", high=10, default="1")),
        lambda n: {"a": ONE, "b": n["scale"][0], "c": -n["scale"][0]},
        working=2,
    ),
    "ties": Method(
        (
            *_models("base"),
            Parameter("models", "models"),
            Parameter("keep", "number", default="0.2"),
            Parameter("scale", "number", high=10, default="1"),
        ),
        lambda n: {"base": 1 - n["scale"][0], "models": n["scale"][0]},
        bytes_per_s=300_000_000,
    ),
    "dare": Method(
        (
            *_models("base", "a"),
            Parameter("keep", "number", low=0.001),
            Parameter("seed", "number", high=2**31, default="0"),
        ),
        lambda _: {"a": ONE},
        working=2,
    ),
    "model_stock": Method(
        (*_models("base"), Parameter("models", "models")), lambda _: {"models": ONE}
    ),
    "similarity": Method(
        (*_models("a", "b"), Parameter("bias", "number", low=-1, default="0")),
        lambda _: {"a": ONE / 2, "b": ONE / 2},
        working=4,
        bytes_per_s=300_000_000,
    ),
    "mbw": Method(
        (*_models("a", "b"), Parameter("blocks", "blocks", low=-10, high=10)),
        lambda n: {"a": 1 - _mean(n["blocks"]), "b": _mean(n["blocks"])},
    ),
    "parts": Method(
        (
            *_models("rest"),
            *(Parameter(p, "model", is_optional=True) for p in ("unet", "text_encoder", "vae")),
        ),
        lambda _: {"unet": ONE, "rest": ONE},  # the UNet's, or the rest's where there is none
    ),
}


def _mean(values: tuple[Fraction, ...]) -> Fraction:
    return sum(values, Fraction()) / len(values)


def _valley() -> tuple[Fraction, ...]:
    """Take the outer blocks from the second model and the middle from the first."""
    return Fraction(0), *(Fraction(abs(i - MIDDLE), MIDDLE) for i in range(LAST + 1))


def _flat(weight: Fraction) -> tuple[Fraction, ...]:
    return Fraction(0), *[weight] * (LAST + 1)


# The second model's weight: BASE (what is not of the UNet), then block by block.
PRESETS: dict[str, tuple[Fraction, ...]] = {
    "GRAD_V": _valley(),
    "GRAD_A": (Fraction(0), *(1 - weight for weight in _valley()[1:])),
    "FLAT_25": _flat(Fraction(1, 4)),
    "FLAT_50": _flat(Fraction(1, 2)),
    "FLAT_75": _flat(Fraction(3, 4)),
}
