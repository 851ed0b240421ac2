"""What the Midjourney bot posts: the grammar of one message, for one string or a column.

    **a view of Paris --v 5.2 --style raw** - Image #2 <@100000000000000001>

The grammar is one regular expression that Arrow's RE2 and Python's `re` read alike. A column is
first cut at its marks, by arithmetic on its bytes: what stands between them repeats from message
to message, and only texts not seen before are matched, with the same expression's parts.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.midjourney.strings import (
    Bools,
    Bytes,
    Ints,
    are_digits,
    letters,
    slices,
    string_buffers,
)

UNFINISHED = "unfinished"
UPSCALE = "upscale"
GRID = "grid"
KIND_OF_VERB = {
    "": GRID,
    "Upscaling": UNFINISHED,
    "Upscaled": UPSCALE,
    "Variations": "variation",
    "Remix": "remix",
    "Remaster": "remaster",
    "Zoom Out": "zoom",
    "Pan Left": "pan",
    "Pan Right": "pan",
    "Pan Up": "pan",
    "Pan Down": "pan",
}
KINDS = pa.array([None, *dict.fromkeys(KIND_OF_VERB.values())], pa.string())
_KIND_CODES = {kind: code for code, kind in enumerate(KINDS.to_pylist())}


def _for_python(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace(r"\z", r"\Z"), re.ASCII)


# The greedy prompt and the anchored tail let a prompt hold "**", "(fast)" and newlines.
_SPACE = r"\t\n\f\r "  # RE2's \s; Python's holds \v, too
_STATUS = r"Waiting to start|paused|Stopped|\d{1,3}%"
_VERBS = "|".join(filter(None, KIND_OF_VERB))
_ACTION = rf"(?:(?:Image #(?P<index>[1-4])|(?P<verb>{_VERBS})(?: \([A-Za-z0-9 ]{{1,24}}\))? by) )?"
_REST = (
    rf"(?: \((?P<status>{_STATUS})\))?"
    rf"(?: \[?\(Open on website for full quality\)\]?(?:\(<https?://[^>{_SPACE}]+>\))?)?"
    rf"(?: \((?P<late_status>{_STATUS})\))?"
    r"(?: \((?:metered, ?)?(?:fast|relaxed|turbo)(?:, ?stealth)?\))?"
    rf"[{_SPACE}]*(?:\n-#.*)?\z"
)
_TAIL = rf"{_ACTION}(?:<@!?(?P<user_id>\d{{15,21}})>|@(?P<user_name>[^\r\n]+?)){_REST}"
RE2_PATTERN = (
    r"(?s)\A(?P<prefix>Making variations for image #\d with prompt |Upscaling image #\d with "
    r"|Rerolling )?"
    rf"\*\*(?P<prompt>.*)\*\* - {_TAIL}"
)
_TAIL_PATTERN = rf"(?s)\A{_TAIL}"
_PYTHON_PATTERN = _for_python(RE2_PATTERN)
_ACTION_PATTERN = _for_python(_ACTION)
_REST_PATTERN = _for_python(rf"(?s){_REST}")

WINDOW_BYTES = 1 << 18  # what is compared at once, and stays in a core's cache
PARSED = pa.schema(
    [
        ("prompt", pa.string()),
        ("kind", pa.string()),  # null: the content is no message of this grammar
        ("user", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One parsed message; empty strings and index 0 for what it does not say."""

    prompt: str  # as typed, with flags
    kind: str
    verb: str
    index: int
    user: str  # the id from <@id>, or @Name
    status: str


def parse_message(content: str) -> Message | None:
    """Read one message; None if it is not of the grammar (chatter, a broken row)."""
    found = _PYTHON_PATTERN.match(content)
    if found is None:
        return None
    part = {name: text or "" for name, text in found.groupdict().items()}
    status = part["status"] or part["late_status"]
    if part["prefix"] or status:
        kind = UNFINISHED
    else:
        kind = UPSCALE if part["index"] else KIND_OF_VERB[part["verb"]]
    return Message(
        prompt=part["prompt"],
        kind=kind,
        verb=part["verb"],
        index=int(part["index"] or 0),
        user=part["user_id"] or ("@" + part["user_name"] if part["user_name"] else ""),
        status=status,
    )


@dataclass(frozen=True, slots=True)
class Posts:
    """What a batch of rows holds: how many of each kind, and those messages that are wanted."""

    kinds: Counter[str | None]  # of all rows; None: no message of the grammar
    rows: Ints  # of the wanted messages, rising
    messages: pa.RecordBatch  # the wanted ones, of schema PARSED


def parse_messages(content: pa.Array) -> pa.RecordBatch:
    """Read a column of messages, row by row as `parse_message` does.

    Args:
        content: of strings, without nulls.

    Returns:
        A batch of schema PARSED with one row per input row, all null where it does not parse.
    """
    posts = find_messages(content)
    places = np.full(len(content), -1)
    places[posts.rows] = np.arange(len(posts.rows))
    return posts.messages.take(pa.array(places, mask=places < 0))


def find_messages(content: pa.Array, only: str = "") -> Posts:
    """Read a column of messages; prompts and users are copied of one kind alone, or of all.

    Args:
        content: of strings, without nulls.
        only: the kind that is wanted; "" wants all.
    """
    cut = _cut(content)
    finished, status = _codes(_finished_code, cut.actions), _codes(_status_code, cut.rests)
    codes = np.where(status == 1, np.int8(_KIND_CODES[UNFINISHED]), finished)
    is_plain = cut.is_cut & (finished > 0) & (status >= 0)
    others = np.flatnonzero(~is_plain)
    searched = _search(content.take(pa.array(others)))
    found = np.bincount(codes[is_plain], minlength=len(KINDS))
    kinds = Counter({kind: int(found[code]) for kind, code in _KIND_CODES.items()})
    for entry in pc.value_counts(searched["kind"]).to_pylist():
        kinds[entry["values"]] += entry["counts"]
    plain = np.flatnonzero(is_plain & (codes == _KIND_CODES[only]) if only else is_plain)
    is_wanted = pc.equal(searched["kind"], only) if only else searched["kind"].is_valid()
    wanted = pc.indices_nonzero(pc.fill_null(is_wanted, False))
    rows = np.concatenate([plain, others[wanted.to_numpy()]])
    order = np.argsort(rows, kind="stable")
    messages = pa.concat_batches(
        [
            pa.RecordBatch.from_arrays(
                [
                    slices(content, cut.prompts[0][plain], cut.prompts[1][plain]),
                    KINDS.take(pa.array(codes[plain])),
                    slices(content, cut.users[0][plain], cut.users[1][plain]),
                ],
                schema=PARSED,
            ),
            searched.take(wanted),
        ]
    )
    return Posts(kinds, rows[order], messages.take(pa.array(order)))


def posts_of(messages: pa.RecordBatch, only: str) -> Posts:
    """Count messages that were never one text by kind, and keep one kind.

    Args:
        messages: of schema PARSED.
        only: the kind that is wanted.
    """
    counts = pc.value_counts(messages["kind"]).to_pylist()
    rows = pc.indices_nonzero(pc.fill_null(pc.equal(messages["kind"], only), False))
    kinds = Counter({entry["values"]: entry["counts"] for entry in counts})
    return Posts(kinds, rows.to_numpy(), messages.take(rows))


def _search(content: pa.Array) -> pa.RecordBatch:
    """Match rows without a plain form: what follows their last mark, else all of them."""
    offsets, text = string_buffers(content)
    starts, ends = offsets[:-1], offsets[1:]
    tails, is_cut = _tails(text, starts, ends)
    parts = pc.extract_regex(slices(content, tails, ends), _TAIL_PATTERN)
    found = is_cut & parts.is_valid().to_numpy(zero_copy_only=False)
    prompts = slices(content, np.where(found, starts + 2, ends), np.where(found, tails - 5, ends))
    by_tail = _from_parts(parts, prompts, pa.array(found))
    # chatter without the mark is not worth the search
    is_marked = pc.match_substring(content, "** - ").to_numpy(zero_copy_only=False)
    rest = np.flatnonzero(is_marked & ~found)
    if not len(rest):
        return by_tail
    whole = pc.extract_regex(content.take(pa.array(rest)), RE2_PATTERN)
    by_all = _from_parts(whole, pc.struct_field(whole, "prompt"), whole.is_valid())
    rows = np.arange(len(content))
    rows[rest] = len(content) + np.arange(len(rest))
    return pa.concat_batches([by_tail, by_all]).take(pa.array(rows))


def _from_parts(parts: pa.Array, prompts: pa.Array, found: pa.Array) -> pa.RecordBatch:
    """Make rows of schema PARSED of what an expression's groups hold; null where not found."""
    names = {parts.type.field(i).name for i in range(parts.type.num_fields)}

    def part(name: str) -> pa.Array:
        return pc.struct_field(parts, name)

    def given(name: str) -> pa.Array:
        return pc.fill_null(pc.not_equal(part(name), ""), False)

    unfinished = pc.or_(given("status"), given("late_status"))
    if "prefix" in names:
        unfinished = pc.or_(given("prefix"), unfinished)
    kinds = pa.array(KIND_OF_VERB.values(), pa.string())
    by_verb = kinds.take(pc.index_in(part("verb"), pa.array(KIND_OF_VERB, pa.string())))
    kind = pc.if_else(unfinished, UNFINISHED, pc.if_else(given("index"), UPSCALE, by_verb))
    name = pc.binary_join_element_wise("@", part("user_name"), "")
    user = pc.if_else(given("user_id"), part("user_id"), name)
    null = pa.scalar(None, pa.string())
    columns = [pc.if_else(found, column, null) for column in (prompts, kind, user)]
    return pa.RecordBatch.from_arrays(columns, schema=PARSED)


# --- the plain form: ** PROMPT ** - ACTION <@ USER > REST ---------------------------------------


@dataclass(frozen=True, slots=True)
class _Cut:
    """Messages in pieces; where `is_cut` is false, the pieces mean nothing."""

    is_cut: Bools
    actions: pa.Array
    rests: pa.Array
    prompts: tuple[Ints, Ints]  # where each starts and ends, as `slices` takes them
    users: tuple[Ints, Ints]


def _cut(content: pa.Array) -> _Cut:
    """Cut messages at their last `** - `, and around the first `<@` and `>` after it.

    A greedy prompt ends at the last `** - ` after which the tail matches, and no action holds a
    `<`: if the pieces match, the whole expression would have found the same.
    """
    offsets, text = string_buffers(content)
    starts, ends = offsets[:-1], offsets[1:]
    tails, is_cut = _tails(text, starts, ends)
    # a grid's user follows at once, and an `Image #1` has its length
    after = np.where(letters(text, tails) == ord("I"), tails + len("Image #1 "), tails)
    opening = np.where(letters(text, after) == ord("<"), after, -1)
    others = np.flatnonzero(is_cut & (opening < 0))
    tail = slices(content, tails[others], ends[others])
    at = pc.find_substring(tail, "<@").to_numpy()
    opening[others] = np.where(at < 0, -1, tails[others] + at)
    is_id = is_cut & (opening >= 0) & (letters(text, opening + 1) == ord("@"))
    opening = np.where(is_id, opening, ends)
    first = opening + 2  # of the user's letters
    first += letters(text, first) == ord("!")
    closing = first + 18
    others = np.flatnonzero(is_id)
    for length in (18, 19, 17, 20, 16, 21, 15):  # the digits of an id, the most frequent first
        closing[others] = first[others] + length
        others = others[letters(text, closing[others]) != ord(">")]
    is_id[others] = False
    is_id &= closing < ends
    rows = np.flatnonzero(is_id)
    is_id[rows] = are_digits(text, first[rows], closing[rows])
    first, closing = (np.where(is_id, bound, ends) for bound in (first, closing))
    return _Cut(
        is_id,
        slices(content, np.where(is_id, tails, ends), np.where(is_id, opening, ends)),
        slices(content, np.where(is_id, closing + 1, ends), ends),
        (starts + 2, tails - 5),
        (first, closing),
    )


def _tails(text: Bytes, starts: Ints, ends: Ints) -> tuple[Ints, Bools]:
    """Find what follows the last `** - ` of each row that begins with `**`."""
    stars = _find_marks(text)
    at = np.searchsorted(stars, ends - 5, side="right") - 1
    last = np.append(stars, -1)[at]  # row -1 if there is none before
    head = np.minimum(starts, max(len(text) - 2, 0))
    is_cut = last >= starts + 2
    if len(text) > 1:
        is_cut &= (text[head] == ord("*")) & (text[head + 1] == ord("*"))
    return np.where(is_cut, last + 5, ends), is_cut


def _find_marks(text: Bytes) -> Ints:
    """List where `** - ` stands, rising; two of its letters tell nearly all of them."""
    found = []
    for first in range(0, max(len(text), 1), WINDOW_BYTES):
        part = text[first : first + WINDOW_BYTES + 4]
        is_like = part[:-4] == np.uint8(ord("*"))
        is_like &= part[3:-1] == np.uint8(ord("-"))
        found.append(np.flatnonzero(is_like) + first)
    at = np.concatenate(found)
    is_mark = (text[at + 1] == ord("*")) & (text[at + 2] == ord(" ")) & (text[at + 4] == ord(" "))
    return np.asarray(at[is_mark])


@functools.lru_cache(maxsize=1 << 10)
def _finished_code(action: str) -> int:
    """Give the kind, as a code, that an action means when it is done; 0: it is no action."""
    found = _ACTION_PATTERN.fullmatch(action)
    if found is None:
        return 0
    return _KIND_CODES[UPSCALE if found["index"] else KIND_OF_VERB[found["verb"] or ""]]


@functools.lru_cache(maxsize=1 << 10)
def _status_code(rest: str) -> int:
    """Say of what follows the user: 1 if it tells a status, 0 if none, -1 if it is not known."""
    found = _REST_PATTERN.fullmatch(rest)
    if found is None:
        return -1
    return int(bool(found["status"] or found["late_status"]))


def _codes(code: Callable[[str], int], texts: pa.Array) -> npt.NDArray[np.int8]:
    """Look up the code of each row; each text once."""
    encoded = pc.dictionary_encode(texts)
    known = np.array([code(text) for text in encoded.dictionary.to_pylist()], np.int8)
    return np.asarray(known[encoded.indices.to_numpy()])
