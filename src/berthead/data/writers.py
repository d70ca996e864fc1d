"""Rows written aside, and put in their place only when all of them are there."""

from __future__ import annotations

import errno
import gzip
import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from berthead.data.formats import CsvRows, JsonRows, ParquetRows, RowFormat, SpooledParquet, added_types, parquet_schema
from berthead.data.readers import STDIO, format_of
from berthead.errors import OutputError


class _Sink(Protocol):
    """Where bytes go, and what makes them final."""

    stream: BinaryIO

    def publish(self, suffix: str) -> Path | None: ...
    def discard(self) -> None: ...


class RowWriter:
    """One output; as a context manager it commits at the end and leaves nothing after an exception.

    Args:
        name: the path as the user typed it, or `stdout`.
        format: "csv", "tsv", "jsonl" or "parquet".
        sink: the destination.
        rows: the encoder of this format.
    """

    def __init__(self, name: str, format: str, sink: _Sink, rows: RowFormat) -> None:
        self.name, self.format = name, format
        self._sink, self._rows, self._open = sink, rows, True

    @property
    def notes(self) -> list[str]:
        """What the user should know about the rows written so far."""
        left_out = list(self._rows.left_out) if isinstance(self._rows, CsvRows) else []
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
            where that is CSV or TSV, else JSON Lines.
        source_format: what `open_rows` found.
        columns: the input's columns.
        schema: the `pyarrow.Schema` of a Parquet source, or None.
        added: new column to its type: str, float, int, bool or list (of str).

    Returns:
        The writer; nothing stands at the path before it commits.

    Raises:
        UsageError: an extension that is not known.
        OutputError: a place that cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "out.csv")
        >>> with open_writer(path, "csv", ["text"], None, {"prediction": str}) as writer:
        ...     writer.write({"text": "fine", "prediction": "good"})
        >>> path.read_text().splitlines()
        ['text,prediction', 'fine,good']
    """
    path = str(path)
    if path == STDIO:
        name, format = "stdout", source_format if source_format in ("csv", "tsv") else "jsonl"
    else:
        name, format = path, format_of(path)[0]
    sink: _Sink | None = None
    try:
        sink = _Stdout() if path == STDIO else _Aside(path)
        rows = _row_format(format, sink, source_format, columns, schema, added)
    except (OSError, ImportError) as error:  # pyarrow may be absent
        if sink:
            sink.discard()
        if isinstance(error, ImportError):
            raise
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
        >>> import tempfile
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


def _row_format(
    format: str, sink: _Sink, source_format: str, columns: list[str], schema: Any, added: dict[str, type]
) -> RowFormat:
    names = [*columns, *(name for name in added if name not in columns)]
    if format == "jsonl":
        return JsonRows(sink.stream)
    if format != "parquet":
        return CsvRows(sink.stream, names, "\t" if format == "tsv" else ",")
    if source_format not in ("csv", "tsv", "parquet"):  # values have types, which are not known beforehand
        assert isinstance(sink, _Aside)  # standard output is never Parquet
        return SpooledParquet(sink.stream, names, added_types(added), sink.part.parent)
    return ParquetRows(sink.stream, parquet_schema(names, schema, added_types(added)))
