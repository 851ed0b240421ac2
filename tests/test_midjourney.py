"""The grammar of messages and prompts, message by message and as properties."""

import re
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.midjourney.message import KIND_OF_VERB, parse_message, parse_messages
from stages.midjourney.prompt import (
    ALIASES,
    aspect_ratio,
    default_version,
    parse_prompt,
    parse_prompts,
    plain_version,
)
from stages.midjourney.strings import are_digits, string_buffers

ID = "100000000000000001"
USER = f"<@{ID}>"
JOB = "https://midjourney.com/jobs/b21f08de"

EXAMPLES = [
    (f"**ice creams, pinkcore --v 5** - {USER} (relaxed)", "grid"),
    (f"**Paris by Kanagawa** - {USER} (Open on website for full quality) (relaxed)", "grid"),
    (f"**cat --v 5** - {USER} (Stopped)", "unfinished"),
    (f"**cat --v 5** - {USER} (paused) (relaxed)", "unfinished"),
    (f"**cat --v 5** - {USER} (62%) (relaxed)", "unfinished"),
    (f"**cat** - {USER} (Open on website for full quality) (93%) (fast)", "unfinished"),
    (f"**cat --v 5** - {USER} (Waiting to start)", "unfinished"),
    (f"**cat --v 5** - Upscaling by {USER} (3%) (fast)", "unfinished"),
    (f"**cat --v 5** - Upscaling by {USER} (fast)", "unfinished"),
    (f"Making variations for image #1 with prompt **cat** - {USER} (fast)", "unfinished"),
    (f"Upscaling image #2 with **cat** - {USER} (Waiting to start)", "unfinished"),
    (f"Rerolling **cat** - {USER} (Waiting to start)", "unfinished"),
    (f"**cat --v 5** - Remix by {USER} (fast)", "remix"),
    (f"**Simple, vector --s 250 --v 6.0** - Remix (Subtle) by {USER} (fast)", "remix"),
    (f"**cat** - Remaster by {USER} (fast)", "remaster"),
    (f"**cat --v 5 --ar 3:2** - Image #1 {USER}", "upscale"),
    (f"**cat --v 5 --ar 3:2** - Image #4 {USER} ", "upscale"),
    (f"**cat --v 5 --seed 6894** - Upscaled by {USER} (fast, stealth)", "upscale"),
    (f"**<https://s.mj.run/Xg2Gq> 4k --v 6.0** - Upscaled (Subtle) by {USER} (fast)", "upscale"),
    (
        f"**car** - Upscaled (4x) by {USER} (Open on website for full quality) (fast)",
        "upscale",
    ),
    (
        f"**cat** - Variations by {USER} (Open on website for full quality) (relaxed)",
        "variation",
    ),
    (f"**cat** - Variations (Strong) by {USER} (fast)", "variation"),
    (
        f"**cat** - Variations (Strong) by {USER} "
        f"[(Open on website for full quality)](<{JOB}>) (fast)",
        "variation",
    ),
    (f"**car an. --niji 6 --relax** - Pan Right by {USER} (relaxed)", "pan"),
    (f"**forest --v 6.0 --relax** - Zoom Out by {USER} (relaxed)", "zoom"),
    (f"** girl flips her hair --v 4** - {USER} (metered, fast)", "grid"),
    (f"**南极应该是什么样子？ --v 6.0** - {USER} (32%) (fast, stealth)", "unfinished"),
    ("**hello world --v 5** - @TechnoKing (fast)", "grid"),
    ("**hello world --v 5** - Image #3 @Tin Fern (AI) ", "upscale"),
    ("**hello world --v 5** - Image #3 @Unknown", "upscale"),
    (f"**cat** - <@!{ID}> (turbo)\n-# Create, explore, and organize", "grid"),
    (f"**** - Image #2 {USER}", "upscale"),
]
CHATTER = [
    "",
    "nice one!",
    "**cat --v 5.2**",
    "**cat** - ",
    "**cat** - Image #5 <@1>",
    f"cat** - {USER} (fast)",
    f"**cat** - {USER} (fast) and more",
    f"**cat** - {USER} (fast)\v",  # a space to Python, and none to RE2
    f"**cat** - Reversed by {USER} (fast)",
]


@pytest.mark.parametrize(("content", "kind"), EXAMPLES)
def test_every_known_form_of_message_has_its_kind(content: str, kind: str) -> None:
    message = parse_message(content)
    assert message is not None
    assert message.kind == kind
    assert message.user == ID or message.user.startswith("@")


@pytest.mark.parametrize("content", CHATTER)
def test_what_is_no_message_does_not_parse(content: str) -> None:
    assert parse_message(content) is None


def test_a_prompt_may_hold_stars_modes_newlines_and_other_messages() -> None:
    prompt = f"two ** stars (fast)\n** - Image #1 {USER} (62%) --v 5.1 --style raw"
    message = parse_message(f"**{prompt}** - Image #2 {USER} ")
    assert message is not None
    assert (message.prompt, message.index, message.kind) == (prompt, 2, "upscale")


def test_a_column_parses_as_its_messages_do() -> None:
    contents = [content for content, _ in EXAMPLES] + CHATTER
    assert_column_agrees(contents)


def assert_column_agrees(contents: list[str]) -> None:
    parsed = parse_messages(pa.array(contents, pa.string())).to_pylist()
    for content, row in zip(contents, parsed, strict=True):
        message = parse_message(content)
        wanted = {name: getattr(message, name, None) for name in row}  # of schema PARSED
        assert row == wanted, content


letters = st.characters(exclude_categories=["Cs"])
texts = st.text(letters, max_size=60)
# Like prompts and contents: the words and marks that the grammar is made of, in any order.
pieces = st.lists(
    st.sampled_from(
        [
            *("**", " - ", "Image #1 ", "Image #9 ", "Upscaled", " (2x)", " by ", USER, "@Name"),
            *(" (fast)", " (62%)", " (Waiting to start)", "Rerolling ", "--v 5.2", "—ar 3:2"),
            *("--no", " dog", "--", "–", " ", "\n", "\u2028", "\u00a0", "--style raw", "--3d"),
            *("(Open on website for full quality)", "…", "é", "猫", "--no cat", "--raw"),
        ]
    ),
    max_size=12,
).map("".join)


@given(st.lists(texts | pieces, max_size=8))
def test_any_column_parses_as_its_messages_do(contents: list[str]) -> None:
    assert_column_agrees(contents)


@pytest.mark.parametrize("user", ["1" * 15, "9" * 21, "0123456789" * 2, "1" * 22, "1" * 14])
@pytest.mark.parametrize("at", [None, 0, 7, 8, 12, -8, -1])
def test_an_id_is_fifteen_to_twenty_one_digits_and_nothing_else(user: str, at: int | None) -> None:
    for strange in "/:٣a\x80>" if at is not None else [""]:
        letters_of_user = list(user)
        if at is not None:
            letters_of_user[at] = strange
        assert_column_agrees([f"**cat** - Image #1 <@{''.join(letters_of_user)}> "] * 2)


@given(
    st.lists(st.binary(min_size=8, max_size=24) | st.from_regex(rb"[0-9]{8,24}", fullmatch=True))
)
def test_digits_are_told_from_all_other_bytes(pieces: list[bytes]) -> None:
    bounds, text = string_buffers(pa.array(pieces, pa.binary()))
    found = are_digits(text, bounds[:-1], bounds[1:])
    assert found.tolist() == [piece.isdigit() for piece in pieces]


verbs = sorted(verb for verb in KIND_OF_VERB if verb)


@given(
    prompt=texts | pieces,
    index=st.integers(0, 4),
    verb=st.sampled_from(["", *verbs]),
    variant=st.sampled_from(["", " (Subtle)", " (4x)"]),
    user_id=st.integers(10**14, 10**21 - 1),
    status=st.sampled_from(["", "7%", "100%", "Stopped", "paused", "Waiting to start"]),
    mode=st.sampled_from(["", " (fast)", " (relaxed, stealth)", " (metered, turbo)"]),
)
def test_what_is_written_is_read_back(
    prompt: str, index: int, verb: str, variant: str, user_id: int, status: str, mode: str
) -> None:
    action = f"Image #{index} " if index else (f"{verb}{variant} by " if verb else "")
    tail = f" ({status})" * bool(status) + mode
    message = parse_message(f"**{prompt}** - {action}<@{user_id}>{tail}")
    assert message is not None
    assert message.prompt == prompt
    assert message.index == index
    assert message.verb == ("" if index else verb)
    assert message.user == str(user_id)
    assert message.status == status
    if status or (verb == "Upscaling" and not index):
        assert message.kind == "unfinished"
    else:
        assert message.kind == ("upscale" if index else KIND_OF_VERB[verb])


# --- prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "caption", "flags"),
    [
        ("cat", "cat", {}),
        ("cat --v 5.2", "cat", {"version": "5.2"}),
        ("--style raw", "", {"style": "raw"}),
        ("steampunk, --ar 9:16 --c 10", "steampunk", {"aspect": "9:16", "chaos": "10"}),
        ("girl --no boy --no car , dog --raw", "girl", {"no": "boy, car , dog", "raw": ""}),
        ("fox —style raw –v 5.1", "fox", {"style": "raw", "version": "5.1"}),
        ("red\n fox  in snow --tile", "red fox in snow", {"tile": ""}),
        ("cat --v 5 --v 6", "cat", {"version": "5"}),
        ("half-length, pre--raphaelite -- x --3d", "half-length, pre--raphaelite -- x --3d", {}),
        ("a — dash and a – dash", "a — dash and a – dash", {}),
        ("cat --AR 3:2 more words", "cat", {"aspect": "3:2"}),
        ("cat --no", "cat", {"no": ""}),
    ],
)
def test_a_prompt_splits_into_caption_and_flags(
    text: str, caption: str, flags: dict[str, str]
) -> None:
    prompt = parse_prompt(text)
    assert prompt.caption == caption
    assert prompt.flags == flags


# The published pattern for flags, quadratic and for Python only: the reference.
FLAGS = re.compile(
    r"(?:(?<=\s)|\A)(?:--|[—–])(?P<name>[A-Za-z]+)(?:\s+(?!(?:--|[—–])[A-Za-z])(?P<val>.*?))?"
    r"(?=\s+(?:--|[—–])[A-Za-z]|\s*\Z)",
    re.DOTALL,
)


def reference_flags(text: str) -> dict[str, str]:
    flags: dict[str, str] = {}
    for found in FLAGS.finditer(text):
        name = ALIASES.get(found["name"].lower(), found["name"].lower())
        value = (found["val"] or "").strip()
        if name != "no":
            flags.setdefault(name, (value.split() or [""])[0])
        else:
            flags["no"] = ", ".join(filter(None, [flags.get("no", ""), value]))
    return flags


@given(pieces | texts)
def test_flags_are_those_of_the_published_pattern(text: str) -> None:
    assert parse_prompt(text).flags == reference_flags(text)


words = st.from_regex(r"[a-z]{1,8}(?:,? [a-z]{1,8}){0,4}", fullmatch=True)


@given(
    caption=words,
    version=st.sampled_from(["4", "5.1", "5.2"]),
    aspect=st.tuples(st.integers(1, 21), st.integers(1, 21)),
    unwanted=st.lists(words, max_size=3),
    raw=st.sampled_from(["--style raw", "--raw", ""]),
    order=st.randoms(use_true_random=False),
)
def test_flags_are_read_in_any_order(
    caption: str,
    version: str,
    aspect: tuple[int, int],
    unwanted: list[str],
    raw: str,
    order: object,
) -> None:
    flags = [f"--v {version}", f"--ar {aspect[0]}:{aspect[1]}", raw]
    flags += [f"--no {thing}" for thing in unwanted]
    order.shuffle(flags)  # type: ignore[attr-defined]
    prompt = parse_prompt(" ".join([caption, *filter(None, flags)]))
    assert prompt.caption == caption
    assert prompt.version(None) == version
    assert prompt.aspect == f"{aspect[0]}:{aspect[1]}"
    assert prompt.is_raw == bool(raw)
    assert set(prompt.flags.get("no", "").split(", ")) >= {
        part for thing in unwanted for part in thing.split(", ")
    }


@given(texts | pieces)
def test_a_caption_is_clean_and_holds_no_flag(text: str) -> None:
    prompt = parse_prompt(text)
    assert prompt.caption == " ".join(prompt.caption.split())
    if not prompt.is_mistyped:
        assert parse_prompt(prompt.caption).flags == {}


@given(st.lists(texts | pieces, max_size=8))
def test_a_column_of_prompts_is_read_as_its_prompts_are(prompts: list[str]) -> None:
    rows = parse_prompts(pa.array(prompts, pa.string())).to_pylist()
    for text, row in zip(prompts, rows, strict=True):
        prompt = parse_prompt(text)
        ratio = row.pop("aspect_ratio")
        assert ratio == (aspect_ratio(prompt.aspect) if prompt.aspect else float("inf"))
        assert row.pop("is_version_told") == bool({"niji", "version"} & prompt.flags.keys())
        assert row.pop("version") == prompt.version(None)
        assert row == {name: getattr(prompt, name) for name in row}, text


def test_raw_is_a_style_or_a_flag_and_never_a_word() -> None:
    assert parse_prompt("fish --style raw").is_raw
    assert parse_prompt("fish --raw").is_raw
    assert not parse_prompt("raw fish --style cute").is_raw
    assert not parse_prompt("fish --no raw").is_raw


def test_versions_are_named_in_one_way() -> None:
    assert parse_prompt("cat --v 6.0").version(None) == "6"
    assert parse_prompt("cat --niji 5 --v 5").version(None) == "niji 5"
    assert parse_prompt("cat --niji").version(None) == "niji"
    assert plain_version(5.0) == "5"


@pytest.mark.parametrize(
    ("day", "version"),
    [
        ("2020-01-01", None),
        ("2023-05-03", "4"),
        ("2023-05-04", "5.1"),
        ("2023-06-22", "5.2"),
        ("2024-01-31", "5.2"),
        ("2024-02-14", "6"),
    ],
)
def test_a_prompt_without_a_version_takes_that_of_its_day(day: str, version: str | None) -> None:
    assert default_version(datetime.fromisoformat(day).replace(tzinfo=UTC)) == version


def test_an_aspect_is_the_same_both_ways_up_and_may_be_mistyped() -> None:
    assert aspect_ratio("3:2") == aspect_ratio("2:3") == 1.5
    assert parse_prompt("cat").aspect == "1:1"
    assert parse_prompt("cat --ar wide").aspect is None
    assert parse_prompt("cat --ar 0:2").aspect is None


def test_pictures_weights_mentions_and_mistyped_flags_are_seen() -> None:
    assert parse_prompt("<https://s.mj.run/Xg2Gq1TXMgc> cat").is_image_prompt
    assert parse_prompt("cat --sref https://example.com/a.png").is_image_prompt
    assert parse_prompt("cat::2 dog").is_weighted
    assert parse_prompt(f"as {USER} did").is_mentioning
    assert parse_prompt("cat --v5 --raw").is_mistyped
    assert not parse_prompt("cat --v 5 --raw").is_mistyped
