"""Pictures that lie beside the page."""

from dataclasses import dataclass
from pathlib import Path

from stages.harness.files import link_or_copy

PICTURES = "pictures"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture beside the page."""

    src: str  # from the page
    width: int
    height: int
    caption: str
    note: str = ""


def beside(folder: Path, source: Path, name: str) -> str:
    """Put a picture beside the page; give its address from there."""
    link_or_copy(source, folder / PICTURES / name)
    return f"{PICTURES}/{name}"


def plain(name: str) -> str:
    """Spell a name with letters that every file system and address takes."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)
