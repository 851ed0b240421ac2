"""What a person typed: the caption, and the flags after it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

ALIASES = {
    "v": "version",
    "ar": "aspect",
    "c": "chaos",
    "s": "stylize",
    "w": "weird",
    "q": "quality",
    "r": "repeat",
    "p": "profile",
    "sameseed": "seed",
}
# Midjourney's documentation, "Version": the default on and after each day. 5.2's day is
# known to within a week.
DEFAULT_VERSIONS = (
    (datetime(2022, 11, 10, tzinfo=UTC), "4"),
    (datetime(2023, 5, 4, tzinfo=UTC), "5.1"),
    (datetime(2023, 6, 22, tzinfo=UTC), "5.2"),
    (datetime(2024, 2, 14, tzinfo=UTC), "6"),
    (datetime(2024, 7, 31, tzinfo=UTC), "6.1"),
    (datetime(2025, 6, 17, tzinfo=UTC), "7"),
)

# A flag stands at the start or after white space. En and em dashes are what phones make of "--".
_DASHES = r"(?:--|[—–])"
_FLAG_START = re.compile(rf"(?<!\S){_DASHES}(?=[A-Za-z])")
_FLAG_NAME = re.compile(r"([A-Za-z]+)(?:\s|\Z)")
_ASPECT = re.compile(r"(\d{1,5}):(\d{1,5})")
_LINK = re.compile(r"https?://", re.IGNORECASE)
_MENTION = re.compile(r"<@[!&]?\d{15,21}>")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt taken apart.

    `flags` maps full names to values: "" for a bare flag, the first token for a valued one,
    everything for `no`. Of a repeated flag the first counts; `no` gathers all.
    """

    text: str  # as typed
    caption: str
    flags: dict[str, str]

    @property
    def is_raw(self) -> bool:
        """Tell whether Midjourney's own beautification was off."""
        return self.flags.get("style", "").lower() == "raw" or "raw" in self.flags

    @property
    def is_tile(self) -> bool:
        """Tell whether a seamless pattern was asked for."""
        return "tile" in self.flags

    @property
    def is_image_prompt(self) -> bool:
        """Tell whether a link to a picture is part of the prompt; words alone do not say it."""
        return bool(_LINK.search(self.text))

    @property
    def is_weighted(self) -> bool:
        """Tell whether the prompt is several prompts with weights, as `cat::2 dog::1`."""
        return "::" in self.caption

    @property
    def is_mentioning(self) -> bool:
        """Tell whether somebody's id stands in the text."""
        return bool(_MENTION.search(self.text))

    @property
    def is_mistyped(self) -> bool:
        """Tell whether something like a flag stayed in the caption, as `--v5` does."""
        return bool(_FLAG_START.search(self.caption))

    @property
    def aspect(self) -> str | None:
        """Give the aspect as `width:height`; None if it was mistyped."""
        value = self.flags.get("aspect", "1:1")
        found = _ASPECT.fullmatch(value)
        return value if found and int(found[1]) and int(found[2]) else None

    def version(self, at: datetime | None) -> str | None:
        """Give the model's version as `plain_version` writes it, or `niji 5`, `niji`.

        Args:
            at: when the prompt was sent, for the default of that day; None if unknown.
        """
        if "niji" in self.flags:
            return f"niji {self.flags['niji']}".strip()
        if "version" in self.flags:
            return plain_version(self.flags["version"])
        return default_version(at) if at else None


def plain_version(version: str | float) -> str:
    """Write a version in one way: 6, 6.0 and "6.0" are all "6".

    >>> plain_version("6.0"), plain_version(5.2), plain_version("niji 5")
    ('6', '5.2', 'niji 5')
    """
    return str(version).strip().lower().removesuffix(".0")


def default_version(at: datetime) -> str | None:
    """Say which version drew a prompt without `--v`; None before those known."""
    past = [version for since, version in DEFAULT_VERSIONS if since <= at]
    return past[-1] if past else None


def aspect_ratio(aspect: str) -> float:
    """Divide the longer side by the shorter: 1.5 for both 3:2 and 2:3."""
    width, height = map(int, aspect.split(":"))
    return max(width, height) / min(width, height)


def parse_prompt(text: str) -> Prompt:
    """Split a prompt into caption and flags.

    >>> parse_prompt("red fox, --ar 3:2 --style raw --no text --no frame")
    ... # doctest: +NORMALIZE_WHITESPACE
    Prompt(text='red fox, --ar 3:2 --style raw --no text --no frame', caption='red fox',
           flags={'aspect': '3:2', 'style': 'raw', 'no': 'text, frame'})
    """
    flags: dict[str, str] = {}
    first = len(text)
    for start, written, value in _flags_in(text):
        first = min(first, start)
        name = ALIASES.get(written.lower(), written.lower())
        if name == "no" and flags.get("no"):
            flags["no"] += f", {value}" if value else ""
        elif name == "no":
            flags["no"] = value
        else:
            flags.setdefault(name, value.split()[0] if value else "")
    caption = " ".join(text[:first].split()).rstrip(" ,;")
    return Prompt(text, caption, flags)


def _flags_in(text: str) -> Iterator[tuple[int, str, str]]:
    """Find flags in order: where each starts, its name as written, all of its value.

    The names follow a dash pair at once, so `--v5` and `--3d` are none; what stands between
    such a one and the next flag belongs to neither.
    """
    # one end for each start; a text without flags has an end too many
    starts = [found.span() for found in _FLAG_START.finditer(text)]
    ends = [start for start, _ in starts[1:]] + [len(text)]
    for (start, after_dashes), end in zip(starts, ends, strict=False):
        if name := _FLAG_NAME.match(text, after_dashes, end):
            yield start, name[1], text[name.end() : end].strip()
