"""Rows written aside, and put in their place only when all of them are there."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import sys
import tempfile
from contextlib import suppress
from datetime import date, time
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Protocol, Self

from berthead.data.readers import STDIO, format_of
from berthead.errors import OutputError

_BATCH = 4096  # rows of one Parquet row group
_MANY = 20  # names kept for a note
_ESCAPE = "backslashreplace"  # half a surrogate pair is no UTF-8; as \ud800 it is valid JSON, and readable elsewhere


class _Sink(Protocol):
    """Where bytes go, and what makes them final."""

    stream: BinaryIO

    def publish(self, suffix: str) -> Path | None: ...
    def discard(self) -> None: ...


class _Rows(Protocol):
    """How rows become bytes."""

    def write(self, values: dict[str, Any]) -> None: ...
    def finish(self) -> None: ...
    def abandon(self) -> None: ...


class RowWriter:
    """One output; as a context manager it commits at the end and leaves nothing after an exception.

    Args:
        name: the path as the user typed it, or `stdout`.
        format: "csv", "tsv", "jsonl" or "parquet".
        sink: the destination.
        rows: the encoder of this format.
    """

    def __init__(self, name: str, format: str, sink: _Sink, rows: _Rows) -> None:
        self.name, self.format = name, format
        self._sink, self._rows, self._open = sink, rows, True

    @property
    def notes(self) -> list[str]:
        """What the user should know about the rows written so far."""
        left_out = list(self._rows.left_out) if isinstance(self._rows, _CsvRows) else []
        if not left_out:
            return []
        names = ", ".join(f'"{name}"' for name in left_out)
        return [f"{self.name}: the header comes from the first row; left out what only later rows have: {names}"]

    def write(self, values: dict[str, Any]) -> None:
        """Write one row.

        Args:
            values: column name to value; a missing column is left empty.

        Raises:
            OutputError: the disk is full, or the file cannot be written; nothing is left behind.
        """
        try:
            self._rows.write(values)
        except OSError as error:
            raise self._failed(error) from error
        except OutputError:
            self.abandon()
            raise

    def commit(self) -> None:
        """Put the finished file in its place; until now nothing stood there.

        Raises:
            OutputError: as `write`.
        """
        self._finish("")

    def keep(self) -> Path | None:
        """Close the rows written so far as a readable file beside the target.

        Returns:
            The path, `<target>.partial`; None for standard output.

        Raises:
            OutputError: as `write`.
        """
        return self._finish(".partial")

    def abandon(self) -> None:
        """Leave nothing behind."""
        if self._open:
            self._open = False
            self._rows.abandon()
            self._sink.discard()

    def _finish(self, suffix: str) -> Path | None:
        try:
            self._rows.finish()
            path = self._sink.publish(suffix)
        except OSError as error:
            raise self._failed(error) from error
        except BaseException:
            self.abandon()
            raise
        self._open = False
        return path

    def _failed(self, error: OSError) -> OSError | OutputError:
        self.abandon()
        return _output_error(self.name, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abandon()
        elif self._open:
            self.commit()


def open_writer(
    path: str | Path, source_format: str, columns: list[str], schema: Any, added: dict[str, type]
) -> RowWriter:
    """Open an output for rows that have the input's columns and some more.

    Args:
        path: .csv, .tsv, .jsonl, .ndjson (each also .gz) or .parquet; `-` is standard output in the source's format
            (JSON Lines for Parquet).
        source_format: "csv", "tsv", "jsonl" or "parquet".
        columns: the input's columns.
        schema: the `pyarrow.Schema` of a Parquet source, or None.
        added: new column to its type: str, float, int, bool or list (of str).

    Returns:
        The writer; nothing stands at the path before it commits.

    Raises:
        UsageError: an extension that is not known.
        OutputError: a place that cannot be written.

    Example:
        >>> path = Path(tempfile.mkdtemp(), "out.csv")
        >>> with open_writer(path, "csv", ["text"], None, {"prediction": str}) as writer:
        ...     writer.write({"text": "fine", "prediction": "good"})
        >>> path.read_text().splitlines()
        ['text,prediction', 'fine,good']
    """
    path = str(path)
    if path == STDIO:
        name, format = "stdout", "jsonl" if source_format == "parquet" else source_format
    else:
        name, format = path, format_of(path)[0]
    sink: _Sink | None = None
    try:
        sink = _Stdout() if path == STDIO else _Aside(path)
        rows = _encoder(format, sink, source_format, columns, schema, added)
    except OSError as error:
        if sink:
            sink.discard()
        raise _output_error(name, error) from error
    return RowWriter(name, format, sink, rows)


def check_writable(path: str | Path) -> None:
    """Fail now rather than after hours of work where an output could not be written.

    Args:
        path: as for `open_writer`.

    Raises:
        UsageError: an extension that is not known.
        OutputError: a folder as target, or a place that cannot be written.

    Example:
        >>> check_writable(Path(tempfile.mkdtemp(), "out.csv"))
    """
    path = str(path)
    if path == STDIO:
        return
    format_of(path)
    try:
        _Aside(path).discard()
    except OSError as error:
        raise _output_error(path, error) from error


def _output_error(name: str, error: OSError) -> OSError | OutputError:
    """What the user is told; a reader of stdout that has gone away is no error of ours."""
    if isinstance(error, BrokenPipeError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(name, "the disk is full", fix="Free some space, or write to another folder.")
    if error.errno == errno.EFBIG:
        return OutputError(
            name, "the file is larger than is allowed here", fix="Raise `ulimit -f`, or write elsewhere."
        )
    reason = error.strerror or str(error)
    return OutputError(name, f"cannot be written ({reason})", fix="Write to a folder that you may write to.")


# Destinations


class _Stdout:
    """Standard output: what is written is out."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self.stream: BinaryIO = sys.stdout.buffer

    def publish(self, suffix: str) -> None:
        self.stream.flush()

    def discard(self) -> None:
        pass


class _Aside:
    """A hidden file beside the target that takes its name at the end."""

    def __init__(self, path: str) -> None:
        self.target = _target(path)
        self.part = self.target.with_name(f".{self.target.name}.part-{os.getpid()}")
        self.part.unlink(missing_ok=True)  # from a process that was killed and had this number
        self.file = self.part.open("xb")
        self.stream: BinaryIO = self.file
        if format_of(path)[1]:
            # No name and no time inside: the same rows give the same bytes.
            packed = gzip.GzipFile(filename="", mode="wb", fileobj=self.file, compresslevel=6, mtime=0)
            self.stream = io.BufferedWriter(packed, 1 << 16)

    def publish(self, suffix: str) -> Path:
        if self.stream is not self.file:
            self.stream.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        final = self.target.with_name(self.target.name + suffix)
        self.part.replace(final)
        return final

    def discard(self) -> None:
        for stream in (self.stream, self.file):
            with suppress(OSError, ValueError):  # a full disk fails once more at close
                stream.close()
        with suppress(OSError):
            self.part.unlink(missing_ok=True)


def _target(path: str) -> Path:
    """The file that will be replaced, links followed."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(path, "is a folder", "a file name", f"Name a file in it: {path.rstrip('/')}/predictions.csv")
    if target.exists() and not target.is_file():
        raise OutputError(path, "is a device or a pipe", "a regular file", "Use `-` to write to a pipe.")
    if not target.parent.exists():
        folder = os.path.dirname(path) or str(target.parent)  # noqa: PTH120
        raise OutputError(path, "its folder does not exist", fix=f"Create it: mkdir -p {folder}")
    return target


# Encoders


def _encoder(
    format: str, sink: _Sink, source_format: str, columns: list[str], schema: Any, added: dict[str, type]
) -> _Rows:
    names = [*columns, *(name for name in added if name not in columns)]
    if format == "jsonl":
        return _JsonRows(sink.stream)
    if format != "parquet":
        return _CsvRows(sink.stream, names, "\t" if format == "tsv" else ",")
    if source_format == "jsonl":
        assert isinstance(sink, _Aside)  # standard output is never Parquet
        return _SpooledParquet(sink.stream, names, _added_types(added), sink.part.parent)
    return _ParquetRows(sink.stream, _schema(names, schema, _added_types(added)))


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


class _JsonRows:
    """JSON Lines; values keep their types."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, values: dict[str, Any]) -> None:
        self._stream.write((_json(values) + "\n").encode("utf-8", _ESCAPE))

    def finish(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class _Line:
    """What the csv module writes to: one line at a time, ended by LF."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        self._stream.write((text.removesuffix("\r\n") + "\n").encode("utf-8", _ESCAPE))


class _CsvRows:
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
        if not values.keys() <= self._known and len(self.left_out) < _MANY:
            self.left_out |= dict.fromkeys(name for name in values if name not in self._known)
        cells = (values.get(name) for name in self._columns)
        self._csv.writerow(["" if cell is None else _text(cell) for cell in cells])

    def finish(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class _ParquetRows:
    """Parquet with a schema known beforehand, a row group at a time."""

    def __init__(self, stream: BinaryIO, schema: Any) -> None:
        import pyarrow.parquet as pq

        self._schema, self._batch = schema, list[dict[str, Any]]()
        self._file = pq.ParquetWriter(stream, schema)

    def write(self, values: dict[str, Any]) -> None:
        self._batch.append(values)
        if len(self._batch) == _BATCH:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._file.close()

    def abandon(self) -> None:
        with suppress(Exception):  # its footer may not fit either; the file goes away anyway
            self._file.close()
        self._file.is_open = False  # or its destructor tries again, on a closed stream

    def _flush(self) -> None:
        import pyarrow as pa

        batch, self._batch = self._batch, []  # first: after an interruption no row may come twice
        if batch:
            columns = [_array([row.get(field.name) for row in batch], field) for field in self._schema]
            self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema))


class _SpooledParquet:
    """Parquet from JSON Lines: rows wait in a nameless file until the types of all of them are known."""

    def __init__(self, stream: BinaryIO, columns: list[str], added: dict[str, Any], folder: Path) -> None:
        import pyarrow as pa

        self._stream, self._added = stream, added
        self._types = dict.fromkeys(columns, pa.null())
        self._batch: list[dict[str, Any]] = []
        self._spool: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._lines = _JsonRows(self._spool)
        self._rows: _ParquetRows | None = None

    def write(self, values: dict[str, Any]) -> None:
        self._lines.write(values)
        self._batch.append(values)
        if len(self._batch) == _BATCH:
            self._learn()

    def finish(self) -> None:
        import pyarrow as pa

        self._learn()
        types = {name: _settled(kind) for name, kind in self._types.items()} | self._added
        self._rows = _ParquetRows(self._stream, pa.schema(list(types.items())))
        self._spool.seek(0)
        for line in self._spool:
            self._rows.write(json.loads(line))
        self._rows.finish()
        self._spool.close()

    def abandon(self) -> None:
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


def _schema(columns: list[str], schema: Any, added: dict[str, Any]) -> Any:
    """The source's fields and the added ones; what has no type is text."""
    import pyarrow as pa

    known = {field.name: field for field in schema} if schema is not None else {}
    known |= {name: pa.field(name, kind) for name, kind in added.items()}
    fields = [known.get(name) or pa.field(name, pa.string()) for name in columns]
    return pa.schema(fields, metadata=schema.metadata if schema is not None else None)


def _added_types(added: dict[str, type]) -> dict[str, Any]:
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
