"""Rows written under another name, and renamed into place only when all of them are there."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from berthead.errors import OutputError
from berthead.formats.format import RowEncoder, UnfitRow
from berthead.formats.output import Output
from berthead.formats.readers import STDIO
from berthead.formats.registry import PLAIN, find_format, format_of
from berthead.storage.files import Aside, hidden, output_error, target_of


class _Sink(Protocol):
    """The destination of bytes, and how they become final."""

    stream: BinaryIO

    def publish(self, suffix: str) -> Path | None: ...
    def discard(self) -> None: ...


class RowWriter:
    """One output; as a context manager it commits at the end and discards everything after an exception.

    Args:
        name: the path as the user typed it, or `stdout`.
        format: the name of its format.
        sink: the destination.
        rows: the encoder of this format.
    """

    def __init__(self, name: str, format: str, sink: _Sink, rows: RowEncoder) -> None:
        self.name, self.format = name, format
        self._sink, self._rows, self._open = sink, rows, True

    @property
    def notes(self) -> list[str]:
        """Notes for the user about the rows written so far."""
        return left_out_notes(self.name, self._rows.left_out)

    def write(self, values: dict[str, Any]) -> None:
        """Write one row.

        Args:
            values: column name to value; a missing column is left empty.

        Raises:
            UnfitRow: the format cannot hold this row; others may follow.
            OutputError: the disk is full, or the file cannot be written; nothing is left behind.
        """
        try:
            self._rows.write(values)
        except OSError as error:
            raise self._failed(error) from error
        except UnfitRow:
            raise
        except OutputError:
            self.abandon()
            raise

    def commit(self) -> None:
        """Rename the finished file into place.

        Raises:
            OutputError: as `write`.
        """
        self._finish("")

    def keep(self) -> Path | None:
        """Close the rows written so far as a readable file beside the target.

        Returns:
            The path, `<target>.partial`, or `<target>.partial-2` and so on where there is such a file; None for
            standard output.

        Raises:
            OutputError: as `write`.
        """
        # Whose a file of that name is cannot be told: it may be all that is left of another run.
        names = (".partial" if number == 1 else f".partial-{number}" for number in count(1))
        target = os.path.realpath(self.name)
        return self._finish(next(name for name in names if not os.path.lexists(target + name)))

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
        return output_error(self.name, error)

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
    """Open an output for rows with the input's columns and added ones.

    Args:
        path: its extension names a format of `FORMATS` that can be written; `-` is standard output, in the source's
            format if that is text and can be written, else JSON Lines.
        source_format: the format that `open_rows` detected.
        columns: the input's columns.
        schema: the `pyarrow.Schema` of a Parquet source, or None.
        added: new column to its type: str, float, int, bool or list (of str).

    Returns:
        The writer; there is no file at the path before it commits.

    Raises:
        UsageError: an unknown extension.
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
        source = find_format(source_format)
        name, format, codec = "stdout", (source if source.text and source.writing else PLAIN).name, ""
    else:
        name, (format, codec) = path, format_of(path)
    sink: _Sink | None = None
    try:
        output = Output.of(format, source_format, columns, schema, added)
        sink = _Stdout() if path == STDIO else Aside(target_of(path), codec)
        rows = output.rows(sink.stream, Path(os.path.realpath(path)).parent)
    except (OSError, ImportError) as error:  # pyarrow may be absent
        if sink:
            sink.discard()
        if isinstance(error, ImportError):
            raise
        raise output_error(name, error) from error
    return RowWriter(name, format, sink, rows)


def check_writable(path: str | Path) -> None:
    """Fail now, rather than after hours of work, if an output cannot be written.

    Args:
        path: as for `open_writer`.

    Raises:
        UsageError: an unknown extension.
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
        target = target_of(path)
        with suppress(FileNotFoundError):
            hidden(target).lstat()  # its name may be too long
        # A file without a name: a process that is killed here leaves nothing.
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise output_error(path, error) from error


def left_out_notes(name: str, columns: Iterable[str]) -> list[str]:
    """Notes about columns left out because the header lacks them; empty if there are none."""
    names = ", ".join(f'"{column}"' for column in columns)
    said = f"{name}: the header comes from the first row; left out what only later rows have: {names}"
    return [said] if names else []


# Destinations


class _Stdout:
    """Standard output: written bytes cannot be taken back."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self.stream: BinaryIO = sys.stdout.buffer

    def publish(self, suffix: str) -> None:
        self.stream.flush()

    def discard(self) -> None:
        pass
