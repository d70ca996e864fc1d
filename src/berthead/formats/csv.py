"""csv and tsv: finding the delimiter, unclosed quotes, rows too short or too long; writing with minimal quoting."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from berthead.errors import DataError, counted
from berthead.formats.format import Content, Format, Header, Source, Writing
from berthead.formats.lines import check_unique, copy_files, count_line_ends
from berthead.formats.values import ESCAPE, text_of
from berthead.records import Row

_DELIMITERS = ",;\t|"
_FIELD_LIMIT = 2**31 - 1  # characters; csv's own limit of 131,072 is too low for documents
_MANY = 20  # names kept for a note


def _read(source: Source, tabs: bool) -> Content:
    columns, rows = csv_rows(source.name, source.lines, delimiter_of(source.head, tabs))
    return Content(columns, rows)


def delimiter_of(head: str, tabs: bool = False) -> str:
    """The commonest delimiter outside the quotes of the header.

    Args:
        head: the header.
        tabs: whether the file's name means tabs; they are used if there are any, or no other delimiter.
    """
    bare = re.sub(r'(^|[,;\t|])"(?:[^"]|"")*(?:"|$)', r"\1", head)
    counts = {delimiter: bare.count(delimiter) for delimiter in _DELIMITERS}
    if tabs and (counts["\t"] or not any(counts.values())):
        return "\t"
    return max(counts, key=lambda delimiter: counts[delimiter])  # the first, a comma, where there is none


def csv_rows(name: str, lines: Iterator[str], delimiter: str) -> tuple[list[str], Iterator[Row]]:
    """The columns, named by their number if blank in the header, and the rows."""
    records = _records(name, lines, delimiter)
    line, cells, opened = next(records)
    if opened:
        saw = "the header opens a quote that is never closed"
        raise DataError(f"{name}:{opened}", saw, fix="Close the quote, or double it where it is part of a name.")
    columns = [cell if cell.strip() else f"column_{number}" for number, cell in enumerate(cells, 1)]
    check_unique(f"{name}:{line}", columns)
    return columns, _rows(name, columns, records)


def _rows(name: str, columns: list[str], records: Iterator[tuple[int, list[str], int]]) -> Iterator[Row]:
    width = len(columns)
    for line, cells, opened in records:
        if len(cells) == 1 < width and not cells[0].strip():
            continue  # a line of spaces is a blank line too
        error = None
        if opened:
            error = f"the quote opened at line {opened} is never closed"
        elif len(cells) != width:
            error = f"has {counted(len(cells), 'field')}; expected {width}, as in the header"
        values: dict[str, Any] = dict(zip(columns, cells, strict=False))
        if len(cells) > width:
            values[""] = cells[width:]  # a bad row is put aside whole
        yield Row(values, f"{name}:{line}", error)


def _records(name: str, lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str], int]]:
    """For each record: the line it starts on, its cells, and the line of an unclosed quote, or 0."""
    ended = False

    def fed() -> Iterator[str]:
        # An empty line after the last: csv answers [] to it, or goes on with the open quote, which gives that away.
        nonlocal ended
        yield from lines
        ended = True
        yield ""

    csv.field_size_limit(_FIELD_LIMIT)  # it is global to the process, and only ever raised here
    reader = csv.reader(fed(), delimiter=delimiter)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells, _quote_line(cells[-1], reader.line_num - 1) if ended else 0
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}:{start}", f"is not CSV ({error})", fix="Correct the row.") from error


def _quote_line(cell: str, last: int) -> int:
    """The line on which an unclosed cell began, from its text and the number of the last line."""
    breaks = len(re.findall(r"\r\n|\r|\n", cell))
    return last - breaks + cell.endswith(("\r", "\n"))


class _LfSink:
    """Output of the csv module: one line at a time, ended by LF."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Add one row."""
        self._stream.write((text.removesuffix("\r\n") + "\n").encode("utf-8", ESCAPE))


class CsvRows:
    """CSV or TSV with minimal quoting; values that are not text become JSON. Without a header it continues a file."""

    def __init__(self, stream: BinaryIO, header: Header, whole: bool, delimiter: str) -> None:
        columns = header.columns
        self.left_out: dict[str, None] = {}
        self._columns, self._known = columns, frozenset(columns)
        # CRLF, although lines end in LF: up to Python 3.12 csv quotes only those line ends that it writes itself.
        self._csv = csv.writer(_LfSink(stream), delimiter=delimiter, lineterminator="\r\n")
        if whole:
            # Where a name holds some delimiter all are quoted, lest readers that sniff the header are misled.
            misleading = any(mark in name for name in columns for mark in _DELIMITERS)
            quoting: Literal[0, 1] = csv.QUOTE_ALL if misleading else csv.QUOTE_MINIMAL
            csv.writer(_LfSink(stream), delimiter=delimiter, lineterminator="\r\n", quoting=quoting).writerow(columns)

    def write(self, values: dict[str, Any]) -> None:
        """Add one row."""
        if not values.keys() <= self._known and len(self.left_out) < _MANY:
            self.left_out |= dict.fromkeys(name for name in values if name not in self._known)
        cells = (values.get(name) for name in self._columns)
        self._csv.writerow(["" if cell is None else text_of(cell) for cell in cells])

    def finish(self) -> None:
        """Write the remaining rows; the stream stays open."""

    def abandon(self) -> None:
        """Close without finishing; the output will be discarded."""


def _join(stream: BinaryIO, header: Header, parts: Sequence[Path], delimiter: str) -> None:
    CsvRows(stream, header, True, delimiter)
    copy_files(stream, parts)


def _count(path: str) -> int:
    """Lines without the header; cells may hold line breaks."""
    return count_line_ends(path) - 1


def _format(name: str, delimiter: str) -> Format:
    tabs = delimiter == "\t"
    return Format(
        name=name,
        extensions=(f".{name}",),
        read=partial(_read, tabs=tabs),
        writing=Writing(partial(CsvRows, delimiter=delimiter), partial(_join, delimiter=delimiter)),
        # What is nothing else begins with a header.
        sniffed=lambda head: not tabs or delimiter_of(head) == "\t",
        typed=True,
        count=_count,
    )


CSV, TSV = _format("csv", ","), _format("tsv", "\t")
