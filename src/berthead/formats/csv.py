"""Delimited text to rows: the delimiter, quotes left open, rows too short or too long."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import Any

from berthead.errors import DataError
from berthead.formats.lines import check_unique
from berthead.records import Row

_DELIMITERS = ",;\t|"
_FIELD_LIMIT = 2**31 - 1  # characters; csv's own limit of 131,072 is too low for documents


def delimiter_of(head: str, format: str) -> str:
    """The commonest delimiter outside the quotes of the header."""
    bare = re.sub(r'(^|[,;\t|])"(?:[^"]|"")*(?:"|$)', r"\1", head)
    counts = {delimiter: bare.count(delimiter) for delimiter in _DELIMITERS}
    if format == "tsv" and (counts["\t"] or not any(counts.values())):
        return "\t"
    return max(counts, key=lambda delimiter: counts[delimiter])  # the first, a comma, where there is none


def csv_rows(name: str, lines: Iterator[str], delimiter: str) -> tuple[list[str], Iterator[Row]]:
    """The columns, named by their number where the header leaves one blank, and the rows."""
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
            error = f"has {len(cells)} field{'s' * (len(cells) > 1)}, the header has {width}"
        values: dict[str, Any] = dict(zip(columns, cells, strict=False))
        if len(cells) > width:
            values[""] = cells[width:]  # a bad row is put aside whole
        yield Row(values, f"{name}:{line}", error)


def _records(name: str, lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str], int]]:
    """For each record: the line it starts on, its cells, and the line of a quote left open at the end, or 0."""
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
