"""What a merge expression comes to: a sum of models, and of what methods make of models."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from stages.merging.table import METHODS

Term: TypeAlias = "str | Call"  # a model by its name, or what a method makes of models
Weights = dict[Term, Fraction]  # a sum, in the order of first appearance
Sum = tuple[tuple[Term, Fraction], ...]  # the same, as an argument of a call


@dataclass(frozen=True, slots=True)
class Call:
    """A method and what it is given; hashable, so that equal calls are one term."""

    method: str  # a key of METHODS
    models: tuple[tuple[str, tuple[Sum, ...]], ...]  # by parameter; one sum, or a list's
    numbers: tuple[tuple[str, tuple[Fraction, ...]], ...]  # by parameter; one, or the block weights

    def model(self, name: str) -> Sum:
        """Give the one model of a parameter."""
        return dict(self.models)[name][0]

    def number(self, name: str) -> Fraction:
        """Give the one number of a parameter."""
        return dict(self.numbers)[name][0]


def model_names(weights: Mapping[Term, Fraction] | Sum) -> list[str]:
    """List the models of an expression, each once, in the order of first appearance."""
    return list(dict.fromkeys(_names(dict(weights))))


def model_weights(weights: Mapping[Term, Fraction] | Sum) -> dict[str, Fraction]:
    """Give each model's share: exact in a sum, and what a method would take of equal models else.

    `slerp(a, b, 0.3)` takes 0.7 and 0.3; block weights count as their mean; what picks or scales
    by the values themselves (ties, dare, model_stock, similarity) as its plain average.
    """
    shares: dict[str, Fraction] = {}
    for term, weight in dict(weights).items():
        inner = {term: Fraction(1)} if isinstance(term, str) else _shares(term)
        for name, share in inner.items():
            shares[name] = shares.get(name, Fraction()) + weight * share
    return shares


def calls(weights: Mapping[Term, Fraction] | Sum) -> Iterator[Call]:
    """List the calls of an expression, those within others too."""
    for term in dict(weights):
        if isinstance(term, Call):
            yield term
            for _, sums in term.models:
                for model in sums:
                    yield from calls(model)


def _names(weights: Mapping[Term, Fraction]) -> Iterator[str]:
    for term in weights:
        if isinstance(term, str):
            yield term
        else:
            for _, sums in term.models:
                for model in sums:
                    yield from _names(dict(model))


def _shares(call: Call) -> dict[str, Fraction]:
    """Give the nominal weights of a call's models."""
    by_parameter = METHODS[call.method].shares(dict(call.numbers))
    if call.method == "parts" and "unet" in dict(call.models):
        by_parameter = {"unet": by_parameter["unet"]}
    shares = dict.fromkeys(model_names({call: Fraction(1)}), Fraction())
    for parameter, sums in call.models:
        for model in sums:
            for name, share in model_weights(model).items():
                shares[name] += by_parameter.get(parameter, Fraction()) * share / len(sums)
    return shares
