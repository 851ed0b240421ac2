"""Sums of models written as people read them, and as a merge expression could have been."""

from collections.abc import Mapping
from fractions import Fraction

from stages.merging.table import METHODS
from stages.merging.terms import Sum, Term


def format_weight(weight: Fraction) -> str:
    """Write an exact weight as people do: 0.6, -0.5, 1/3."""
    decimal = f"{float(weight):.12g}"
    return decimal if Fraction(decimal) == weight else str(weight)


def format_term(term: Term) -> str:
    """Write a term as it could have been read."""
    if isinstance(term, str):
        return term
    parts = []
    given: dict[str, tuple[Sum | Fraction, ...]] = {**dict(term.models), **dict(term.numbers)}
    for parameter in METHODS[term.method].parameters:
        values = given.get(parameter.name)
        if values is None:
            continue
        texts = [format_weight(v) if isinstance(v, Fraction) else format_sum(v) for v in values]
        is_list = parameter.kind in ("models", "blocks")
        text = f"[{', '.join(texts)}]" if is_list else texts[0]
        parts.append(f"{parameter.name}={text}" if parameter.is_optional else text)
    return f"{term.method}({', '.join(parts)})"


def format_sum(weights: Mapping[Term, Fraction] | Sum) -> str:
    """Write a sum as it could have been read."""
    return " + ".join(
        format_term(term) if weight == 1 else f"{format_weight(weight)}*{format_term(term)}"
        for term, weight in dict(weights).items()
    ).replace("+ -", "- ")
