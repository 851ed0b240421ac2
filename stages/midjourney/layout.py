"""The layouts that Midjourney exports come in, chosen by their header.

Each is a pair of pure functions from a batch of its own columns: `posts` reads who posted what,
of every row; `facts` what is wanted of the rows that are left when that is judged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from stages.midjourney.columns import first_link, shorter_side, utc_seconds
from stages.midjourney.message import (
    GRID,
    KIND_OF_VERB,
    PARSED,
    UPSCALE,
    Posts,
    find_messages,
    posts_of,
)

FACTS = pa.schema(
    [
        ("id", pa.string()),  # of the message; empty where the layout has none
        ("url", pa.string()),  # of the first attachment; empty if there is none
        ("timestamp", pa.timestamp("s", "UTC")),
        ("version", pa.string()),  # where a column says so; else null, and the prompt tells
        ("side_px", pa.int32()),  # shorter side; null where the layout does not tell
    ]
)
EVERYBODY = "everybody"  # stands for the users of a layout that names none


@dataclass(frozen=True, slots=True)
class Layout:
    """A known form of export."""

    name: str
    columns: tuple[str, ...]  # those that are read; all must be there
    link: str  # the column with the attachments
    posts: Callable[[pa.RecordBatch], Posts]  # columns -> counts by kind, and the upscales
    facts: Callable[[pa.RecordBatch], pa.RecordBatch]  # columns -> schema FACTS
    message_id: str | None = None  # the column with the id, if there is one


def _facts(count: int, **columns: pa.Array) -> pa.RecordBatch:
    """Make a batch of FACTS; columns not given are empty (id) or null."""
    blank = {"id": pa.repeat("", count)}
    arrays = [
        columns.get(field.name, blank.get(field.name, pa.nulls(count, field.type)))
        for field in FACTS
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=FACTS)


def _posts(prompt: pa.Array, kind: pa.Array, user: pa.Array) -> Posts:
    return posts_of(pa.RecordBatch.from_arrays([prompt, kind, user], schema=PARSED), UPSCALE)


def _bot_posts(batch: pa.RecordBatch) -> Posts:
    # the author is the bot; who asked stands in the content
    return find_messages(batch["Content"], UPSCALE)


def _chat_exporter_facts(batch: pa.RecordBatch) -> pa.RecordBatch:
    return _facts(
        len(batch), url=first_link(batch["Attachments"]), timestamp=utc_seconds(batch["Date"])
    )


def _clean_table_facts(batch: pa.RecordBatch) -> pa.RecordBatch:
    return _facts(len(batch), url=first_link(batch["Attachments"]), version=batch["version"])


def _v5_table_facts(batch: pa.RecordBatch) -> pa.RecordBatch:
    return _facts(len(batch), url=first_link(batch["Attachments"]))


def _message_table_posts(batch: pa.RecordBatch) -> Posts:
    return find_messages(batch["content"], UPSCALE)


def _message_table_facts(batch: pa.RecordBatch) -> pa.RecordBatch:
    return _facts(
        len(batch),
        id=batch["id"],
        url=first_link(batch["url"]),
        timestamp=utc_seconds(batch["timestamp"]),
        side_px=shorter_side(batch["width"], batch["height"]),
    )


def _v6_table_posts(batch: pa.RecordBatch) -> Posts:
    # each row is one single picture, and nobody is named
    count = len(batch)
    return _posts(batch["prompt"], pa.repeat(UPSCALE, count), pa.repeat(EVERYBODY, count))


def _v6_table_facts(batch: pa.RecordBatch) -> pa.RecordBatch:
    return _facts(
        len(batch),
        url=first_link(batch["image_url"]),
        timestamp=utc_seconds(batch["timestamp"]),
    )


def _threads_posts(batch: pa.RecordBatch) -> Posts:
    label = batch["label"]
    # most specific first: a label may be "Upscaled (4x)" or "Image #2"
    kinds = [(rf"(?i)\A{verb}\b", kind) for verb, kind in KIND_OF_VERB.items() if verb]
    kinds.append((r"(?i)\A(?:upscale|image #?[1-4])", UPSCALE))
    conditions = [pc.match_substring_regex(label, pattern) for pattern, _ in kinds]
    names = [str(i) for i in range(len(kinds))]
    kind = pc.case_when(
        pc.make_struct(*conditions, field_names=names), *(kind for _, kind in kinds), GRID
    )
    prompt = pc.utf8_trim_whitespace(pc.binary_join_element_wise(batch["text"], batch["args"], " "))
    return _posts(prompt, kind, batch["userid"])


def _threads_facts(batch: pa.RecordBatch) -> pa.RecordBatch:
    return _facts(
        len(batch),
        id=batch["id"],
        url=first_link(batch["url_png"]),
        timestamp=utc_seconds(batch["timestamp"]),
    )


LAYOUTS = (
    Layout(
        "Kaggle's cleaned table",
        ("Attachments", "version", "aspect", "clean_prompts", "Content"),
        "Attachments",
        _bot_posts,
        _clean_table_facts,
    ),
    Layout(
        "midjourney-v5 table",
        ("Attachments", "clean_prompts", "user_name", "upscaled", "Content"),
        "Attachments",
        _bot_posts,
        _v5_table_facts,
    ),
    Layout(
        "DiscordChatExporter",
        ("Date", "Content", "Attachments"),
        "Attachments",
        _bot_posts,
        _chat_exporter_facts,
    ),
    Layout(
        "midjourney-messages table",
        ("id", "content", "timestamp", "height", "width", "url"),
        "url",
        _message_table_posts,
        _message_table_facts,
        message_id="id",
    ),
    Layout(
        "midjourney-v6 table",
        ("prompt", "image_url", "timestamp"),
        "image_url",
        _v6_table_posts,
        _v6_table_facts,
    ),
    Layout(
        "threads table",
        ("text", "args", "userid", "timestamp", "label", "id", "url_png"),
        "url_png",
        _threads_posts,
        _threads_facts,
        message_id="id",
    ),
)


def layout_of(header: list[str], path: Path) -> Layout:
    """Choose the layout whose columns are all in the header, in any order.

    Raises:
        ValueError: showing the header and the layouts known.
    """
    for layout in LAYOUTS:
        if set(layout.columns) <= set(header):
            return layout
    known = "\n".join(f"  {layout.name}: {', '.join(layout.columns)}" for layout in LAYOUTS)
    raise ValueError(
        f"{path}: no known layout has the columns of its header: {', '.join(header) or '(none)'}\n"
        f"Known layouts, by the columns that each needs:\n{known}\n"
        "Rename the columns to those of one of these"
    )
