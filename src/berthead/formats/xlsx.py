"""Sheets of Excel workbooks: read by openpyxl a row at a time, written here as text, numbers and booleans."""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, time, timedelta
from itertools import chain
from typing import Any, BinaryIO
from xml.sax.saxutils import escape

from berthead.errors import DataError, OutputError, UsageError, counted, did_you_mean, listed
from berthead.formats.format import Content, Format, Header, Source, UnfitRow, Writing
from berthead.formats.lines import check_unique, empty
from berthead.formats.values import ESCAPE, text_of
from berthead.records import Row

# What Excel has room for.
MOST_ROWS = 1_048_576  # of a sheet, the header among them
MOST_COLUMNS = 16_384
MOST_CHARACTERS = 32_767  # of a cell, as units of UTF-16
MOST_BYTES = 2**31 - 1  # of a sheet: Excel repairs workbooks whose parts are larger, and says so
_EXACT = 2**53  # whole numbers up to this are the same as floats, which is what a cell holds
_ELSEWHERE = "Write a .csv, .jsonl or .parquet file."

# Reading


def _read(source: Source) -> Content:
    if not source.binary.peek(1):
        empty(source.name)
    workbook = _workbook(source)
    source.stack.callback(workbook.close)
    sheet = _sheet(source, {one.title: one for one in workbook.worksheets})
    sheet.reset_dimensions()  # what the file says of its size may be wrong
    file = source.name.removesuffix(f"#{source.sheet}") if source.sheet else source.name
    reader = _Reader(f"{file}#{sheet.title}", _numbered(f"{file}#{sheet.title}", sheet))
    columns = reader.header()
    return Content(columns, reader.rows(columns), notes=reader.notes)


def _workbook(source: Source) -> Any:
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        fix = "Install it: pip install 'berthead[excel]'"
        raise UsageError(source.name, "openpyxl, which reads .xlsx files, is not installed", "", fix) from error
    fix = "Save it as an Excel workbook (.xlsx) again, without a password."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of looks, which are not read
            return load_workbook(source.binary, read_only=True, data_only=True, keep_links=False)
    except Exception as error:  # of whatever kind: openpyxl lets through what its parsers say
        raise DataError(source.name, f"is not a sound Excel workbook ({_reason(error)})", fix=fix) from error


def _sheet(source: Source, sheets: dict[str, Any]) -> Any:
    if not sheets:
        raise DataError(source.name, "is a workbook without a sheet of cells", "at least one", "Name another file.")
    if not source.sheet:
        return next(iter(sheets.values()))
    if source.sheet not in sheets:
        names = listed(f'"{name}"' for name in sheets)
        fix = did_you_mean(source.sheet, sheets) or "Name one of them after the #."
        raise DataError(source.name, f'has no sheet "{source.sheet}"', f"one of its sheets: {names}", fix)
    return sheets[source.sheet]


def _numbered(place: str, sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """The rows of a sheet that are not blank, as cells, and their numbers as Excel shows them."""
    number = 0
    try:
        for number, row in enumerate(sheet.iter_rows(), 1):
            cells = list(row)
            while cells and (cells[-1].value is None or cells[-1].value == ""):
                cells.pop()
            if cells:
                yield number, cells
    except Exception as error:  # as for the workbook
        where = f"{place}:row {number + 1}"
        raise DataError(where, f"cannot be read ({_reason(error)})", fix="Save the workbook again.") from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


class _Reader:
    """The rows of a sheet below its header.

    Args:
        place: the file and the sheet.
        numbered: the rows that are not blank.
    """

    def __init__(self, place: str, numbered: Iterator[tuple[int, list[Any]]]) -> None:
        self._place, self._numbered = place, numbered
        self._errors, self._first_error = 0, ""

    def header(self) -> list[str]:
        """The columns, named by their number if blank in the header."""
        number, cells = next(self._numbered, (0, []))
        if not number:
            raise DataError(self._place, "is an empty sheet", "a header and rows", "Name another sheet: FILE#SHEET.")
        texts = [text_of("" if (value := _value(cell)) is None else value) for cell in cells]
        columns = [text if text.strip() else f"column_{number}" for number, text in enumerate(texts, 1)]
        check_unique(f"{self._place}:row {number}", columns)
        return columns

    def rows(self, columns: list[str]) -> Iterator[Row]:
        """The rows; a cell that holds an error counts as empty."""
        width = len(columns)
        for number, cells in self._numbered:
            where, error = f"{self._place}:row {number}", None
            for cell in cells:
                if cell.data_type == "e":
                    self._errors += 1
                    self._first_error = self._first_error or f"{cell.value} in row {number}"
            read = [None if cell.data_type == "e" else _value(cell) for cell in cells]
            values: dict[str, Any] = dict(zip(columns, chain(read, [None] * width), strict=False))
            if len(read) > width:
                error = f"has {counted(len(read), 'cell')}; expected at most {width}, as in the header"
                values[""] = read[width:]  # a bad row is put aside whole
            yield Row(values, where, error)

    def notes(self) -> list[str]:
        """Notes for the user about the rows read so far."""
        if not self._errors:
            return []
        what = "1 cell holds an error" if self._errors == 1 else f"{self._errors:,} cells hold errors"
        first = "" if self._errors == 1 else "first "
        return [f"{self._place}: {what} ({first}{self._first_error}), which counts as empty"]


def _value(cell: Any) -> Any:
    """A cell as text, a whole number, a number or a boolean; dates as ISO text."""
    value = cell.value
    match value:
        case str():
            return _UNICODE.sub(lambda found: chr(int(found[1], 16)), value) or None
        case float() if value.is_integer() and abs(value) <= _EXACT:
            return int(value)
        case datetime():
            # What the cell shows decides: a day, or a moment that may be midnight.
            shows_time = re.search("[hs]", re.sub(r'"[^"]*"|\[[^]]*\]|\\.', "", cell.number_format or "").lower())
            return value.isoformat() if shows_time or value.time() != time() else value.date().isoformat()
        case time():
            return value.isoformat()
        case timedelta():
            minutes, seconds = divmod(value.total_seconds(), 60)
            return f"{int(minutes // 60)}:{int(minutes % 60):02}:{seconds:02.6g}"
        case _:
            return value


# Characters that XML cannot hold stand in cells as _xHHHH_.
_UNICODE = re.compile("_x([0-9A-Fa-f]{4})_")
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")

# Writing

_NS = "http://schemas.openxmlformats.org"
_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_MAIN, _TYPES = f"{_NS}/spreadsheetml/2006/main", f"{_NS}/package/2006"
_OF_OFFICE, _KIND = f"{_NS}/officeDocument/2006/relationships", "application/vnd.openxmlformats-officedocument"
_RELATIONS = '<Relationships xmlns="' + _TYPES + '/relationships">{}</Relationships>'
_RELATION = '<Relationship Id="rId{}" Type="' + _OF_OFFICE + '/{}" Target="{}"/>'
_SHEET_FILE = "xl/worksheets/sheet1.xml"
_FILES = {
    "[Content_Types].xml": f'<Types xmlns="{_TYPES}/content-types">'
    f'<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Default Extension="xml" ContentType="application/xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{_KIND}.spreadsheetml.sheet.main+xml"/>'
    f'<Override PartName="/{_SHEET_FILE}" ContentType="{_KIND}.spreadsheetml.worksheet+xml"/>'
    f'<Override PartName="/xl/styles.xml" ContentType="{_KIND}.spreadsheetml.styles+xml"/></Types>',
    "_rels/.rels": _RELATIONS.format(_RELATION.format(1, "officeDocument", "xl/workbook.xml")),
    "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_OF_OFFICE}"><sheets>'
    '<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": _RELATIONS.format(
        _RELATION.format(1, "worksheet", "worksheets/sheet1.xml") + _RELATION.format(2, "styles", "styles.xml")
    ),
    "xl/styles.xml": f'<styleSheet xmlns="{_MAIN}"><fonts count="1"><font><sz val="11"/><name val="Calibri"/></font>'
    '</fonts><fills count="2"><fill><patternFill patternType="none"/></fill><fill><patternFill patternType="gray125"/>'
    '</fill></fills><borders count="1"><border><left/><right/><top/><bottom/><diagonal/></border></borders>'
    '<cellStyleXfs count="1"><xf numFmtId="0" fontId="0" fillId="0" borderId="0"/></cellStyleXfs>'
    '<cellXfs count="1"><xf numFmtId="0" fontId="0" fillId="0" borderId="0" xfId="0"/></cellXfs>'
    '<cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles></styleSheet>',
}


class XlsxRows:
    """One sheet, written row by row; text is never a formula, and the file holds no time."""

    left_out = ()

    def __init__(self, stream: BinaryIO, header: Header) -> None:
        if len(header.columns) > MOST_COLUMNS:
            saw = f"has no room for {len(header.columns):,} columns"
            raise OutputError("an .xlsx file", saw, f"at most {MOST_COLUMNS:,} columns", _ELSEWHERE)
        self._columns = header.columns
        self._letters = [_letters(number) for number in range(len(header.columns))]
        self._rows = self._bytes = 0
        self._zip = zipfile.ZipFile(stream, "w")
        try:
            for name, text in _FILES.items():
                self._zip.writestr(_entry(name), _HEAD + text)
            self._sheet = self._zip.open(_entry(_SHEET_FILE), "w")
            size = f'<dimension ref="A1:{self._letters[-1]}{header.rows + 1}"/>' if header.rows is not None else ""
            self._put(f'{_HEAD}<worksheet xmlns="{_MAIN}">{size}<sheetData>')
            self.write({name: name for name in header.columns})
        except BaseException:
            self._zip.fp = None  # as in `abandon`
            raise

    def write(self, values: dict[str, Any]) -> None:
        """Add one row."""
        check_row(values)
        if self._rows == MOST_ROWS:
            saw = "has no room for more rows"
            raise OutputError("an .xlsx file", saw, f"at most {MOST_ROWS - 1:,} rows and a header", _ELSEWHERE)
        self._rows += 1
        cells = (
            _cell(f"{letters}{self._rows}", values[name])
            for letters, name in zip(self._letters, self._columns, strict=True)
            if values.get(name) not in (None, "")
        )
        self._put(f'<row r="{self._rows}">{"".join(cells)}</row>')

    def finish(self) -> None:
        """Write the remaining rows; the stream stays open."""
        self._put("</sheetData></worksheet>")
        self._sheet.close()
        self._zip.close()

    def abandon(self) -> None:
        """Close without finishing; the output will be discarded."""
        with suppress(Exception):  # what is left may not fit either
            self._sheet.close()
        self._zip.fp = None  # or its destructor writes the end of the file to a closed stream

    def _put(self, text: str) -> None:
        data = text.encode("utf-8", ESCAPE)
        self._bytes += len(data)
        if self._bytes > MOST_BYTES:
            raise OutputError("an .xlsx file", "has no room for so much text", "at most 2 GiB a sheet", _ELSEWHERE)
        self._sheet.write(data)


def check_row(values: dict[str, Any]) -> None:
    """Check that the cells of a sheet can hold a row's values.

    Args:
        values: column name to value.

    Raises:
        UnfitRow: one is too long.

    Example:
        >>> check_row({"text": "fine"})
    """
    for name, value in values.items():
        if value is None or isinstance(value, bool | int | float):
            continue
        text = text_of(value)
        if len(text) > MOST_CHARACTERS // 2 and (length := _utf16_length(text)) > MOST_CHARACTERS:
            allowed = f"at most {MOST_CHARACTERS:,}, for which a cell of an .xlsx file has room"
            raise UnfitRow(f'column "{name}"', f"holds {length:,} characters", allowed, _ELSEWHERE)


def _utf16_length(text: str) -> int:
    return len(text) + sum(character > "\uffff" for character in text)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system = 3  # whatever this one is
    return entry


def _letters(number: int) -> str:
    """The letters of a column, from 0: A, B, ..., Z, AA."""
    return (_letters(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def _cell(place: str, value: Any) -> str:
    if isinstance(value, bool):
        return f'<c r="{place}" t="b"><v>{value:d}</v></c>'
    if isinstance(value, int | float) and math.isfinite(value) and (isinstance(value, float) or abs(value) <= _EXACT):
        return f'<c r="{place}"><v>{value!r}</v></c>'
    text = _NO_XML.sub(lambda found: f"_x{ord(found[0]):04X}_", text_of(value))
    text = escape(text.encode("utf-8", ESCAPE).decode(), {"\r": "&#13;"})
    return f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'


def _learn(header: Header, rows: Iterable[dict[str, Any]]) -> Header:
    """The header with all columns and the number of rows: readers allocate by it, and without it read twice."""
    columns, count = dict.fromkeys(header.columns), 0
    for values in rows:
        columns.update(dict.fromkeys(values))
        count += 1
    return replace(header, columns=list(columns), rows=count)


XLSX = Format(
    name="xlsx",
    extensions=(".xlsx",),
    read=_read,
    writing=Writing(
        encode=lambda stream, header, whole: XlsxRows(stream, header),
        learn=_learn,
        check=check_row,
        most_rows=MOST_ROWS - 1,
    ),
    text=False,
    signature=("PK\x03\x04", "an Excel workbook, or another zip file"),
    sheets=True,
)
