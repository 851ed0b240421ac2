"""Markdown that shows a text as it is, whoever wrote it: names and recipes come from strangers."""

import re
from collections.abc import Sequence

# What begins HTML, a link, a picture, code, emphasis, or an address that becomes a link by itself.
MEANT = re.compile(r"[\\`*\[\]<>&!~]|:(?=//)|(?<=www)\.", re.IGNORECASE)


def plain(text: str) -> str:
    """Escape what Markdown would take for more than letters; line breaks become blanks."""
    return MEANT.sub(r"\\\g<0>", " ".join(text.split()))


def code(text: str) -> str:
    """Show a text as code, between more backticks than it holds in a row."""
    text = " ".join(text.split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if len(ticks) > 1 else f"`{text}`"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table of Markdown cells; lines as long as they come."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
