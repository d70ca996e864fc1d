"""Rows of a file in any format, without guessing types."""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from berthead.errors import DataError, did_you_mean
from berthead.formats.format import Format, Source
from berthead.formats.lines import LONGEST_LINE, unreadable
from berthead.formats.registry import FORMATS, find_format, format_of, sniff, split_sheet
from berthead.records import Row
from berthead.storage.compression import split_codec

STDIO = "-"

View = Callable[[Iterator[Row]], Iterator[Row]]
"""Makes other rows of those of a file."""


class RowReader:
    """The rows of one source, read once from top to bottom in constant memory.

    Args:
        source: the open file.
        format: how it is read.

    Attributes:
        name: the path as the user typed it, or `stdin`.
        format: the name of the detected format; "json" is a list of plain objects.
        columns: the header; for JSON the keys of the first thousand rows.
        schema: the `pyarrow.Schema` of a Parquet file, or None.
    """

    def __init__(self, source: Source, format: Format) -> None:
        self._source, self._content = source, format.read(source)
        self.name, self.format = source.name, self._content.format or format.name
        self.columns, self.schema = self._content.columns, self._content.schema
        self._stack = source.stack.pop_all()
        self._peeked: deque[Row] = deque()
        self._view: View | None = None
        self._view_notes: list[str] = []

    @property
    def notes(self) -> list[str]:
        """Notes for the user about the rows read so far."""
        return self._source.notes + self._content.notes() + self._view_notes

    def __iter__(self) -> Iterator[Row]:
        try:
            yield from self._rows
        finally:
            self.close()

    @cached_property
    def _rows(self) -> Iterator[Row]:
        rows = self._own_rows()
        return self._view(rows) if self._view else rows

    def _own_rows(self) -> Iterator[Row]:
        while True:
            while self._peeked:
                yield self._peeked.popleft()
            row = next(self._content.rows, None)
            if row is None:
                return
            yield row

    def peek(self, most: int) -> list[Row]:
        """The first rows, which are still read afterwards.

        Args:
            most: how many at most.
        """
        self._peeked += itertools.islice(self._content.rows, max(0, most - len(self._peeked)))
        return list(itertools.islice(self._peeked, most))

    def through(self, view: View, note: str) -> None:
        """Read other rows, which are made from those of the file; before the first row is read.

        Args:
            view: makes them; their columns have the same names, and other types.
            note: what the user should know of it.
        """
        self._view, self._view_notes, self.schema = view, [f"{self.name}: {note}"], None

    def skip(self, rows: int) -> int:
        """Skip the next rows, also while iterating.

        Args:
            rows: how many; of Parquet whole row groups are not read.

        Returns:
            How many there were, fewer at the end.

        Raises:
            DataError: as while iterating.
        """
        if self._content.skip and not self._view:
            peeked = [self._peeked.popleft() for _ in range(min(rows, len(self._peeked)))]
            return len(peeked) + self._content.skip(rows - len(peeked))
        return sum(1 for _ in itertools.islice(self._rows, rows))

    def close(self) -> None:
        """Close the file; the rows end here."""
        self._stack.close()

    def abandon(self) -> None:
        """Abandon the file without closing it: closing would wait for another thread's read."""
        self._stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_rows(path: str | Path, format: str | None = None) -> RowReader:
    r"""Open a file of rows by its extension, or standard input.

    Args:
        path: its extension names the format, one of `FORMATS`; texts may be compressed as .gz or .zst, and `FILE#SHEET`
            names a sheet if the format has sheets. `-` is standard input, whose format is sniffed (CoNLL is not).
        format: the name of a format, whatever the extension; None: by the extension. "json" is any JSON document.

    Returns:
        The reader; `.columns` is known at once, iterating gives one `Row` for each row of the file.

    Raises:
        UsageError: an unknown extension or format.
        DataError: a file that is missing, empty, damaged or not what its extension says. Later damage is
            raised while iterating.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "reviews.csv")
        >>> _ = path.write_text("text,label\nNA,good\n")
        >>> with open_rows(path) as rows:
        ...     print(rows.columns, [row.values for row in rows])
        ['text', 'label'] [{'text': 'NA', 'label': 'good'}]
    """
    path = str(path)
    named = find_format(format) if format is not None else None
    with ExitStack() as stack:
        if path == STDIO:
            source = Source("stdin", _stdin(stack), stack)
            return RowReader(source, _of_stdin(source, named))
        file, sheet = split_sheet(path)
        binary = stack.enter_context(_opened(file))
        named, codec = _format_and_codec(path, named)
        if named.text:
            # Read through a second buffer: its peek sees as much as there is, from a named pipe too.
            binary = io.BufferedReader(cast(io.RawIOBase, binary))
        longest = None if named.is_document else LONGEST_LINE
        return RowReader(Source(path, binary, stack, codec, sheet.removeprefix("#"), longest), named)


def count_rows(path: str, format: str | None = None) -> int | None:
    r"""A quick estimate of the rows of a file, for a progress bar; too high if cells hold line breaks.

    Args:
        path: a file name or path.
        format: as for `open_rows`.

    Returns:
        Rows; None if counting would cost as much as reading: compressed files, pipes, and formats whose rows are not
        lines.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "reviews.csv")
        >>> _ = path.write_text("text\nfine\npoor\n")
        >>> count_rows(str(path))
        2
    """
    file, _ = split_sheet(path)
    if path == STDIO or not Path(file).is_file():
        return None
    found, codec = _format_and_codec(path, find_format(format) if format is not None else None)
    return found.count(file) if found.count and not codec else None


def _format_and_codec(path: str, named: Format | None) -> tuple[Format, str]:
    """Like `format_of` for reading; a given format overrides the extension."""
    if named is not None:
        return named, split_codec(path.lower())[1]
    name, codec = format_of(path, reading=True)
    return find_format(name), codec


def _of_stdin(source: Source, named: Format | None) -> Format:
    """The format of stdin, which must be text."""
    for one in FORMATS:
        begins, title = one.signature or ("", "")
        if not one.text and (one is named or (named is None and source.head.startswith(begins))):
            raise DataError(source.name, f"is {title}", "a text format from stdin", "Give the file's path instead.")
    return named or sniff(source.head)


def _opened(path: str) -> io.BufferedReader:
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        folder, name = os.path.split(path)
        try:
            near = did_you_mean(name, os.listdir(folder or "."))  # noqa: PTH208
        except OSError:
            near = f'The folder "{folder}" does not exist either.'
        raise DataError(path, "does not exist", fix=near or "Check the path.") from error
    except IsADirectoryError as error:
        raise DataError(path, "is a folder", "one file of rows", "Name a file in it.") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _stdin(stack: ExitStack) -> io.BufferedReader[Any]:
    buffered = io.BufferedReader(cast(io.RawIOBase, sys.stdin.buffer))
    stack.callback(buffered.detach)  # leave sys.stdin itself open
    return buffered
