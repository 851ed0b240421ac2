"""What the Midjourney bot posts: the grammar of one message, for one string or a column.

    **a view of Paris --v 5.2 --style raw** - Image #2 <@100000000000000001>

The grammar is one regular expression that Arrow's RE2 and Python's `re` read alike.
"""

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

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

# The greedy prompt and the anchored tail let a prompt hold "**", "(fast)" and newlines.
_STATUS = r"Waiting to start|paused|Stopped|\d{1,3}%"
_VERBS = "|".join(filter(None, KIND_OF_VERB))
RE2_PATTERN = (
    r"(?s)\A(?P<prefix>Making variations for image #\d with prompt |Upscaling image #\d with "
    r"|Rerolling )?"
    r"\*\*(?P<prompt>.*)\*\* - "
    rf"(?:(?:Image #(?P<index>[1-4])|(?P<verb>{_VERBS})(?: \([A-Za-z0-9 ]{{1,24}}\))? by) )?"
    r"(?:<@!?(?P<user_id>\d{15,21})>|@(?P<user_name>[^\r\n]+?))"
    rf"(?: \((?P<status>{_STATUS})\))?"
    r"(?: \[?\(Open on website for full quality\)\]?(?:\(<https?://[^>\s]+>\))?)?"
    rf"(?: \((?P<late_status>{_STATUS})\))?"
    r"(?: \((?:metered, ?)?(?:fast|relaxed|turbo)(?:, ?stealth)?\))?"
    r"\s*(?:\n-#.*)?\z"
)
_PYTHON_PATTERN = re.compile(RE2_PATTERN.replace(r"\z", r"\Z"), re.ASCII)

PARSED = pa.schema(
    [
        ("prompt", pa.string()),
        ("kind", pa.string()),  # null: the content is no message of this grammar
        ("verb", pa.string()),
        ("index", pa.int8()),  # of the upscaled quarter, 1 to 4; 0: none
        ("user", pa.string()),
        ("status", pa.string()),
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


def parse_messages(content: pa.Array) -> pa.RecordBatch:
    """Read a column of messages, row by row as `parse_message` does.

    Returns:
        A batch of schema PARSED with one row per input row, all null where it does not parse.
    """
    parts = pc.extract_regex(content, RE2_PATTERN)
    valid = parts.is_valid()

    def part(name: str) -> pa.Array:
        return pc.struct_field(parts, name)

    def given(name: str) -> pa.Array:
        return pc.fill_null(pc.not_equal(part(name), ""), False)

    status = pc.if_else(given("status"), part("status"), part("late_status"))
    unfinished = pc.or_(given("prefix"), pc.fill_null(pc.not_equal(status, ""), False))
    kinds = pa.array(KIND_OF_VERB.values(), pa.string())
    by_verb = kinds.take(pc.index_in(part("verb"), pa.array(KIND_OF_VERB, pa.string())))
    kind = pc.if_else(unfinished, UNFINISHED, pc.if_else(given("index"), UPSCALE, by_verb))
    index = pc.cast(pc.if_else(given("index"), part("index"), "0"), pa.int8())
    name = pc.binary_join_element_wise("@", part("user_name"), "")
    user = pc.if_else(given("user_id"), part("user_id"), name)
    columns = (part("prompt"), kind, part("verb"), index, user, status)
    return pa.RecordBatch.from_arrays(
        [pc.if_else(valid, column, pa.scalar(None, column.type)) for column in columns],
        schema=PARSED,
    )
