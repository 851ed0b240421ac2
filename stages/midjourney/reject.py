"""Why a message is not fit to train on: one reason each, the first that holds.

The reasons that a column can tell come first, so that few rows ever reach Python.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from stages.harness.params import Params
from stages.midjourney.message import UNFINISHED, UPSCALE
from stages.midjourney.prompt import Prompt, aspect_ratio, plain_version

COLUMN_REASONS = (
    "malformed",  # a row that breaks the file's format, or a content that no bot wrote
    "unfinished",  # waiting, in progress, stopped
    "not_upscaled",  # grids, variations, remixes, zooms, pans: nobody chose these
    "no_attachment",
    "unknown_user",  # deleted: many people under one name
    "cut",  # too long for the bot, which cut the flags away
    "not_raw",
)
PROMPT_REASONS = (
    "image_prompt",
    "empty_caption",
    "mention",  # somebody's id must not leave the filter
    "weights",
    "mistyped_flag",
    "tile",
    "niji",
    "version",
    "short_caption",
    "blocked_word",
    "aspect",
    "too_small",
)
USER_REASONS = ("few_upscales", "not_a_top_user", "repeated_caption")
REASONS = COLUMN_REASONS + PROMPT_REASONS + USER_REASONS

DELETED_USER = "@Unknown"  # how DiscordChatExporter names one
CUT_CHARS = 1500  # the bot cuts contents of more than 1,600 characters, the user's name included


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterParams(Params):
    """Section `filter`: which messages are fit to train on."""

    versions: tuple[str | float, ...]  # of the model; "niji 5" is one too
    raw_only: bool  # only generations without Midjourney's own beautification
    min_caption_chars: int
    top_users: int  # keep the users with the most upscales
    min_user_upscales: int  # and of these, who upscaled so often
    max_malformed_fraction: float  # unparsable rows only; above this share the stage fails
    min_side_px: int  # shorter side of the picture, where the export tells it
    max_aspect: float  # longer side / shorter side
    blocked_words: tuple[str, ...]  # whole words, any letter case
    one_row_per_caption_and_user: bool

    def __post_init__(self) -> None:
        """Refuse values that no export could satisfy."""
        if not self.versions:
            raise ValueError("versions must name at least one version, such as 5.2")
        if self.top_users < 1:
            raise ValueError(f"top_users must be at least 1, got {self.top_users}")
        if not 0 <= self.max_malformed_fraction <= 1:
            raise ValueError(
                f"max_malformed_fraction must lie in [0, 1], got {self.max_malformed_fraction}"
            )
        if self.max_aspect < 1:
            raise ValueError(f"max_aspect must be at least 1, got {self.max_aspect}")


def column_reasons(messages: pa.RecordBatch, params: FilterParams) -> pa.Array:
    """Say why messages are unfit, as far as columns tell; null passes to `prompt_reason`.

    Args:
        messages: of schema `export.MESSAGES`.
        params: the section `filter`.
    """
    kind, prompt = messages["kind"], messages["prompt"]
    cut = pc.and_(pc.ends_with(prompt, "…"), pc.greater_equal(pc.utf8_length(prompt), CUT_CHARS))
    # a prompt without the letters is not raw; one with them may still be a painting of raw fish
    without_raw = pc.invert(pc.match_substring(prompt, "raw", ignore_case=True))
    conditions = (
        pc.is_null(kind),
        pc.equal(kind, UNFINISHED),
        pc.not_equal(kind, UPSCALE),
        pc.invert(pc.match_substring_regex(messages["url"], r"\Ahttps?://")),
        pc.is_in(messages["user"], pa.array(["", DELETED_USER])),
        cut,
        pc.and_(without_raw, pa.scalar(params.raw_only)),
    )
    filled = [pc.fill_null(condition, False) for condition in conditions]
    return pc.case_when(pc.make_struct(*filled, field_names=COLUMN_REASONS), *COLUMN_REASONS)


def prompt_reason(
    prompt: Prompt, version: str | None, side_px: int | None, params: FilterParams
) -> str | None:
    """Say why a prompt is unfit; None keeps it.

    Args:
        prompt: of a finished upscale.
        version: as `Prompt.version` gives it; None if unknown.
        side_px: shorter side of the picture; None if the export does not tell.
        params: the section `filter`.
    """
    aspect = prompt.aspect
    conditions = {
        "not_raw": params.raw_only and not prompt.is_raw,
        "image_prompt": prompt.is_image_prompt,
        "empty_caption": not prompt.caption,
        "mention": prompt.is_mentioning,
        "weights": prompt.is_weighted,
        "mistyped_flag": prompt.is_mistyped,
        "tile": prompt.is_tile,
        _version_reason(version): version not in _plain_versions(params.versions),
        "short_caption": len(prompt.caption) < params.min_caption_chars,
        "blocked_word": bool(_any_word(params.blocked_words).search(prompt.caption)),
        "aspect": aspect is None or aspect_ratio(aspect) > params.max_aspect,
        "too_small": side_px is not None and side_px < params.min_side_px,
    }
    return next((reason for reason, holds in conditions.items() if holds), None)


def _version_reason(version: str | None) -> str:
    return "niji" if version and version.startswith("niji") else "version"


@functools.lru_cache
def _plain_versions(versions: Sequence[str | float]) -> frozenset[str]:
    return frozenset(map(plain_version, versions))


@functools.lru_cache
def _any_word(words: Sequence[str]) -> re.Pattern[str]:
    """Match any of the words as a whole; never, if there are none."""
    choices = "|".join(map(re.escape, words))
    return re.compile(rf"\b(?:{choices})\b" if words else r"(?!)", re.IGNORECASE)
