"""Read a Midjourney export in any layout known, in batches.

A file is read once, front to back, a few megabytes at a time. Each layout is a pair of pure
functions from a batch of its own columns: `posts` reads who posted what, of every row; `facts`
what is wanted of the rows that are left when that is judged. The header chooses the layout.
"""

import csv
import glob
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

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
BLOCK_BYTES = (2 << 20, 64 << 20, 512 << 20)  # also the longest row; the next if one is longer
BATCH_ROWS = 1 << 13  # read from a parquet file at once
BATCH_BYTES = 10 << 20  # judged at once, about 30,000 messages
SUFFIXES = (".csv", ".csv.gz", ".csv.zst", ".parquet")


@dataclass(frozen=True, slots=True)
class Layout:
    """A known form of export."""

    name: str
    columns: tuple[str, ...]  # those that are read; all must be there
    link: str  # the column with the attachments
    posts: Callable[[pa.RecordBatch], Posts]  # columns -> counts by kind, and the upscales
    facts: Callable[[pa.RecordBatch], pa.RecordBatch]  # columns -> schema FACTS


# --- columns ----------------------------------------------------------------------------------


_UTC = pa.timestamp("s", "UTC")
_PLAIN_DATE = r"\A\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d*)?(?:Z|\+00:?00)\z"


def utc_seconds(text: pa.Array) -> pa.Array:
    """Read dates: ISO 8601 with or without zone and fraction, or `05/31/2023 4:05 PM`.

    A date without a zone is taken as UTC, for the export does not say where it was made;
    what is no date becomes null.
    """
    try:
        if pc.all(pc.match_substring_regex(text, _PLAIN_DATE)).as_py():
            seconds = pc.binary_slice(text.cast(pa.binary()), 0, 19).cast(pa.string())
            return seconds.cast(pa.timestamp("s")).cast(_UTC)
    except pa.ArrowInvalid:
        pass  # a 31st of February
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


_LINK_START = r"\A[\s\[\"']*https?://[^,\s\"'\]]"


def has_link(attachments: pa.Array) -> pa.Array:
    """Tell where `first_link` will find one."""
    found = pc.starts_with(attachments, "https://cdn.discordapp.com/")  # nearly all do
    others = pc.invert(found)
    return pc.replace_with_mask(
        found, others, pc.match_substring_regex(attachments.filter(others), _LINK_START)
    )


def first_link(attachments: pa.Array) -> pa.Array:
    """Take the first of comma-joined links; empty if there is none."""
    if pc.all(pc.match_substring_regex(attachments, r"\Ahttps?://[^,\s\"'\]]+\z")).as_py():
        return attachments  # as almost always, one each
    found = pc.extract_regex(attachments, r"\A[\s\[\"']*(?P<url>https?://[^,\s\"'\]]+)")
    return pc.fill_null(pc.struct_field(found, "url"), "")


def shorter_side(width: pa.Array, height: pa.Array) -> pa.Array:
    """Read sizes written as digits; null where either is not."""
    sides = [
        pc.cast(pc.if_else(pc.match_substring_regex(side, r"\A\d{1,6}\z"), side, None), pa.int32())
        for side in (width, height)
    ]
    return pc.min_element_wise(*sides, skip_nulls=False)


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


# --- layouts ----------------------------------------------------------------------------------


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


def export_files(path: Path) -> list[Path]:
    """List the files of an export: a file, those of a folder, or those that a pattern matches.

    Returns:
        In the order of their names, which is the order of their rows.

    Raises:
        FileNotFoundError: if there is none.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        if not files:
            raise FileNotFoundError(f"{path}: no file in this folder ends in {', '.join(SUFFIXES)}")
        return files
    files = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path))))  # noqa: PTH207, absolute patterns too
    if not files:
        raise FileNotFoundError(f"{path}: no such export file, folder or pattern that matches any")
    return files


class Export:
    """An export file that is read once, batch by batch.

    `bad_rows` counts the rows of a CSV, so far, that have another number of fields than the
    header or are no UTF-8; they are in no batch.
    """

    def __init__(self, path: Path) -> None:
        """Open the file as far as its header.

        Raises:
            ValueError: if the file is empty, or its layout is not known.
        """
        self.path = path
        self.is_parquet = path.suffix == ".parquet"
        self.layout = layout_of(self._header(), path)
        self.total_mb = max(1, path.stat().st_size // 10**6)
        self.read_mb = 0  # so far; of a compressed file, its own megabytes
        self._short_rows = 0
        self._garbled_rows = 0

    @property
    def bad_rows(self) -> int:
        """Count the rows that are in no batch."""
        return self._short_rows + self._garbled_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield batches of the layout's columns, as strings without nulls, in the file's order.

        Raises:
            ValueError: if the file breaks its format in a way that leaves no rows to tell apart.
        """
        names = list(self.layout.columns)
        try:
            read = self._parquet_batches() if self.is_parquet else self._csv_batches()
            for batch in _in_large_batches(read):
                texts = [pc.fill_null(_text(batch[name]), "") for name in names]
                yield pa.RecordBatch.from_arrays(texts, names=names)
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
        try:
            with pa.OSFile(str(self.path)) as file:
                start = self._plain(file).read(1 << 16).decode("utf-8-sig", errors="replace")
        except OSError as error:
            raise ValueError(f"{self.path}: not readable as CSV: {error}") from error
        if not start.strip():
            raise ValueError(f"{self.path}: the export is empty, not even a header")
        try:
            return next(csv.reader(io.StringIO(start, newline="")))
        except csv.Error as error:
            raise ValueError(f"{self.path}: no readable header: {error}") from error

    def _parquet_batches(self) -> Iterator[pa.RecordBatch]:
        read = 0
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            for batch in file.iter_batches(
                BATCH_ROWS, columns=list(self.layout.columns), use_threads=False
            ):
                read += len(batch)
                self.read_mb = self.total_mb * read // file.metadata.num_rows
                yield batch

    def _csv_batches(self) -> Iterator[pa.RecordBatch]:
        """Read with small blocks; if a row is longer than one, again from the start with larger."""
        given = 0  # rows
        for block_bytes in BLOCK_BYTES:
            self._short_rows = self._garbled_rows = passed = 0
            try:
                for batch in self._csv_rows(block_bytes):
                    fresh = batch.slice(max(0, given - passed))
                    passed += len(batch)
                    if len(fresh):
                        given = passed
                        yield fresh
            except pa.ArrowInvalid as error:
                if "straddling" not in str(error) or block_bytes == BLOCK_BYTES[-1]:
                    raise
            else:
                return

    def _csv_rows(self, block_bytes: int) -> Iterator[pa.RecordBatch]:
        columns = list(self.layout.columns)
        with pa.OSFile(str(self.path)) as file:
            for batch in pyarrow.csv.open_csv(
                self._plain(file),
                pyarrow.csv.ReadOptions(block_size=block_bytes),
                pyarrow.csv.ParseOptions(
                    newlines_in_values=True, invalid_row_handler=self._skip_short_row
                ),
                pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(columns, pa.binary()),
                    include_columns=columns,
                    strings_can_be_null=False,
                ),
            ):
                self.read_mb = file.tell() // 10**6
                yield self._decoded(batch)

    def _plain(self, file: pa.NativeFile) -> pa.NativeFile:
        compression = {".gz": "gzip", ".zst": "zstd"}.get(self.path.suffix)
        return pa.CompressedInputStream(file, compression) if compression else file

    def _skip_short_row(self, row: pyarrow.csv.InvalidRow) -> str:
        del row  # its text may name somebody
        self._short_rows += 1
        return "skip"

    def _decoded(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Read bytes as UTF-8, leaving out rows that are none."""
        try:
            return batch.cast(_as_strings(batch.schema))
        except pa.ArrowInvalid:
            is_sound = [all(map(_is_utf8, row.values())) for row in batch.to_pylist()]
            self._garbled_rows += is_sound.count(False)
            return batch.filter(pa.array(is_sound, pa.bool_())).cast(_as_strings(batch.schema))


def _in_large_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Join batches: a CSV is read best in small pieces, and judged best in large ones."""
    held: list[pa.RecordBatch] = []
    held_bytes = 0
    for batch in batches:
        held.append(batch)
        held_bytes += batch.nbytes
        if held_bytes >= BATCH_BYTES:
            yield pa.concat_batches(held)
            held, held_bytes = [], 0
    if held:
        yield pa.concat_batches(held)


def _as_strings(schema: pa.Schema) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in schema.names])


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _text(column: pa.Array) -> pa.Array:
    """Turn a column of a parquet file into text; lists of links into their first."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_element(
            pc.if_else(pc.greater(pc.list_value_length(column), 0), column, None), 0
        )
    return pc.cast(column, pa.string())
