"""Why a message is not fit to train on: one reason each, the first that holds.

The reasons that cost little to tell come first, so that few rows ever reach the costly ones.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from stages.harness.params import Params
from stages.midjourney.message import UNFINISHED, UPSCALE
from stages.midjourney.prompt import plain_version

COLUMN_REASONS = (
    "malformed",  # a row that breaks the file's format, or a content that no bot wrote
    "unfinished",  # waiting, in progress, stopped
    "not_upscaled",  # grids, variations, remixes, zooms, pans: nobody chose these
    "repeated_message",  # its id came before, by somebody known: files of an export overlap
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
        for name in ("min_caption_chars", "min_user_upscales", "min_side_px"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.max_aspect < 1:
            raise ValueError(f"max_aspect must be at least 1, got {self.max_aspect}")


def kind_reason(kind: str | None) -> str | None:
    """Say why a message of this kind is unfit; None passes to `upscale_reasons`."""
    if kind is None:
        return "malformed"
    return {UNFINISHED: "unfinished", UPSCALE: None}.get(kind, "not_upscaled")


def upscale_reasons(upscales: pa.RecordBatch, has_link: pa.Array, params: FilterParams) -> pa.Array:
    """Say why upscales are unfit, as far as columns tell; null passes to `prompt_reasons`.

    Args:
        upscales: of schema `message.PARSED`.
        has_link: whether there is a picture.
        params: the section `filter`.
    """
    prompt = upscales["prompt"]
    conditions = {
        "no_attachment": pc.invert(has_link),
        "unknown_user": pc.is_in(upscales["user"], pa.array(["", DELETED_USER])),
        "cut": _is_cut(prompt),
    }
    if params.raw_only:
        # a prompt without the letters is not raw; one with them may still be of raw fish
        conditions["not_raw"] = pc.invert(pc.match_substring_regex(prompt, "[Rr][Aa][Ww]"))
    return _first_that_holds(conditions)


def _is_cut(prompts: pa.Array) -> pa.Array:
    """Tell which prompts are as long as the bot allows, and end in its mark."""
    marked = pc.ends_with(prompts, "…")
    is_long = pc.greater_equal(pc.utf8_length(prompts.filter(marked)), CUT_CHARS)
    return pc.replace_with_mask(marked, marked, is_long)


def prompt_reasons(
    prompts: pa.RecordBatch, version: pa.Array, side_px: pa.Array, params: FilterParams
) -> pa.Array:
    """Say why prompts are unfit; null keeps them.

    Args:
        prompts: of finished upscales, of schema `prompt.PROMPTS`.
        version: as `prompt.versions` gives it; null if unknown.
        side_px: shorter side of the picture; null if the export does not tell.
        params: the section `filter`.
    """
    caption = prompts["caption"]
    is_other = pc.invert(pc.is_in(version, pa.array(sorted(_plain_versions(params.versions)))))
    is_niji = pc.fill_null(pc.starts_with(version, "niji"), False)
    conditions = {
        "not_raw": pc.and_(pc.invert(prompts["is_raw"]), pa.scalar(params.raw_only)),
        "image_prompt": prompts["is_image_prompt"],
        "empty_caption": pc.equal(caption, ""),
        "mention": prompts["is_mentioning"],
        "weights": prompts["is_weighted"],
        "mistyped_flag": prompts["is_mistyped"],
        "tile": prompts["is_tile"],
        "niji": pc.and_(is_other, is_niji),
        "version": pc.and_(is_other, pc.invert(is_niji)),
        "short_caption": pc.less(pc.utf8_length(caption), params.min_caption_chars),
        "aspect": pc.greater(prompts["aspect_ratio"], params.max_aspect),
        "too_small": pc.less(side_px, params.min_side_px),
    }
    if params.blocked_words:
        conditions["blocked_word"] = has_word(caption, params.blocked_words)
    return _first_that_holds(
        {
            reason: conditions[reason]
            for reason in ("not_raw", *PROMPT_REASONS)
            if reason in conditions
        }
    )


def _first_that_holds(conditions: dict[str, pa.Array]) -> pa.Array:
    """Name each row's first condition that holds; null if none does."""
    filled = [pc.fill_null(condition, False) for condition in conditions.values()]
    return pc.case_when(pc.make_struct(*filled, field_names=list(conditions)), *conditions)


def _plain_versions(versions: Sequence[str | float]) -> frozenset[str]:
    return frozenset(map(plain_version, versions))


def has_word(texts: pa.Array, words: Sequence[str]) -> pa.Array:
    """Tell which texts hold any of the words as a whole, in any letter case."""
    choices = [pc.match_substring(texts, word, ignore_case=True) for word in words]
    holds = functools.reduce(pc.or_, choices)
    if pc.any(holds).as_py():
        # RE2's word boundary knows ASCII alone: to it, `é` would end a word
        whole = _any_word(words)
        found = [bool(whole.search(text)) for text in texts.filter(holds).to_pylist()]
        holds = pc.replace_with_mask(holds, holds, pa.array(found, pa.bool_()))
    return holds


@functools.lru_cache
def _any_word(words: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b", re.IGNORECASE)
