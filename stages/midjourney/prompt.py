"""What a person typed: the caption, and the flags after it; for one prompt or a column."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.midjourney.strings import slices, string_buffers

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
_MENTION = re.compile(r"<@[!&]?\d{15,21}>", re.ASCII)
# The same for RE2, whose \s knows ASCII alone.
_SPACES = (
    r"\s\x0b\x1c-\x1f\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}"
    r"\x{205f}\x{3000}"
)
_FIRST_FLAG = rf"(?:\A|[{_SPACES}]){_DASHES}[A-Za-z]+(?:[{_SPACES}]|\z)"
_UNTIDY = rf"[{_SPACES}][{_SPACES}]|[^\PZ ]|[\x00-\x1f\x{{85}}]|\A "
_TAIL_MARKS = " ,;"


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
    caption = " ".join(text[:first].split()).rstrip(_TAIL_MARKS)
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


# --- columns ----------------------------------------------------------------------------------

PROMPTS = pa.schema(
    [
        ("caption", pa.string()),
        ("version", pa.string()),  # as `Prompt.version(None)`: null if no flag tells
        ("is_version_told", pa.bool_()),
        ("aspect", pa.string()),  # null: mistyped
        ("aspect_ratio", pa.float64()),  # longer side over shorter; infinite if mistyped
        ("is_raw", pa.bool_()),
        ("is_tile", pa.bool_()),
        ("is_image_prompt", pa.bool_()),
        ("is_mentioning", pa.bool_()),
        ("is_weighted", pa.bool_()),
        ("is_mistyped", pa.bool_()),
    ]
)
OF_FLAGS = PROMPTS.names[1:7]


def parse_prompts(prompts: pa.Array) -> pa.RecordBatch:
    """Take a column of prompts apart, row by row as `parse_prompt` does.

    Flags repeat from prompt to prompt: each way to write them is read once.

    Args:
        prompts: of strings, without nulls.

    Returns:
        A batch of schema PROMPTS with one row per input row.
    """
    offsets, _ = string_buffers(prompts)
    starts, ends = offsets[:-1], offsets[1:]
    at = pc.find_substring_regex(prompts, _FIRST_FLAG).to_numpy()
    flags_at = np.where(at < 0, ends, starts + at)
    caption = _tidy(slices(prompts, starts, flags_at))
    flags = pc.dictionary_encode(slices(prompts, flags_at, ends))
    known = [_read_flags(text) for text in flags.dictionary.to_pylist()]
    columns = {
        name: pa.array([row[i] for row in known], PROMPTS.field(name).type).take(flags.indices)
        for i, name in enumerate(OF_FLAGS)
    }
    columns |= {
        "caption": caption,
        "is_image_prompt": pc.match_substring_regex(prompts, _LINK.pattern, ignore_case=True),
        "is_mentioning": pc.match_substring_regex(prompts, _MENTION.pattern),
        "is_weighted": pc.match_substring(caption, "::"),
        "is_mistyped": pc.match_substring_regex(caption, rf"(?:\A| ){_DASHES}[A-Za-z]"),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in PROMPTS.names], schema=PROMPTS)


@functools.lru_cache(maxsize=1 << 16)
def _read_flags(flags: str) -> tuple[str | None, bool, str | None, float, bool, bool]:
    """Read the flags of a prompt, without its caption; columns OF_FLAGS."""
    prompt = parse_prompt(flags)
    aspect = prompt.aspect
    return (
        prompt.version(None),
        "niji" in prompt.flags or "version" in prompt.flags,
        aspect,
        aspect_ratio(aspect) if aspect else float("inf"),
        prompt.is_raw,
        prompt.is_tile,
    )


def _tidy(captions: pa.Array) -> pa.Array:
    """Make white space single blanks, and cut what a caption should not end in."""
    untidy = pc.match_substring_regex(captions, _UNTIDY)
    if pc.any(untidy).as_py():
        tidied = [" ".join(text.split()) for text in captions.filter(untidy).to_pylist()]
        captions = pc.replace_with_mask(captions, untidy, pa.array(tidied, pa.string()))
    return pc.utf8_rtrim(captions, _TAIL_MARKS)


def versions(told: pa.Array, is_told: pa.Array, sent_at: pa.Array, column: pa.Array) -> pa.Array:
    """Say which version drew each prompt: by its flags, else by its day, else by a column.

    Args:
        told, is_told: columns `version` and `is_version_told` of PROMPTS.
        sent_at: UTC, seconds; null if unknown.
        column: what the export says; null if it does not.
    """
    seconds = pc.fill_null(pc.cast(sent_at, pa.int64()), -(2**62)).to_numpy(zero_copy_only=False)
    days = np.array([since.timestamp() for since, _ in DEFAULT_VERSIONS])
    known = pa.array([None, *(version for _, version in DEFAULT_VERSIONS)], pa.string())
    by_day = known.take(pa.array(np.searchsorted(days, seconds, side="right")))
    bare = pc.fill_null(pc.equal(told, ""), False)  # `--v` without a number
    return pc.if_else(is_told, pc.if_else(bare, column, told), pc.coalesce(by_day, column))
