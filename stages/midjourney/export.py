"""The files of a Midjourney export, read once, front to back, a few megabytes at a time."""

import csv
import glob
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from stages.midjourney.layout import layout_of
from stages.midjourney.strings import is_ascii

BLOCK_BYTES = (2 << 20, 64 << 20, 512 << 20)  # also the longest row; the next if one is longer
BATCH_ROWS = 1 << 13  # read from a parquet file at once
BATCH_BYTES = 10 << 20  # judged at once, about 30,000 messages
SUFFIXES = (".csv", ".csv.gz", ".csv.zst", ".parquet")


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
        self.header = self._header()
        self.layout = layout_of(self.header, path)
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
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the machine's; what Arrow finds broken in a file has no number
            raise ValueError(
                f"{self.path}: not readable as {self._form()}: {error}. Copy or export it again"
            ) from error

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
        with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(
                BATCH_ROWS, columns=list(self.layout.columns), use_threads=False
            ):
                read += len(batch)
                self.read_mb = self.total_mb * read // file.metadata.num_rows
                yield batch

    def _csv_batches(self) -> Iterator[pa.RecordBatch]:
        """Read with small blocks; if a row is longer than one, again from the start with larger.

        A row of too few fields that is no UTF-8, Arrow's reader cannot hand over to be counted: it
        is read again byte by byte, each byte a letter of Latin-1.
        """
        given = 0  # rows
        sizes, encoding = list(BLOCK_BYTES), "utf8"
        while sizes:
            self._short_rows = self._garbled_rows = passed = 0
            try:
                for batch in self._csv_rows(sizes[0], encoding):
                    fresh = batch.slice(max(0, given - passed))
                    passed += len(batch)
                    if len(fresh):
                        given = passed
                        yield fresh
            except pa.ArrowInvalid as error:
                if "straddling" in str(error) and sizes[1:]:
                    sizes = sizes[1:]
                elif " columns, got " in str(error) and encoding == "utf8":
                    encoding = "latin-1"
                else:
                    raise
            else:
                return

    def _csv_rows(self, block_bytes: int, encoding: str) -> Iterator[pa.RecordBatch]:
        columns = list(self.layout.columns)
        options = pyarrow.csv.ReadOptions(block_size=block_bytes, encoding=encoding)
        if encoding != "utf8":  # in which the header may begin with a mark, which is no letter
            options.column_names, options.skip_rows = self.header, 1
        with pa.OSFile(str(self.path)) as file, _quiet_about_short_rows():
            for batch in pyarrow.csv.open_csv(
                self._plain(file),
                options,
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
                yield self._decoded(batch if encoding == "utf8" else _from_latin_1(batch))

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
            return _as_strings(batch)
        except pa.ArrowInvalid:
            is_sound = [all(map(_is_utf8, row.values())) for row in batch.to_pylist()]
            self._garbled_rows += is_sound.count(False)
            return _as_strings(batch.filter(pa.array(is_sound, pa.bool_())))


@contextmanager
def _quiet_about_short_rows() -> Iterator[None]:
    """Leave out the tracebacks that Arrow's reader prints of rows that it cannot hand over."""
    before = sys.unraisablehook

    def hook(failure: Any) -> None:
        if not isinstance(failure.exc_value, UnicodeDecodeError):
            before(failure)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _from_latin_1(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Give the bytes that were read as letters of Latin-1."""
    columns = [
        pa.array([text.decode().encode("latin-1") for text in column.to_pylist()], pa.binary())
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


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


def _as_strings(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Take bytes for strings, all of them checked: ASCII at once, others row by row.

    Raises:
        pa.ArrowInvalid: if one is no UTF-8.
    """
    columns = [
        column.view(pa.string()) if is_ascii(column) else column.cast(pa.string())
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


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
