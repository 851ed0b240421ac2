"""Merge expressions that people read and write: `a + 0.5*(b - c)` becomes {a: 1, b: 1/2, c: -1/2}.

    sum     = product { ("+" | "-") product }
    product = factor { ("*" | "/") factor }
    factor  = ("+" | "-") factor | NUMBER | NAME | "(" sum ")"

A name stands for the weights of a whole model, so models may be added, and multiplied or divided
by numbers, but not by each other. Numbers are exact fractions: 0.1 + 0.2 is 0.3, and a third of
each of three models sums to one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NoReturn

Weights = dict[str, Fraction]  # by name, in the order of first appearance
Value = Fraction | Weights  # a number, or a sum of models

TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[^\W\d]\w*)|(?P<sign>[-+*/()])|(?P<end>$)|(?P<other>\S))",
    re.ASCII,
)
NAME = re.compile(r"[^\W\d]\w*", re.ASCII)
# Beyond these a text is no merge, and would only cost memory or the stack.
MAX_CHARS = 10_000
MAX_NUMBER_CHARS = 40
MAX_EXPONENT = 30
MAX_DEPTH = 100
MAX_WEIGHT = 1_000_000


def parse_expression(text: str) -> Weights:
    """Multiply an expression out into one weight per name.

    Args:
        text: as in `0.6*a + 0.2*b + 0.2*c`.

    Returns:
        Exact weights in the order in which the names appear; a weight may come to 0.

    Raises:
        ValueError: with the position, from 1, and a caret under it.
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"merge expression of {len(text):,} characters; {MAX_CHARS:,} at most")
    return _Parser(text).parse()


def check_sum(text: str, weights: Mapping[str, Fraction]) -> None:
    """Refuse weights whose sum is not 1: the result would not be a model of the inputs' scale.

    Raises:
        ValueError: naming the sum, and what would make it 1.
    """
    total = sum(weights.values(), Fraction())
    if total == 1:
        return
    advice = "The added models' weights must exceed the subtracted ones' by 1, as in a + b - c"
    if total > 0 and all(weight >= 0 for weight in weights.values()):
        advice = f"({text}) / {format_weight(total)} has the same proportions and sums to 1"
    raise ValueError(
        f"merge expression {text!r}: the weights sum to {format_weight(total)}, not to 1. {advice}"
    )


def format_weight(weight: Fraction) -> str:
    """Write an exact weight as people do: 0.6, -0.5, 1/3."""
    decimal = f"{float(weight):.12g}"
    return decimal if Fraction(decimal) == weight else str(weight)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # a group of TOKEN
    text: str
    at: int  # index into the expression


class _Parser:
    """Recursive descent, one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.depth = 0
        self.token = self._token_from(0)

    def parse(self) -> Weights:
        start = self.token
        value = self._sum()
        if self.token.kind != "end":
            self._fail(self.token, f"expected + - * / or the end, got {self.token.text!r}")
        if isinstance(value, Fraction):
            self._fail(start, "the expression names no model, as in 0.5*a + 0.5*b")
        for name, weight in value.items():
            if abs(weight) > MAX_WEIGHT:
                self._fail(start, f"the weight of {name!r} is beyond {MAX_WEIGHT:,}")
        return value

    def _sum(self) -> Value:
        value = self._product()
        while self.token.text in ("+", "-"):
            sign = self._next()
            term = self._product()
            value = self._added(sign, value, term if sign.text == "+" else _scaled(term, -1))
        return value

    def _product(self) -> Value:
        value = self._factor()
        while self.token.text in ("*", "/"):
            sign = self._next()
            factor = self._factor()
            multiplied = self._multiplied if sign.text == "*" else self._divided
            value = multiplied(sign, value, factor)
        return value

    def _factor(self) -> Value:
        token = self._next()
        if token.kind == "number":
            return self._number(token)
        if token.kind == "name":
            return {token.text: Fraction(1)}
        if token.text not in ("+", "-", "("):
            got = "the end" if token.kind == "end" else repr(token.text)
            self._fail(token, f"expected a number, a name or '(', got {got}")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._fail(token, f"more than {MAX_DEPTH} levels of parentheses and signs")
        value = self._bracketed(token) if token.text == "(" else self._factor()
        self.depth -= 1
        return _scaled(value, -1) if token.text == "-" else value

    def _bracketed(self, opening: _Token) -> Value:
        value = self._sum()
        if self.token.text != ")":
            if self.token.kind == "end":
                self._fail(opening, "this '(' is never closed")
            self._fail(self.token, f"expected + - * / or ')', got {self.token.text!r}")
        self._next()
        return value

    def _number(self, token: _Token) -> Fraction:
        _, _, exponent = token.text.lower().partition("e")
        if len(token.text) > MAX_NUMBER_CHARS or abs(int(exponent or 0)) > MAX_EXPONENT:
            self._fail(token, f"no weight is as large, small or long as {token.text[:20]}…")
        return Fraction(token.text)

    def _added(self, sign: _Token, a: Value, b: Value) -> Value:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a + b
        if isinstance(a, Fraction) or isinstance(b, Fraction):
            self._fail(sign, f"a model {sign.text} a number: one adds models, as in a + 0.5*b")
        return {name: a.get(name, Fraction()) + b.get(name, Fraction()) for name in {**a, **b}}

    def _multiplied(self, sign: _Token, a: Value, b: Value) -> Value:
        number, other = (a, b) if isinstance(a, Fraction) else (b, a)
        if not isinstance(number, Fraction):
            self._fail(sign, "models are multiplied with each other; one must be a number")
        return _scaled(other, number)

    def _divided(self, sign: _Token, a: Value, b: Value) -> Value:
        if not isinstance(b, Fraction):
            self._fail(sign, "one divides by numbers, not by models")
        if b == 0:
            self._fail(sign, "division by zero")
        return _scaled(a, 1 / b)

    def _next(self) -> _Token:
        token = self.token
        self.token = self._token_from(token.at + len(token.text))
        return token

    def _token_from(self, start: int) -> _Token:
        found = TOKEN.match(self.text, start)
        assert found, "the last alternative of TOKEN matches whatever the others do not"
        kind = str(found.lastgroup)
        token = _Token(kind, found[kind], found.start(kind))
        if kind == "other":
            self._fail(
                token, f"expected a name, a number or one of + - * / ( ), got {token.text!r}"
            )
        return token

    def _fail(self, token: _Token, problem: str) -> NoReturn:
        line = re.sub(r"\s", " ", self.text)  # a line break would move the caret
        raise ValueError(
            f"merge expression, position {token.at + 1}: {problem}\n  {line}\n  {' ' * token.at}^"
        )


def _scaled(value: Value, by: Fraction | int) -> Value:
    if isinstance(value, Fraction):
        return value * by
    return {name: weight * by for name, weight in value.items()}
