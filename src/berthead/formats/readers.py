"""Rows of tables, CoNLL columns, SQuAD and annotation exports, as they stand there: no guessed types."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from berthead.errors import DataError, UsageError, did_you_mean, listed
from berthead.formats.conll import conll_rows
from berthead.formats.csv import csv_rows, delimiter_of
from berthead.formats.json import json_document, json_lines
from berthead.formats.lines import Lines, empty, unreadable
from berthead.formats.parquet import ParquetRows
from berthead.formats.squad import is_squad
from berthead.records import Row
from berthead.storage.compression import CODECS, Unpacked, split_codec

STDIO = "-"
FORMATS = ("csv", "tsv", "jsonl", "parquet", "conll", "json", "squad", "label-studio")
_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
# Only read. There is no other text format, so a .txt can be nothing but columns; what a .json is its content says.
_CONLL = (".conll", ".bio", ".iob", ".iob2", ".bioes", ".annotated", ".txt")
_READ_FORMATS = _FORMATS | {".json": "json"} | dict.fromkeys(_CONLL, "conll")
EXTENSIONS = tuple(_READ_FORMATS)
_COUNTED = ("csv", "tsv", "jsonl", "parquet")  # a line or a Parquet row is a row


class RowReader:
    """The rows of one source, read once from top to bottom in constant memory.

    Args:
        name: the path as the user typed it, or `stdin`.
        format: one of `FORMATS`; "json" is a list of plain objects.
        columns: the header; for JSON the keys of the first thousand rows.
        rows: the rows themselves.
        stack: what is closed at the end.
        lines: the text lines below the rows, or None for Parquet.
        schema: the `pyarrow.Schema` of a Parquet file, or None.
    """

    def __init__(
        self,
        name: str,
        format: str,
        columns: list[str],
        rows: Iterator[Row],
        stack: ExitStack,
        lines: Lines | None = None,
        schema: Any = None,
    ) -> None:
        self.name, self.format, self.columns, self.schema = name, format, columns, schema
        self._rows, self._stack, self._lines = rows, stack, lines

    @property
    def notes(self) -> list[str]:
        """What the user should know about the rows read so far."""
        odd = self._lines.not_utf8 if self._lines else 0
        if not odd:
            return []
        what = "1 line is not UTF-8; it was" if odd == 1 else f"{odd} lines are not UTF-8; they were"
        return [f"{self.name}: {what} read as Latin-1 (Windows-1252)"]

    def __iter__(self) -> Iterator[Row]:
        try:
            yield from self._rows
        finally:
            self.close()

    def skip(self, rows: int) -> int:
        """Leave out the next rows, also in the midst of iterating.

        Args:
            rows: how many; of Parquet whole row groups are not read.

        Returns:
            How many there were, fewer at the end.

        Raises:
            DataError: as while iterating.
        """
        if isinstance(self._rows, ParquetRows):
            return self._rows.skip(rows)
        return sum(1 for _ in itertools.islice(self._rows, rows))

    def close(self) -> None:
        """Close the file; the rows end here."""
        self._stack.close()

    def abandon(self) -> None:
        """Leave the file as it is: closing would wait for another thread that stands in a read."""
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
        path: a table: .csv, .tsv, .jsonl, .ndjson or .parquet; sentences in CoNLL columns: .conll, .bio, .iob, .iob2,
            .bioes, .annotated or .txt; a JSON document: .json, which holds SQuAD, a Label Studio export or a list of
            objects. Each but Parquet also as .gz or .zst. `-` is standard input, whose format is sniffed (CoNLL is
            not).
        format: one of `FORMATS`, whatever the extension; None: by the extension. "json" is any JSON document.

    Returns:
        The reader; `.columns` is known at once, iterating gives one `Row` for each row of the file.

    Raises:
        UsageError: an extension or a format that is not known.
        DataError: a file that is missing, empty, damaged or not what its extension says. Damage further down is
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
    if format is not None and format not in FORMATS:
        raise UsageError("format", f'is "{format}"', f"known: {listed(FORMATS)}", did_you_mean(format, FORMATS))
    with ExitStack() as stack:
        if path == STDIO:
            return _text_reader("stdin", format or "", Unpacked(_stdin(stack), "", "stdin"), stack)
        binary = stack.enter_context(_opened(path))
        format, codec = _format_and_codec(path, format)
        if format == "parquet":
            rows = ParquetRows(path, binary, stack)
            schema = rows.schema
            return RowReader(path, format, schema.names, rows, stack.pop_all(), schema=schema)
        # Read through a second buffer: its peek sees as much as there is, from a named pipe too.
        buffered = io.BufferedReader(cast(io.RawIOBase, binary))
        return _text_reader(path, format, Unpacked(buffered, codec, path), stack)


def format_of(path: str, reading: bool = False) -> tuple[str, str]:
    """The format that a path's extension names, and how the file is packed.

    Args:
        path: a file name or path.
        reading: know the formats too that are read and never written.

    Returns:
        One of "csv", "tsv", "jsonl", "parquet" (reading also "conll" and "json"); and "gzip" or "zstd"
        for a further `.gz` or `.zst`, else "".

    Raises:
        UsageError: another extension.

    Example:
        >>> format_of("reviews.csv.gz")
        ('csv', 'gzip')
    """
    known = _READ_FORMATS if reading else _FORMATS
    name, codec = split_codec(path.lower())
    extension = Path(name).suffix
    if extension not in known or (extension == ".parquet" and codec):
        shown = extension + path.lower().removeprefix(name)
        saw = f'has the extension "{shown}"' if shown else "has no extension"
        texts = [ext for ext in known if ext != ".parquet"]
        allowed = f"{listed(texts, len(texts))} (each also with {' or '.join(CODECS)}) and .parquet"
        raise UsageError(path, saw, f"known: {allowed}", "Convert or rename the file, or use `-`.")
    return known[extension], codec


def count_lines(path: str, format: str | None = None) -> int | None:
    r"""About how many rows a file has, for a progress bar: quick, and too high where cells hold line breaks.

    Args:
        path: a file name or path.
        format: as for `open_rows`.

    Returns:
        Line ends, or a Parquet file's rows; None where counting would cost as much as reading: packed files, pipes,
        and formats whose rows are not lines.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "reviews.csv")
        >>> _ = path.write_text("text\nfine\npoor\n")
        >>> count_lines(str(path))
        3
    """
    if path == STDIO or not Path(path).is_file():
        return None
    format, codec = _format_and_codec(path, format)
    if codec or format not in _COUNTED:
        return None
    if format == "parquet":
        import pyarrow.parquet

        rows: int = pyarrow.parquet.read_metadata(path).num_rows
        return rows
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _format_and_codec(path: str, format: str | None) -> tuple[str, str]:
    """As `format_of` for reading; the format may be given, whatever the extension."""
    return (format, split_codec(path.lower())[1]) if format else format_of(path, reading=True)


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


def _text_reader(name: str, format: str, binary: Unpacked, stack: ExitStack) -> RowReader:
    """A reader of any format but Parquet; an empty format is sniffed."""
    source = Lines(binary, name)
    head, lines = _head(name, iter(source))
    if format == "parquet" or (not format and head.startswith("PAR1")):
        raise DataError(name, "is a Parquet file", "a text format from stdin", "Give the file's path instead.")
    format = format or _sniffed(head)
    if format == "conll":
        columns, rows = conll_rows(name, lines)
    elif format == "jsonl":
        columns, rows = json_lines(name, lines)
    elif format in ("json", "squad", "label-studio"):
        format, columns, rows = json_document(name, format, lines)
    else:
        delimiter = delimiter_of(head, format)
        columns, rows = csv_rows(name, lines, delimiter)
        format = format or ("tsv" if delimiter == "\t" else "csv")
    return RowReader(name, format, columns, rows, stack.pop_all(), source)


def _sniffed(head: str) -> str:
    """What a first line says: JSON Lines, a JSON document, or nothing: then it is a header."""
    head = head.strip()
    # A document goes on behind its first line, or is a list, or is SQuAD whole.
    if re.match(r"\[\s*([{\]]|$)", head) or (head.startswith("{") and head.endswith(("{", "["))):
        return "json"
    if not head.startswith("{"):
        return ""
    if '"paragraphs"' in head:
        with suppress(ValueError, RecursionError):
            return "json" if is_squad(json.loads(head)) else "jsonl"
    return "jsonl"


def _head(name: str, lines: Iterator[str]) -> tuple[str, Iterator[str]]:
    """The first line that is not blank, and all lines, the blank ones before it made empty."""
    for blank, line in enumerate(lines):
        if line.strip():
            return line, itertools.chain(itertools.repeat("\n", blank), [line], lines)
    empty(name)
