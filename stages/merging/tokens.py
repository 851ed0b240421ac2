"""The words of a merge expression, and where each stands: numbers, names, signs."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[^\W\d]\w*)|(?P<sign>[-+*/()\[\],=])|(?P<end>$)|(?P<other>\S))",
    re.ASCII,
)
NAME = re.compile(r"[^\W\d]\w*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Token:
    """One word."""

    kind: str  # a group of TOKEN
    text: str
    at: int  # index into the expression


class Tokens:
    """Reads an expression word by word; `token` is the next."""

    def __init__(self, text: str) -> None:
        """Read the first.

        Raises:
            ValueError: see `fail`.
        """
        self.text = text
        self.token = self._read(0)

    def advance(self) -> Token:
        """Go on to the next token; give the one before."""
        token = self.token
        self.token = self._read(token.at + len(token.text))
        return token

    def ahead(self) -> Token:
        """Look at the token after the next."""
        return self._read(self.token.at + len(self.token.text))

    def _read(self, start: int) -> Token:
        found = TOKEN.match(self.text, start)
        assert found, "the last alternative of TOKEN matches whatever the others do not"
        kind = str(found.lastgroup)
        token = Token(kind, found[kind], found.start(kind))
        if kind == "other":
            self.fail(
                token,
                f"expected a name, a number or one of + - * / ( ) [ ] , =, got {token.text!r}",
            )
        return token

    def fail(self, token: Token, problem: str) -> NoReturn:
        """Say what is wrong with a token, and show where it is.

        Raises:
            ValueError: always.
        """
        line = re.sub(r"\s", " ", self.text)  # a line break would move the caret
        raise ValueError(
            f"merge expression, position {token.at + 1}: {problem}\n  {line}\n  {' ' * token.at}^"
        )


def token_pairs(text: str) -> Iterator[tuple[Token, Token]]:
    """List the tokens of an expression, each with the one after it."""
    tokens = Tokens(text)
    while tokens.token.kind != "end":
        token = tokens.advance()
        yield token, tokens.token
