"""Merge expressions that people read and write: `a + 0.5*(b - c)`, `slerp(a, b, 0.3)`.

    sum      = product { ("+" | "-") product }
    product  = factor { ("*" | "/") factor }
    factor   = ("+" | "-") factor | NUMBER | NAME | "(" sum ")" | call
    call     = METHOD "(" argument { "," argument } ")"
    argument = [ NAME "=" ] ( sum | "[" sum { "," sum } "]" | PRESET )

A name stands for the weights of a whole model, so models may be added, and multiplied or divided
by numbers, but not by each other. Numbers are exact fractions: 0.1 + 0.2 is 0.3, and a third of
each of three models sums to one. Sums are multiplied out, so that what is a sum all the way down
is computed in one pass and rounded once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import TypeVar

from stages.merging.table import METHODS, PRESETS, Parameter
from stages.merging.terms import Call, Sum, Weights
from stages.merging.text import format_term, format_weight
from stages.merging.tokens import Token, Tokens, token_pairs

T = TypeVar("T")
Value = Fraction | Weights

# Beyond these a text is no merge, and would only cost memory or the stack.
MAX_CHARS = 200_000  # thousands of inputs
MAX_NUMBER_CHARS = 40
MAX_EXPONENT = 30
MAX_DEPTH = 100
MAX_WEIGHT = 1_000_000
MAX_BITS = 1000  # of a fraction's two numbers; those of a float may have 1024


def parse_expression(text: str) -> Weights:
    """Multiply an expression out into one weight per model or method.

    Args:
        text: as in `0.6*a + 0.2*b + 0.2*c`.

    Returns:
        Exact weights in the order in which the terms appear; a weight may come to 0.

    Raises:
        ValueError: with the position, from 1, and a caret under it.
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"merge expression of {len(text):,} characters; {MAX_CHARS:,} at most")
    return _Parser(text).parse()


def substituted(text: str, inner: Mapping[str, str], *, brackets: bool = True) -> str:
    """Put expressions in the place of names: a recipe of recipes becomes one expression.

    Args:
        text: an expression.
        inner: an expression by the name that it replaces.
        brackets: put each between parentheses; a mere name needs none.
    """
    parts, end = [], 0
    for token, after in token_pairs(text):
        if token.kind == "name" and token.text in inner and after.text not in ("(", "="):
            put = inner[token.text]
            parts += [text[end : token.at], f"({put})" if brackets else put]
            end = token.at + len(token.text)
    return "".join([*parts, text[end:]])


class _Parser(Tokens):
    """Recursive descent, one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def parse(self) -> Weights:
        start = self.token
        value = self._sum()
        if self.token.kind != "end":
            self.fail(self.token, f"expected + - * / or the end, got {self.token.text!r}")
        if isinstance(value, Fraction):
            self.fail(start, "the expression names no model, as in 0.5*a + 0.5*b")
        self._check_weights(start, value)
        return value

    def _check_weights(self, start: Token, value: Weights) -> None:
        for term, weight in value.items():
            if abs(weight) > MAX_WEIGHT:
                self.fail(start, f"the weight of {format_term(term)!r} is beyond {MAX_WEIGHT:,}")

    def _sum(self) -> Value:
        value = self._product()
        while self.token.text in ("+", "-"):
            sign = self.advance()
            term = self._product()
            value = self._added(sign, value, term if sign.text == "+" else _scaled(term, -1))
        return value

    def _product(self) -> Value:
        """Multiply; numbers first, and a sum of models once, or many numbers would take minutes."""
        sign = self.token
        value = self._factor()
        number = Fraction(1)
        while self.token.text in ("*", "/"):
            sign = self.advance()
            factor = self._factor()
            if sign.text == "*" and isinstance(value, Fraction):
                value, factor = factor, value
            number = self._multiplied(sign, number, factor)
            both = number * value if isinstance(value, Fraction) else number
            self._check_digits(sign, [number, both])
        if number == 1:
            return value
        value = _scaled(value, number)
        self._check_digits(sign, [] if isinstance(value, Fraction) else value.values())
        return value

    def _factor(self) -> Value:
        token = self.advance()
        if token.kind == "number":
            return self._number(token)
        if token.kind == "name" and self.token.text == "(":
            return {self._call(token): Fraction(1)}
        if token.kind == "name":
            return {token.text: Fraction(1)}
        if token.text not in ("+", "-", "("):
            got = "the end" if token.kind == "end" else repr(token.text)
            self.fail(token, f"expected a number, a name or '(', got {got}")
        self._deepen(token)
        value = self._bracketed(token) if token.text == "(" else self._factor()
        self.depth -= 1
        return _scaled(value, -1) if token.text == "-" else value

    def _bracketed(self, opening: Token) -> Value:
        value = self._sum()
        if self.token.text != ")":
            if self.token.kind == "end":
                self.fail(opening, "this '(' is never closed")
            self.fail(self.token, f"expected + - * / or ')', got {self.token.text!r}")
        self.advance()
        return value

    def _call(self, method: Token) -> Call:
        if method.text not in METHODS:
            self.fail(method, f"no method {method.text!r}; there are {', '.join(METHODS)}")
        self._deepen(method)
        free = {parameter.name: parameter for parameter in METHODS[method.text].parameters}
        models: dict[str, tuple[Sum, ...]] = {}
        numbers: dict[str, tuple[Fraction, ...]] = {}
        for parameter in self._listed("(", ")", lambda: self._parameter(method, free)):
            match parameter.kind:
                case "model":
                    models[parameter.name] = (self._model(parameter),)
                case "models":
                    items = self._listed("[", "]", lambda: None)
                    models[parameter.name] = tuple(self._model(parameter) for _ in items)
                case "number":
                    numbers[parameter.name] = (self._argument_number(parameter),)
                case "blocks":
                    numbers[parameter.name] = self._blocks(parameter)
        numbers |= self._defaults(method, free)
        self.depth -= 1
        return Call(
            method.text,
            tuple(sorted(models.items(), key=_place(method.text))),
            tuple(sorted(numbers.items(), key=_place(method.text))),
        )

    def _defaults(
        self, method: Token, free: dict[str, Parameter]
    ) -> dict[str, tuple[Fraction, ...]]:
        """Fill in what was left out, or refuse to."""
        wanted = [p for p in free.values() if not p.is_optional]
        if missing := [p.name for p in wanted if p.default is None]:
            self.fail(method, f"{method.text} lacks {missing[0]!r}: {_usage(method.text)}")
        return {p.name: (Fraction(p.default),) for p in wanted if p.default is not None}

    def _parameter(self, method: Token, free: dict[str, Parameter]) -> Parameter:
        """Find whose argument comes next: that of its name, or the first that is still free."""
        start = self.token
        if start.kind == "name" and self.ahead().text == "=":
            self.advance()
            self.advance()
            if start.text not in free:
                self.fail(
                    start, f"{method.text} takes no {start.text!r} here: {_usage(method.text)}"
                )
            return free.pop(start.text)
        positional = [p for p in free.values() if not p.is_optional]
        if not positional:
            self.fail(start, f"too many arguments: {_usage(method.text)}")
        return free.pop(positional[0].name)

    def _model(self, parameter: Parameter) -> Sum:
        start = self.token
        value = self._sum()
        if isinstance(value, Fraction):
            self.fail(start, f"{parameter.name!r} is a model, got a number")
        self._check_weights(start, value)
        return tuple(value.items())

    def _argument_number(self, parameter: Parameter) -> Fraction:
        start = self.token
        value = self._sum()
        if not isinstance(value, Fraction):
            self.fail(start, f"{parameter.name!r} is a number, got a model")
        low, high = (Fraction(str(bound)) for bound in (parameter.low, parameter.high))
        if not low <= value <= high:  # 0.001 is a little more as a float than it is written
            bounds = f"{parameter.low:g} to {parameter.high:g}"
            self.fail(start, f"{parameter.name!r} is {format_weight(value)}, beyond {bounds}")
        if parameter.name == "seed" and value.denominator != 1:
            self.fail(start, f"'seed' is {format_weight(value)}, not a whole number")
        return value

    def _blocks(self, parameter: Parameter) -> tuple[Fraction, ...]:
        start = self.token
        if start.kind == "name":
            self.advance()
            if start.text not in PRESETS:
                self.fail(start, f"no preset {start.text!r}; there are {', '.join(PRESETS)}")
            return PRESETS[start.text]
        items = self._listed("[", "]", lambda: None)
        values = tuple(self._argument_number(parameter) for _ in items)
        if len(values) != (wanted := len(PRESETS["GRAD_V"])):
            self.fail(
                start,
                f"{len(values)} block weights; {wanted} are wanted: BASE, IN00 to IN11, M00, "
                "OUT00 to OUT11",
            )
        return values

    def _listed(self, opening: str, closing: str, begin: Callable[[], T]) -> Iterator[T]:
        """Walk through a list in brackets: the caller reads an item after each one begun."""
        if self.token.text != opening:
            self.fail(self.token, f"expected {opening!r}, got {self._got()}")
        while self.token.text != closing:
            self.advance()
            yield begin()
            if self.token.text not in (",", closing):
                self.fail(self.token, f"expected ',' or {closing!r}, got {self._got()}")
        self.advance()

    def _got(self) -> str:
        return "the end" if self.token.kind == "end" else repr(self.token.text)

    def _deepen(self, token: Token) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(token, f"more than {MAX_DEPTH} levels of parentheses and signs")

    def _number(self, token: Token) -> Fraction:
        _, _, exponent = token.text.lower().partition("e")
        if len(token.text) > MAX_NUMBER_CHARS or abs(int(exponent or 0)) > MAX_EXPONENT:
            self.fail(token, f"no weight is as large, small or long as {token.text[:20]}…")
        return Fraction(token.text)

    def _check_digits(self, sign: Token, numbers: Iterable[Fraction]) -> None:
        """Refuse what no float can hold, before it costs memory and time."""
        for number in numbers:
            if max(abs(number.numerator), number.denominator).bit_length() > MAX_BITS:
                self.fail(sign, "no weight is as large, small or long as what this comes to")

    def _added(self, sign: Token, a: Value, b: Value) -> Value:
        """Add; a sum of models grows in place, or thousands of terms would take minutes."""
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            self._check_digits(sign, [a + b])
            return a + b
        if isinstance(a, Fraction) or isinstance(b, Fraction):
            self.fail(sign, f"a model {sign.text} a number: one adds models, as in a + 0.5*b")
        for name, weight in b.items():
            a[name] = a.get(name, Fraction()) + weight
            self._check_digits(sign, [a[name]])
        return a

    def _multiplied(self, sign: Token, number: Fraction, factor: Value) -> Fraction:
        if not isinstance(factor, Fraction):
            if sign.text == "*":
                self.fail(sign, "models are multiplied with each other; one must be a number")
            self.fail(sign, "one divides by numbers, not by models")
        if sign.text == "*":
            return number * factor
        if factor == 0:
            self.fail(sign, "division by zero")
        return number / factor


def _scaled(value: Value, by: Fraction | int) -> Value:
    if isinstance(value, Fraction):
        return value * by
    return {name: weight * by for name, weight in value.items()}


def _place(method: str) -> Callable[[tuple[str, object]], int]:
    """Order arguments as the method's parameters are."""
    names = [parameter.name for parameter in METHODS[method].parameters]
    return lambda item: names.index(item[0])


def _usage(method: str) -> str:
    """Show how a method is called."""
    shown = []
    for p in METHODS[method].parameters:
        text = f"[{p.name}]" if p.kind in ("models", "blocks") else p.name
        if p.default is not None or p.is_optional:
            text = f"{p.name}={p.default or 'model'}"
        shown.append(text)
    return f"{method}({', '.join(shown)})"
