"""Rows as bytes: one class a format, each writing to an open stream."""

from __future__ import annotations

import csv
import json
import tempfile
from contextlib import suppress
from datetime import date, time
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from berthead.errors import OutputError
from berthead.formats.parquet_types import LearntTypes

GROUP_ROWS = 4096  # of one Parquet row group
_MANY = 20  # names kept for a note
_ESCAPE = "backslashreplace"  # half a surrogate pair is no UTF-8; as \ud800 it is valid JSON, and readable elsewhere


class RowFormat(Protocol):
    """How rows become bytes."""

    def write(self, values: dict[str, Any]) -> None:
        """Add one row: column name to value."""

    def finish(self) -> None:
        """Write what is left; the stream stays open."""

    def abandon(self) -> None:
        """Let go of what is open: the bytes go away anyway."""


def _plain(value: Any) -> Any:
    """A value that JSON has no form for, as one that it has."""
    if hasattr(value, "tolist"):  # numpy, scalar or array
        return value.tolist()
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", _ESCAPE)
    if isinstance(value, set | frozenset):
        return list(value)
    return str(value)  # Decimal among them: no digit is lost


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _text(value: Any) -> str:
    """Text as it is; a date as its ISO form; anything else as JSON."""
    if isinstance(value, str):
        return value
    written = _json(value)
    return str(json.loads(written)) if written.startswith('"') else written


class JsonRows:
    """JSON Lines; values keep their types."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, values: dict[str, Any]) -> None:
        """Add one row."""
        self._stream.write((_json(values) + "\n").encode("utf-8", _ESCAPE))

    def finish(self) -> None:
        """Write what is left; the stream stays open."""

    def abandon(self) -> None:
        """Let go of what is open: the bytes go away anyway."""


class _Line:
    """What the csv module writes to: one line at a time, ended by LF."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Add one row."""
        self._stream.write((text.removesuffix("\r\n") + "\n").encode("utf-8", _ESCAPE))


class CsvRows:
    """CSV or TSV with minimal quoting; what is not text becomes JSON. Without a header it goes on with a file."""

    def __init__(self, stream: BinaryIO, columns: list[str], delimiter: str, header: bool = True) -> None:
        self.left_out: dict[str, None] = {}
        self._columns, self._known = columns, frozenset(columns)
        # CRLF, although lines end in LF: up to Python 3.12 csv quotes only those line ends that it writes itself.
        self._csv = csv.writer(_Line(stream), delimiter=delimiter, lineterminator="\r\n")
        if header:
            # Where a name holds some delimiter all are quoted, lest readers that sniff the header are misled.
            misleading = any(mark in name for name in columns for mark in ",;\t|")
            quoting: Literal[0, 1] = csv.QUOTE_ALL if misleading else csv.QUOTE_MINIMAL
            csv.writer(_Line(stream), delimiter=delimiter, lineterminator="\r\n", quoting=quoting).writerow(columns)

    def write(self, values: dict[str, Any]) -> None:
        """Add one row."""
        if not values.keys() <= self._known and len(self.left_out) < _MANY:
            self.left_out |= dict.fromkeys(name for name in values if name not in self._known)
        cells = (values.get(name) for name in self._columns)
        self._csv.writerow(["" if cell is None else _text(cell) for cell in cells])

    def finish(self) -> None:
        """Write what is left; the stream stays open."""

    def abandon(self) -> None:
        """Let go of what is open: the bytes go away anyway."""


class ParquetRows:
    """Parquet with a schema known beforehand, a row group at a time."""

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
        """Write what is left; the stream stays open."""
        self._flush()
        self._file.close()

    def abandon(self) -> None:
        """Let go of what is open: the bytes go away anyway."""
        with suppress(Exception):  # its footer may not fit either; the file goes away anyway
            self._file.close()
        self._file.is_open = False  # or its destructor tries again, on a closed stream

    def _flush(self) -> None:
        import pyarrow as pa

        batch, self._batch = self._batch, []  # first: after an interruption no row may come twice
        if batch:
            columns = [_array([row.get(field.name) for row in batch], field) for field in self._schema]
            self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema))


class SpooledParquet:
    """Parquet from JSON Lines: rows wait in a nameless file until the types of all of them are known."""

    def __init__(self, stream: BinaryIO, columns: list[str], added: dict[str, Any], folder: Path) -> None:
        self._stream, self._types = stream, LearntTypes(columns, added)
        self._batch: list[dict[str, Any]] = []
        self._spool: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._lines = JsonRows(self._spool)
        self._rows: ParquetRows | None = None

    def write(self, values: dict[str, Any]) -> None:
        """Add one row."""
        self._lines.write(values)
        self._batch.append(values)
        if len(self._batch) == GROUP_ROWS:
            self._learn()

    def finish(self) -> None:
        """Write what is left; the stream stays open."""
        self._learn()
        self._rows = ParquetRows(self._stream, self._types.schema)
        self._spool.seek(0)
        for line in self._spool:
            self._rows.write(json.loads(line))
        self._rows.finish()
        self._spool.close()

    def abandon(self) -> None:
        """Let go of what is open: the bytes go away anyway."""
        if self._rows:
            self._rows.abandon()
        with suppress(OSError):
            self._spool.close()

    def _learn(self) -> None:
        self._types.learn(self._batch)
        self._batch = []


def _array(values: list[Any], field: Any) -> Any:
    """Python values as an Arrow array of the field's type."""
    import pyarrow as pa

    text, kind = pa.string(), field.type
    if kind == text:
        values = [None if value is None else _text(value) for value in values]
    elif kind == pa.list_(text):
        values = [value and [None if item is None else _text(item) for item in value] for value in values]
    try:
        return pa.array(values, type=kind)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        # Half a surrogate pair, or a value that the reader gave as text because Python has no such value.
        cells = [None if value is None else _text(value).encode("utf-8", _ESCAPE).decode() for value in values]
    try:
        return pa.array(cells, type=text).cast(kind)
    except pa.ArrowException as error:
        saw = f"a value does not fit the Parquet type {kind}"
        raise OutputError(f'column "{field.name}"', saw, fix="Write a .jsonl file instead.") from error
