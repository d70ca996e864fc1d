"""Parquet, read a batch of a row group at a time and written a row group at a time."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO

from berthead.errors import DataError, OutputError
from berthead.formats.format import Content, Format, Header, Source, Writing
from berthead.formats.lines import CHUNK, check_unique, empty
from berthead.formats.parquet_types import LearntTypes, added_types, parquet_schema
from berthead.formats.values import ESCAPE, text_of
from berthead.records import Row

_BATCH = 1024  # rows decoded at once
GROUP_ROWS = 4096  # of a row group that is written


def _read(source: Source) -> Content:
    rows = ParquetReader(source.name, source.binary, source.stack)
    return Content(rows.schema.names, rows, schema=rows.schema, skip=rows.skip)


class ParquetReader:
    """The rows of a Parquet file in order; skipped rows are not decoded, and skipped row groups are not read.

    Args:
        name: the file, for errors.
        binary: the open file.
        stack: closes what is opened here.

    Attributes:
        schema: the `pyarrow.Schema`.

    Raises:
        DataError: it is damaged, or names a column twice.
    """

    def __init__(self, name: str, binary: io.BufferedReader, stack: ExitStack) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not binary.peek(1):
            empty(name)
        try:
            # A buffer, so that a row group is not held in memory whole.
            self._file = stack.enter_context(pq.ParquetFile(binary, buffer_size=CHUNK))
            self.schema = self._file.schema_arrow
            metadata = self._file.metadata
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        except (pa.ArrowException, OSError) as error:
            reason = str(error).split("\n")[0].rstrip(".")
            fix = "Write the file again, or name it after its format."
            raise DataError(name, f"is not a sound Parquet file ({reason})", fix=fix) from error
        check_unique(name, self.schema.names)
        self._name, self._columns = name, list(self.schema.names)
        self._edges = [0, *accumulate(sizes)]  # the first row of each group, and the end
        self._done = self._read = 0  # rows handed out or skipped; rows of the batches that were taken
        self._batch: Iterator[tuple[Any, ...]] = iter(())
        self._faults: dict[int, str] = {}  # of rows in the batch, by their number from 0
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        values = next(self._batch, None)
        if values is None:
            self._take(self._done)
            values = next(self._batch)
        error = self._faults.get(self._done)
        self._done += 1
        return Row(dict(zip(self._columns, values, strict=True)), f"{self._name}:row {self._done}", error)

    def skip(self, rows: int) -> int:
        """Skip the next rows; returns how many there were."""
        begun, self._done = self._done, min(self._done + rows, self._edges[-1])
        if self._done <= self._read:
            deque(islice(self._batch, self._done - begun), maxlen=0)
            return self._done - begun
        self._batch = iter(())
        group = bisect_right(self._edges, self._done) - 1
        if self._edges[group] > self._read:
            self._batches, self._read = self._from_group(group), self._edges[group]
        return self._done - begun

    def _take(self, row: int) -> None:
        """The rest of the batch from this row on; None at the end of the file."""
        import pyarrow as pa

        if self._batches is None:
            self._batches = self._from_group(0)
        try:
            for batch in self._batches:
                self._read += len(batch)
                if self._read > row:
                    kept = batch.slice(len(batch) - (self._read - row))
                    columns, self._faults = [], {}
                    for name, column in zip(self._columns, kept.columns, strict=True):
                        values, bad = _plain_values(column)
                        columns.append(values)
                        for number, reason in bad.items():
                            fault = f'column "{name}" is not UTF-8 ({reason}); expected text'
                            self._faults.setdefault(row + number, fault)
                    self._batch = zip(*columns, strict=True)
                    return
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).split("\n")[0].rstrip(".")
            where = f"{self._name}:row {row + 1}"
            raise DataError(where, f"cannot be read ({reason})", fix="Write the file again.") from error

    def _from_group(self, group: int) -> Iterator[Any]:
        groups = list(range(group, len(self._edges) - 1))
        batches: Iterator[Any] = self._file.iter_batches(batch_size=_BATCH, row_groups=groups)
        return batches


def _plain_values(column: Any) -> tuple[list[Any], dict[int, str]]:
    """Python values, and which are of bytes that are no text, and why."""
    try:
        return list(column.to_pylist()), {}
    except (ValueError, OverflowError):
        values, bad = [], dict[int, str]()
        for number, scalar in enumerate(column):
            try:
                values.append(_plain_value(scalar))
            except UnicodeDecodeError as error:
                bad[number] = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
                values.append(error.object.decode("utf-8", ESCAPE))
        return values, bad


def _plain_value(scalar: Any) -> Any:
    """A Python value; nanoseconds as ISO text, and a year past 9999 as a number in the column's unit."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        if not hasattr(scalar, "value"):
            raise
        return str(scalar.cast("string")) if str(scalar.type).startswith("timestamp[ns") else scalar.value


class ParquetRows:
    """Writes Parquet with a known schema, a row group at a time."""

    left_out = ()

    def __init__(self, stream: BinaryIO, schema: Any) -> None:
        import pyarrow.parquet as pq

        self._schema, self._batch = schema, list[dict[str, Any]]()
        self._file = pq.ParquetWriter(stream, schema)

    def write(self, values: dict[str, Any]) -> None:
        """Add one row."""
        self._batch.append(values)
        if len(self._batch) == GROUP_ROWS:
            self._flush()

    def add_group(self, table: Any) -> None:
        """Add a row group as it is."""
        self._file.write_table(table)

    def finish(self) -> None:
        """Write the remaining rows; the stream stays open."""
        self._flush()
        self._file.close()

    def abandon(self) -> None:
        """Close without finishing; the output will be discarded."""
        with suppress(Exception):  # its footer may not fit either; the file goes away anyway
            self._file.close()
        self._file.is_open = False  # or its destructor tries again, on a closed stream

    def _flush(self) -> None:
        import pyarrow as pa

        batch, self._batch = self._batch, []  # first: after an interruption no row may come twice
        if batch:
            columns = [_array([row.get(field.name) for row in batch], field) for field in self._schema]
            self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema))


def _array(values: list[Any], field: Any) -> Any:
    """Python values as an Arrow array of the field's type."""
    import pyarrow as pa

    text, kind = pa.string(), field.type
    if kind == text:
        values = [None if value is None else text_of(value) for value in values]
    elif kind == pa.list_(text):
        values = [value and [None if item is None else text_of(item) for item in value] for value in values]
    try:
        return pa.array(values, type=kind)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        # Half a surrogate pair, or a value that the reader gave as text because Python has no such value.
        cells = [None if value is None else text_of(value).encode("utf-8", ESCAPE).decode() for value in values]
    try:
        return pa.array(cells, type=text).cast(kind)
    except pa.ArrowException as error:
        saw = f"a value does not fit the Parquet type {kind}"
        raise OutputError(f'column "{field.name}"', saw, fix="Write a .jsonl file instead.") from error


def _join(stream: BinaryIO, header: Header, parts: Sequence[Path]) -> None:
    """Join Parquet files by copying their row groups."""
    import pyarrow.parquet as pq

    rows = ParquetRows(stream, header.schema)
    try:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for group in range(file.num_row_groups):
                    rows.add_group(file.read_row_group(group))
        rows.finish()
    except BaseException:
        rows.abandon()
        raise


def _learn(header: Header, rows: Iterable[dict[str, Any]]) -> Header:
    """The header with a schema that fits all rows."""
    if header.schema is not None:
        return header
    types, left = LearntTypes(header.columns, added_types(header.added)), iter(rows)
    while batch := list(islice(left, GROUP_ROWS)):
        types.learn(batch)
    return replace(header, schema=types.schema)


def _count(path: str) -> int:
    import pyarrow.parquet as pq

    rows: int = pq.read_metadata(path).num_rows
    return rows


PARQUET = Format(
    name="parquet",
    extensions=(".parquet",),
    read=_read,
    writing=Writing(
        encode=lambda stream, header, whole: ParquetRows(stream, header.schema),
        join=_join,
        schema=parquet_schema,
        learn=_learn,
    ),
    text=False,
    signature=("PAR1", "a Parquet file"),
    typed=True,
    count=_count,
)
