"""Read a Midjourney export in any layout known, in batches of one schema.

A file is read once, front to back, a few megabytes at a time. Each layout is a pure function
from a batch of its own columns to a batch of schema MESSAGES; the header chooses it.
"""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from stages.midjourney.message import GRID, KIND_OF_VERB, UPSCALE, parse_messages

MESSAGES = pa.schema(
    [
        ("id", pa.string()),  # of the message; empty where the layout has none
        ("url", pa.string()),  # of the first attachment; empty if there is none
        ("timestamp", pa.timestamp("s", "UTC")),
        ("prompt", pa.string()),
        ("kind", pa.string()),  # null: not a message of the grammar
        ("user", pa.string()),
        ("version", pa.string()),  # where a column says so; else null, and the prompt tells
        ("side_px", pa.int32()),  # shorter side; null where the layout does not tell
    ]
)
EVERYBODY = "everybody"  # stands for the users of a layout that names none
BLOCK_BYTES = 16 << 20  # also the longest row that can be read
BATCH_ROWS = 1 << 15


@dataclass(frozen=True, slots=True)
class Layout:
    """A known form of export."""

    name: str
    columns: tuple[str, ...]  # those that are read; all must be there
    to_messages: Callable[[pa.RecordBatch], pa.RecordBatch]


# --- columns ----------------------------------------------------------------------------------


def utc_seconds(text: pa.Array) -> pa.Array:
    """Read dates: ISO 8601 with or without zone and fraction, or `05/31/2023 4:05 PM`.

    A date without a zone is taken as UTC, for the export does not say where it was made;
    what is no date becomes null.
    """
    parts = pc.extract_regex(
        text,
        r"\A\s*(?P<day>\d{4}-\d\d-\d\d)[T ](?P<time>\d\d:\d\d:\d\d)(?:\.\d*)?"
        r"(?:Z|(?P<sign>[+-])(?P<hours>\d\d):?(?P<minutes>\d\d))?\s*\z",
    )

    def part(name: str) -> pa.Array:
        return pc.struct_field(parts, name)

    def number(name: str) -> pa.Array:
        return pc.cast(pc.if_else(pc.equal(part(name), ""), "0", part(name)), pa.int64())

    local = pc.strptime(
        pc.binary_join_element_wise(part("day"), part("time"), " "),
        format="%Y-%m-%d %H:%M:%S",
        unit="s",
        error_is_null=True,
    )
    east_s = pc.multiply(
        pc.if_else(pc.equal(part("sign"), "-"), -60, 60),
        pc.add(pc.multiply(number("hours"), 60), number("minutes")),
    )
    iso = pc.subtract(local, pc.cast(east_s, pa.duration("s")))
    american = pc.strptime(text, format="%m/%d/%Y %I:%M %p", unit="s", error_is_null=True)
    return pc.cast(pc.coalesce(iso, american), pa.timestamp("s", "UTC"))


def first_link(attachments: pa.Array) -> pa.Array:
    """Take the first of comma-joined links; empty if there is none."""
    found = pc.extract_regex(attachments, r"\A[\s\[\"']*(?P<url>https?://[^,\s\"'\]]+)")
    return pc.fill_null(pc.struct_field(found, "url"), "")


def shorter_side(width: pa.Array, height: pa.Array) -> pa.Array:
    """Read sizes written as digits; null where either is not."""
    sides = [
        pc.cast(pc.if_else(pc.match_substring_regex(side, r"\A\d{1,6}\z"), side, None), pa.int32())
        for side in (width, height)
    ]
    return pc.min_element_wise(*sides, skip_nulls=False)


def _messages(count: int, **columns: pa.Array) -> pa.RecordBatch:
    """Make a batch of MESSAGES; columns not given are empty (id) or null."""
    blank = {"id": pa.repeat("", count)}
    arrays = [
        columns.get(field.name, blank.get(field.name, pa.nulls(count, field.type)))
        for field in MESSAGES
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=MESSAGES)


# --- layouts ----------------------------------------------------------------------------------


def _from_chat_exporter(batch: pa.RecordBatch) -> pa.RecordBatch:
    # the author is the bot; who asked stands in the content
    parsed = parse_messages(batch["Content"])
    return _messages(
        len(batch),
        url=first_link(batch["Attachments"]),
        timestamp=utc_seconds(batch["Date"]),
        prompt=parsed["prompt"],
        kind=parsed["kind"],
        user=parsed["user"],
    )


def _from_clean_table(batch: pa.RecordBatch) -> pa.RecordBatch:
    parsed = parse_messages(batch["Content"])
    return _messages(
        len(batch),
        url=first_link(batch["Attachments"]),
        prompt=parsed["prompt"],
        kind=parsed["kind"],
        user=parsed["user"],
        version=batch["version"],
    )


def _from_v5_table(batch: pa.RecordBatch) -> pa.RecordBatch:
    parsed = parse_messages(batch["Content"])
    return _messages(
        len(batch),
        url=first_link(batch["Attachments"]),
        prompt=parsed["prompt"],
        kind=parsed["kind"],
        user=parsed["user"],
    )


def _from_message_table(batch: pa.RecordBatch) -> pa.RecordBatch:
    parsed = parse_messages(batch["content"])
    return _messages(
        len(batch),
        id=batch["id"],
        url=first_link(batch["url"]),
        timestamp=utc_seconds(batch["timestamp"]),
        prompt=parsed["prompt"],
        kind=parsed["kind"],
        user=parsed["user"],
        side_px=shorter_side(batch["width"], batch["height"]),
    )


def _from_v6_table(batch: pa.RecordBatch) -> pa.RecordBatch:
    # each row is one single picture, and nobody is named
    return _messages(
        len(batch),
        url=first_link(batch["image_url"]),
        timestamp=utc_seconds(batch["timestamp"]),
        prompt=batch["prompt"],
        kind=pa.repeat(UPSCALE, len(batch)),
        user=pa.repeat(EVERYBODY, len(batch)),
    )


def _from_threads(batch: pa.RecordBatch) -> pa.RecordBatch:
    label = batch["label"]
    # most specific first: a label may be "Upscaled (4x)" or "Image #2"
    kinds = [(rf"(?i)\A{verb}\b", kind) for verb, kind in KIND_OF_VERB.items() if verb]
    kinds.append((r"(?i)\A(?:upscale|image #?[1-4])", UPSCALE))
    conditions = [pc.match_substring_regex(label, pattern) for pattern, _ in kinds]
    names = [str(i) for i in range(len(kinds))]
    kind = pc.case_when(
        pc.make_struct(*conditions, field_names=names), *(kind for _, kind in kinds), GRID
    )
    return _messages(
        len(batch),
        id=batch["id"],
        url=first_link(batch["url_png"]),
        timestamp=utc_seconds(batch["timestamp"]),
        prompt=pc.utf8_trim_whitespace(
            pc.binary_join_element_wise(batch["text"], batch["args"], " ")
        ),
        kind=kind,
        user=batch["userid"],
    )


LAYOUTS = (
    Layout(
        "Kaggle's cleaned table",
        ("Attachments", "version", "aspect", "clean_prompts", "Content"),
        _from_clean_table,
    ),
    Layout(
        "midjourney-v5 table",
        ("Attachments", "clean_prompts", "user_name", "upscaled", "Content"),
        _from_v5_table,
    ),
    Layout(
        "DiscordChatExporter",
        ("Date", "Content", "Attachments"),
        _from_chat_exporter,
    ),
    Layout(
        "midjourney-messages table",
        ("id", "content", "timestamp", "height", "width", "url"),
        _from_message_table,
    ),
    Layout(
        "midjourney-v6 table",
        ("prompt", "image_url", "timestamp"),
        _from_v6_table,
    ),
    Layout(
        "threads table",
        ("text", "args", "userid", "timestamp", "label", "id", "url_png"),
        _from_threads,
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


# --- files ------------------------------------------------------------------------------------


class Export:
    """An export file that is read once, batch by batch.

    `bad_rows` counts the rows of a CSV, so far, that have another number of fields than the
    header; they are in no batch.
    """

    def __init__(self, path: Path) -> None:
        """Open the file as far as its header.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if the file is empty, or its layout is not known.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such export file")
        self.path = path
        self.bad_rows = 0
        self.is_parquet = path.suffix == ".parquet"
        self.layout = layout_of(self._header(), path)

    def messages(self) -> Iterator[pa.RecordBatch]:
        """Yield batches of schema MESSAGES, in the file's order.

        Raises:
            ValueError: if the file breaks its format in a way that leaves no rows to tell apart.
        """
        try:
            for batch in self._parquet_batches() if self.is_parquet else self._csv_batches():
                texts = [pc.fill_null(_text(batch[name]), "") for name in self.layout.columns]
                columns = pa.RecordBatch.from_arrays(texts, names=list(self.layout.columns))
                yield self.layout.to_messages(columns)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.path}: not readable as {self._form()}: {error}") from error

    def _form(self) -> str:
        return "parquet" if self.is_parquet else "CSV"

    def _header(self) -> list[str]:
        if self.is_parquet:
            try:
                return list(pq.read_schema(self.path).names)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{self.path}: not readable as parquet: {error}") from error
        with pa.input_stream(self.path, compression="detect") as stream:
            start = stream.read(1 << 16).decode("utf-8-sig", errors="replace")
        if not start.strip():
            raise ValueError(f"{self.path}: the export is empty, not even a header")
        return next(csv.reader(io.StringIO(start, newline="")))

    def _parquet_batches(self) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.path) as file:
            yield from file.iter_batches(BATCH_ROWS, columns=list(self.layout.columns))

    def _csv_batches(self) -> Iterator[pa.RecordBatch]:
        columns = list(self.layout.columns)
        with pa.input_stream(self.path, compression="detect") as stream:
            yield from pyarrow.csv.open_csv(
                stream,
                pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
                pyarrow.csv.ParseOptions(
                    newlines_in_values=True, invalid_row_handler=self._skip_bad_row
                ),
                pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(columns, pa.string()),
                    include_columns=columns,
                    strings_can_be_null=False,
                ),
            )

    def _skip_bad_row(self, row: pyarrow.csv.InvalidRow) -> str:
        del row  # its text may name somebody
        self.bad_rows += 1
        return "skip"


def _text(column: pa.Array) -> pa.Array:
    """Turn a column of a parquet file into text; lists of links into their first."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_element(
            pc.if_else(pc.greater(pc.list_value_length(column), 0), column, None), 0
        )
    return pc.cast(column, pa.string())
