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

_BATCH = 4096  # rows of one Parquet row group
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
    """CSV or TSV with minimal quoting; what is not text becomes JSON."""

    def __init__(self, stream: BinaryIO, columns: list[str], delimiter: str) -> None:
        self.left_out: dict[str, None] = {}
        self._columns, self._known = columns, frozenset(columns)
        # CRLF, although lines end in LF: up to Python 3.12 csv quotes only those line ends that it writes itself.
        self._csv = csv.writer(_Line(stream), delimiter=delimiter, lineterminator="\r\n")
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
        if len(self._batch) == _BATCH:
            self._flush()

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
        import pyarrow as pa

        self._stream, self._added = stream, added
        self._types = dict.fromkeys(columns, pa.null())
        self._batch: list[dict[str, Any]] = []
        self._spool: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._lines = JsonRows(self._spool)
        self._rows: ParquetRows | None = None

    def write(self, values: dict[str, Any]) -> None:
        """Add one row."""
        self._lines.write(values)
        self._batch.append(values)
        if len(self._batch) == _BATCH:
            self._learn()

    def finish(self) -> None:
        """Write what is left; the stream stays open."""
        import pyarrow as pa

        self._learn()
        types = {name: _settled(kind) for name, kind in self._types.items()} | self._added
        self._rows = ParquetRows(self._stream, pa.schema(list(types.items())))
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
        import pyarrow as pa

        for name in dict.fromkeys(name for row in self._batch for name in row):
            seen = _inferred([row.get(name) for row in self._batch])
            self._types[name] = _joined(self._types.get(name, pa.null()), seen) or pa.string()
        self._batch = []


# Types of Parquet columns


def parquet_schema(columns: list[str], schema: Any, added: dict[str, Any]) -> Any:
    """The source's fields and the added ones; what has no type is text."""
    import pyarrow as pa

    known = {field.name: field for field in schema} if schema is not None else {}
    known |= {name: pa.field(name, kind) for name, kind in added.items()}
    fields = [known.get(name) or pa.field(name, pa.string()) for name in columns]
    return pa.schema(fields, metadata=schema.metadata if schema is not None else None)


def added_types(added: dict[str, type]) -> dict[str, Any]:
    """The Parquet types of new columns, by name."""
    import pyarrow as pa

    kinds = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_(), list: pa.list_(pa.string())}
    return {name: kinds[kind] for name, kind in added.items()}


def _inferred(values: list[Any]) -> Any:
    """The Arrow type that holds these JSON values as they are; string where there is none."""
    import pyarrow as pa

    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return pa.string()
    # Arrow would drop keys that come up later from a struct, and take true for 1.0 among floats.
    lossy = "struct" in str(kind) or ("double" in str(kind) and _has_bool(values))
    return pa.string() if lossy else kind


def _has_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list) and any(map(_has_bool, value)))


def _joined(one: Any, other: Any) -> Any:
    """The type that holds the values of both without loss, or None."""
    import pyarrow as pa

    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        inner = _joined(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    return None


def _settled(kind: Any) -> Any:
    """A type without nulls: a column that never had a value is text."""
    import pyarrow as pa

    if pa.types.is_list(kind):
        return pa.list_(_settled(kind.value_type))
    return pa.string() if pa.types.is_null(kind) else kind


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
