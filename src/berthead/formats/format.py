"""File formats: one record each, which says how files are recognised, read, written and joined from parts."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from berthead.errors import OutputError
from berthead.formats.lines import LONGEST_LINE, Lines, empty
from berthead.records import Row
from berthead.storage.compression import Unpacked


class Source:
    """An open file that a format reads.

    Args:
        name: the file, for errors and locations.
        binary: its bytes.
        stack: closes what is opened during reading.
        codec: the compression, from the file's name.
        sheet: the sheet to read, for formats that have sheets; "": the first.
        longest: the most bytes of a line; None: any number.
    """

    def __init__(
        self, name: str, binary: io.BufferedReader[Any], stack: ExitStack, codec: str = "", sheet: str = "",
        longest: int | None = LONGEST_LINE,
    ) -> None:  # fmt: skip
        self.name, self.binary, self.stack, self.sheet, self._codec = name, binary, stack, sheet, codec
        self._longest = longest
        self._text: Lines | None = None

    @cached_property
    def _opened(self) -> tuple[str, Iterator[str]]:
        """The first line that is not blank, and all lines, the blank ones before it made empty."""
        self._text = Lines(Unpacked(self.binary, self._codec, self.name), self.name, self._longest)
        lines = iter(self._text)
        for blank, line in enumerate(lines):
            if line.strip():
                return line, itertools.chain(itertools.repeat("\n", blank), [line], lines)
        empty(self.name)

    @property
    def head(self) -> str:
        """The first line of text that is not blank."""
        return self._opened[0]

    @property
    def lines(self) -> Iterator[str]:
        """The lines of text, with their line ends; they are read once."""
        return self._opened[1]

    @property
    def notes(self) -> list[str]:
        """Notes for the user about the lines read so far."""
        odd = self._text.not_utf8 if self._text else 0
        if not odd:
            return []
        what = "1 line is not UTF-8; it was" if odd == 1 else f"{odd} lines are not UTF-8; they were"
        return [f"{self.name}: {what} read as Latin-1 (Windows-1252)"]


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file, as read by a format.

    Args:
        columns: the header; if rows may differ, the keys of the first thousand.
        rows: the rows; they can be read once.
        format: the name of the format, if the content says more than the file's name; "": as asked.
        schema: the `pyarrow.Schema` of the columns, or None.
        skip: skips a number of rows and returns how many there were; None: skipped rows are read.
        notes: notes for the user about the rows read so far.
    """

    columns: list[str]
    rows: Iterator[Row]
    format: str = ""
    schema: Any = None
    skip: Callable[[int], int] | None = None
    notes: Callable[[], list[str]] = list


@dataclass(frozen=True, slots=True)
class Header:
    """The columns of a file to be written.

    Args:
        columns: all of them, in their order.
        added: columns that are not in the input, with their types: str, float, int, bool or list (of str).
        schema: the `pyarrow.Schema` of a Parquet file; None for other formats, and if it is inferred from the rows.
        rows: how many rows follow, if known.
    """

    columns: list[str]
    added: Mapping[str, type]
    schema: Any = None
    rows: int | None = None


class UnfitRow(OutputError):
    """A row that a format cannot hold; nothing of it was written, and others may follow."""


class RowEncoder(Protocol):
    """How rows become bytes."""

    @property
    def left_out(self) -> Iterable[str]:
        """Columns of rows that are not in the header."""

    def write(self, values: dict[str, Any]) -> None:
        """Add one row: column name to value; UnfitRow if the format cannot hold it."""

    def finish(self) -> None:
        """Write the remaining rows; the stream stays open."""

    def abandon(self) -> None:
        """Close without finishing; the output will be discarded."""


@dataclass(frozen=True, slots=True)
class Writing:
    """How rows are written in a format.

    Args:
        encode: rows to an open stream. True: a whole file; False: a part, without a header.
        join: joins parts in this format into one file; None: its parts are always JSON Lines.
        schema: the schema if the source's columns are typed, from columns, the source's schema and added types.
        learn: the header that fits all rows, for formats that need it before the first row is written;
            their parts are JSON Lines unless there is a schema. None: not needed.
        check: raises UnfitRow for a row that the format cannot hold, before it is stored; None: every row fits.
        check_added: raises OutputError for added columns that the format cannot hold, before any row; None: all fit.
        most_rows: the most rows that a file can hold; None: any number.
    """

    encode: Callable[[BinaryIO, Header, bool], RowEncoder]
    join: Callable[[BinaryIO, Header, Sequence[Path]], None] | None = None
    schema: Callable[[list[str], Any, Mapping[str, type]], Any] | None = None
    learn: Callable[[Header, Iterable[dict[str, Any]]], Header] | None = None
    check: Callable[[dict[str, Any]], None] | None = None
    check_added: Callable[[Iterable[str]], None] | None = None
    most_rows: int | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """A file format.

    Args:
        name: its name in messages, manifests and as the extension of parts.
        read: reads an open file.
        extensions: of its files, in lower case; empty: its files are recognised by their content.
        writing: how rows are written; None: read only.
        text: whether it is text, which may be compressed and may come from stdin.
        signature: the first bytes of a binary format, and what such a file is called.
        sniffed: whether a stream is of this format, by its first line; None: never.
        typed: whether each column has one type, known in advance.
        is_document: whether a file is one document, which is held in memory and may be one long line.
        sheets: whether a file has sheets, of which `FILE#SHEET` names one.
        count: a quick estimate of the rows of a file, rather too high than too low; None: it would take as long as
            reading.
    """

    name: str
    read: Callable[[Source], Content]
    extensions: tuple[str, ...] = ()
    writing: Writing | None = None
    text: bool = True
    signature: tuple[str, str] | None = None
    sniffed: Callable[[str], bool] | None = None
    typed: bool = False
    is_document: bool = False
    sheets: bool = False
    count: Callable[[str], int] | None = None
