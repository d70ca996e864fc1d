"""What a file format is: one record each, which says how files are known, read, written and joined from parts."""

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
from berthead.formats.lines import Lines, empty
from berthead.records import Row
from berthead.storage.compression import Unpacked


class Source:
    """An open file that a format reads.

    Args:
        name: the file, for errors and places.
        binary: its bytes.
        stack: closes what is opened while it is read.
        codec: how a text is packed, as its name says.
        sheet: which sheet is read, of formats that have sheets; "": the first.
    """

    def __init__(
        self, name: str, binary: io.BufferedReader[Any], stack: ExitStack, codec: str = "", sheet: str = ""
    ) -> None:
        self.name, self.binary, self.stack, self.sheet, self._codec = name, binary, stack, sheet, codec
        self._text: Lines | None = None

    @cached_property
    def _opened(self) -> tuple[str, Iterator[str]]:
        """The first line that is not blank, and all lines, the blank ones before it made empty."""
        self._text = Lines(Unpacked(self.binary, self._codec, self.name), self.name)
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
        """What the user should know about the lines read so far."""
        odd = self._text.not_utf8 if self._text else 0
        if not odd:
            return []
        what = "1 line is not UTF-8; it was" if odd == 1 else f"{odd} lines are not UTF-8; they were"
        return [f"{self.name}: {what} read as Latin-1 (Windows-1252)"]


@dataclass(frozen=True, slots=True)
class Content:
    """What a format reads of a file.

    Args:
        columns: the header; where rows may differ, the keys of the first thousand.
        rows: the rows themselves, read once.
        format: the name of the format, where the content says more than the file's name; "": the one that was asked.
        schema: the `pyarrow.Schema` of the columns, or None.
        skip: leaves out so many rows and says how many there were; None: they are read.
        notes: what the user should know about the rows read so far.
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
        added: those that are not the input's, with their types: str, float, int, bool or list (of str).
        schema: the `pyarrow.Schema` of a Parquet file; None for other formats, and where it is learnt from the rows.
        rows: how many rows follow, where all of them were gone through before.
    """

    columns: list[str]
    added: Mapping[str, type]
    schema: Any = None
    rows: int | None = None


class UnfitRow(OutputError):
    """A row that a format has no room for; nothing of it was written, and others may follow."""


class RowEncoder(Protocol):
    """How rows become bytes."""

    @property
    def left_out(self) -> Iterable[str]:
        """Columns of rows that the header does not have."""

    def write(self, values: dict[str, Any]) -> None:
        """Add one row: column name to value; UnfitRow where the format has no room for it."""

    def finish(self) -> None:
        """Write what is left; the stream stays open."""

    def abandon(self) -> None:
        """Let go of what is open: the bytes go away anyway."""


@dataclass(frozen=True, slots=True)
class Writing:
    """How rows are written in a format.

    Args:
        encode: rows to an open stream. True: a whole file; False: a part, which goes on behind a header.
        join: parts in this format, as files, to one whole; None: its parts are always JSON Lines.
        schema: what is known of the columns where the source's are typed: columns, the source's schema, added types.
        learn: the header that holds all of these rows, of formats that need to know them before the first is written;
            the parts of these are JSON Lines unless there is a schema. None: the header is all there is to know.
        check: raises UnfitRow for a row that the format has no room for, before it waits among others; None: any fits.
        most_rows: that a file has room for; None: any number.
    """

    encode: Callable[[BinaryIO, Header, bool], RowEncoder]
    join: Callable[[BinaryIO, Header, Sequence[Path]], None] | None = None
    schema: Callable[[list[str], Any, Mapping[str, type]], Any] | None = None
    learn: Callable[[Header, Iterable[dict[str, Any]]], Header] | None = None
    check: Callable[[dict[str, Any]], None] | None = None
    most_rows: int | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """A file format.

    Args:
        name: what it is called, in messages, manifests and as the extension of parts.
        read: what an open file holds.
        extensions: of its files, in small letters; none: its files are known by their content.
        writing: how rows are written; None: it is only read.
        text: whether it is text, which may be packed and may come from stdin.
        signature: what a file that is no text begins with, and what such a file is called.
        sniffed: whether a stream is of this format, by its first line; None: it is never taken for it.
        typed: whether each column has one type, known beforehand.
        sheets: whether a file has sheets, of which `FILE#SHEET` names one.
        count: about how many rows a file has, quickly, and too high rather than too low; None: that is as much work as
            reading it.
    """

    name: str
    read: Callable[[Source], Content]
    extensions: tuple[str, ...] = ()
    writing: Writing | None = None
    text: bool = True
    signature: tuple[str, str] | None = None
    sniffed: Callable[[str], bool] | None = None
    typed: bool = False
    sheets: bool = False
    count: Callable[[str], int] | None = None
