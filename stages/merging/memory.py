"""How much memory a merge's methods take, before it begins: from shapes alone."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import prod

from stages.merging.blocks import at_key
from stages.merging.table import METHODS
from stages.merging.terms import Call, Sum, Term, Weights

FLOAT32_BYTES = 4


def held_bytes(weights: Weights, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Tell how many bytes of tensors the methods of an expression hold at a time, at most.

    Args:
        weights: of the whole expression.
        shapes: of the new file's tensors, by key.

    Returns:
        0 where there are only sums, which never hold a tensor whole.
    """
    return max((_of_tensor(weights, key, shape) for key, shape in shapes.items()), default=0)


def _of_tensor(weights: Weights, key: str, shape: tuple[int, ...]) -> int:
    present = {term: weight for term, weight in at_key(weights, key).items() if weight}
    if not any(isinstance(term, Call) for term in present):
        return 0
    return FLOAT32_BYTES * prod(shape) * _of_sum(present)


def _of_sum(weights: Mapping[Term, Fraction] | Sum) -> int:
    """Count the tensors held while a sum is computed: what is summed so far, and the next term."""
    terms = dict(weights)
    needs = [1 if isinstance(term, str) else _of_call(term) for term in terms]
    return max((bool(i) + need for i, need in enumerate(needs)), default=1)


def _of_call(call: Call) -> int:
    """Count those of a method: its models, one after another, then what it works with besides."""
    models: Iterable[Sum] = [model for _, sums in call.models for model in sums]
    needs = [_of_sum(model) for model in models]
    return max(
        len(needs) + METHODS[call.method].working, *(i + need for i, need in enumerate(needs))
    )
