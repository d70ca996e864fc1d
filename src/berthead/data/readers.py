"""Rows of tables, CoNLL columns, SQuAD and annotation exports, as they stand there: no guessed types."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self, cast

from berthead.data.annotations import is_label_studio, kind_of, label_studio_rows, span_keys, with_spans
from berthead.data.conll import conll_rows
from berthead.data.lines import CHUNK, Lines, unreadable
from berthead.data.squad import is_squad, squad_rows
from berthead.errors import DataError, UsageError, did_you_mean, listed
from berthead.records import Row

STDIO = "-"
FORMATS = ("csv", "tsv", "jsonl", "parquet", "conll", "json", "squad", "label-studio")
_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
# Only read. There is no other text format, so a .txt can be nothing but columns; what a .json is its content says.
_CONLL = (".conll", ".bio", ".iob", ".iob2", ".bioes", ".annotated", ".txt")
_READ_FORMATS = _FORMATS | {".json": "json"} | dict.fromkeys(_CONLL, "conll")
EXTENSIONS = tuple(_READ_FORMATS)
_COUNTED = ("csv", "tsv", "jsonl", "parquet")  # a line or a Parquet row is a row
_SQUAD = 'SQuAD, as {"data": [{"paragraphs": [...]}]}'
_STUDIO = 'a Label Studio export, as [{"data": {"text": "..."}, "annotations": [...]}]'
_DOCUMENTS = {
    "squad": _SQUAD,
    "label-studio": f"{_STUDIO}, or as JSON-MIN",
    "json": f"{_SQUAD}; {_STUDIO}; or a list of objects",
}
_DELIMITERS = ",;\t|"
_BATCH = 1024  # Parquet rows decoded at once
_SEARCH = 1000  # rows of JSON in which every key should show, and a first object
_FIELD_LIMIT = 2**31 - 1  # characters; csv's own limit of 131,072 is too low for documents


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
            objects. Each but Parquet also as .gz. `-` is standard input, whose format is sniffed (CoNLL is not).
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
            return _text_reader("stdin", format or "", _stdin(stack), stack)
        binary = stack.enter_context(_opened(path))
        format, zipped = (format, path.lower().endswith(".gz")) if format else format_of(path, reading=True)
        if format == "parquet":
            return _parquet_reader(path, binary, stack)
        # Read through a second buffer: its peek sees as much as there is, from a named pipe too.
        return _text_reader(path, format, _unzipped(io.BufferedReader(cast(io.RawIOBase, binary)), zipped), stack)


def format_of(path: str, reading: bool = False) -> tuple[str, bool]:
    """The format that a path's extension names, and whether it is gzipped.

    Args:
        path: a file name or path.
        reading: know the formats too that are read and never written.

    Returns:
        One of "csv", "tsv", "jsonl", "parquet" (reading also "conll" and "json"), and True for a further `.gz`.

    Raises:
        UsageError: another extension.

    Example:
        >>> format_of("reviews.csv.gz")
        ('csv', True)
    """
    known = _READ_FORMATS if reading else _FORMATS
    name = path.lower()
    zipped = name.endswith(".gz")
    extension = Path(name.removesuffix(".gz")).suffix
    if extension not in known or (extension == ".parquet" and zipped):
        shown = extension + ".gz" * zipped
        saw = f'has the extension "{shown}"' if shown else "has no extension"
        texts = [ext for ext in known if ext != ".parquet"]
        allowed = f"{listed(texts, len(texts))} (each also with .gz) and .parquet"
        raise UsageError(path, saw, f"known: {allowed}", "Convert or rename the file, or use `-`.")
    return known[extension], zipped


def count_lines(path: str, format: str | None = None) -> int | None:
    r"""About how many rows a file has, for a progress bar: quick, and too high where cells hold line breaks.

    Args:
        path: a file name or path.
        format: as for `open_rows`.

    Returns:
        Line ends, or a Parquet file's rows; None where counting would cost as much as reading: gz, pipes, and formats
        whose rows are not lines.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "reviews.csv")
        >>> _ = path.write_text("text\nfine\npoor\n")
        >>> count_lines(str(path))
        3
    """
    if path == STDIO or not Path(path).is_file():
        return None
    format, zipped = (format, path.lower().endswith(".gz")) if format else format_of(path, reading=True)
    if zipped or format not in _COUNTED:
        return None
    if format == "parquet":
        import pyarrow.parquet

        rows: int = pyarrow.parquet.read_metadata(path).num_rows
        return rows
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


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


def _empty(name: str) -> NoReturn:
    raise DataError(name, "is empty", "a header or a first row", "Check that this is the right file.")


def _stdin(stack: ExitStack) -> BinaryIO:
    buffered = io.BufferedReader(cast(io.RawIOBase, sys.stdin.buffer))
    stack.callback(buffered.detach)  # leave sys.stdin itself open
    return _unzipped(buffered, zipped=False)


def _unzipped(binary: io.BufferedReader[Any], zipped: bool) -> BinaryIO:
    """The stream, unpacked where its name says gzip or where it begins like gzip."""
    with suppress(OSError):  # the first read meets it again, and names it
        zipped = zipped or binary.peek(2).startswith(b"\x1f\x8b")
    return cast(BinaryIO, gzip.GzipFile(fileobj=binary)) if zipped else binary


# Text lines to rows


def _text_reader(name: str, format: str, binary: BinaryIO, stack: ExitStack) -> RowReader:
    """A reader of any format but Parquet; an empty format is sniffed."""
    source = Lines(binary, name)
    head, lines = _head(name, iter(source))
    if format == "parquet" or (not format and head.startswith("PAR1")):
        raise DataError(name, "is a Parquet file", "a text format from stdin", "Give the file's path instead.")
    format = format or _sniffed(head)
    if format == "conll":
        columns, rows = conll_rows(name, lines)
    elif format == "jsonl":
        columns, rows = _json_lines(name, lines)
    elif format in ("json", "squad", "label-studio"):
        format, columns, rows = _json_document(name, format, lines)
    else:
        delimiter = _delimiter(head, format)
        columns, rows = _csv_lines(name, lines, delimiter)
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
    _empty(name)


def _delimiter(head: str, format: str) -> str:
    """The commonest delimiter outside the quotes of the header."""
    bare = re.sub(r'(^|[,;\t|])"(?:[^"]|"")*(?:"|$)', r"\1", head)
    counts = {delimiter: bare.count(delimiter) for delimiter in _DELIMITERS}
    if format == "tsv" and (counts["\t"] or not any(counts.values())):
        return "\t"
    return max(counts, key=lambda delimiter: counts[delimiter])  # the first, a comma, where there is none


def _csv_lines(name: str, lines: Iterator[str], delimiter: str) -> tuple[list[str], Iterator[Row]]:
    records = _csv_records(name, lines, delimiter)
    line, cells, opened = next(records)
    if opened:
        saw = "the header opens a quote that is never closed"
        raise DataError(f"{name}:{opened}", saw, fix="Close the quote, or double it where it is part of a name.")
    columns = [cell if cell.strip() else f"column_{number}" for number, cell in enumerate(cells, 1)]
    _check_unique(f"{name}:{line}", columns)
    return columns, _csv_rows(name, columns, records)


def _csv_rows(name: str, columns: list[str], records: Iterator[tuple[int, list[str], int]]) -> Iterator[Row]:
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


def _csv_records(name: str, lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str], int]]:
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


def _check_unique(where: str, columns: list[str]) -> None:
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise DataError(where, f'has the column "{column}" twice', "each name once", "Rename one of them.")
        seen.add(column)


def _json_lines(name: str, lines: Iterator[str]) -> tuple[list[str], Iterator[Row]]:
    rows = (_json_row(line, f"{name}:{number}") for number, line in enumerate(lines, 1) if line.strip())
    # Rows may have different keys, and the first may be the odd one.
    seen = list(itertools.islice(rows, _SEARCH))
    marked = span_keys(row.values for row in seen)
    seen = [_spanned(row, marked) for row in seen]
    columns = _keys(seen)
    if columns:
        return columns, itertools.chain(seen, (_spanned(row, marked) for row in rows))
    saw = seen[0].error or "is an object without keys"
    raise DataError(
        seen[0].where, saw, 'one object a line, such as {"text": "..."}', "No row could be read; check the format."
    )


def _json_row(line: str, where: str) -> Row:
    try:
        value = json.loads(line.rstrip("\r\n"))
    except (ValueError, RecursionError) as error:
        reason = _reason(error)
    else:
        if isinstance(value, dict):
            return Row(value, where)
        reason = f"it is {kind_of(value)}"
    return Row({}, where, f"is not a JSON object ({reason})")


def _reason(error: ValueError | RecursionError) -> str:
    """Why a text is no JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    # Else a number of more than 4,300 digits.
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


def _spanned(row: Row, marked: frozenset[str]) -> Row:
    """The row, with spans where it is one of doccano's."""
    values = with_spans(row.values, marked)
    return row if values is row.values else Row(values, row.where, row.error)


def _keys(rows: Iterable[Row]) -> list[str]:
    """The keys of these rows, each once; a bad row says nothing about the others."""
    return list(dict.fromkeys(key for row in rows if not row.error for key in row.values))


# JSON documents to rows


def _json_document(name: str, asked: str, lines: Iterator[str]) -> tuple[str, list[str], Iterator[Row]]:
    """The format found, columns and rows of a document, which is held in memory whole."""
    document = _document(name, "".join(lines))
    format = _document_format(document)
    if not format or asked not in ("json", format):
        raise DataError(name, _described(document), _DOCUMENTS[asked], "Check that this is the right file.")
    # Needed columns are named although no row may have them: then the rows' own errors are told.
    needed: tuple[str, ...] = ()
    if format == "squad":
        needed, rows = ("question", "context"), squad_rows(name, document)
    elif format == "label-studio":
        needed, rows = ("text",), label_studio_rows(name, document)
    else:
        rows = _plain_rows(name, document)
    seen = list(itertools.islice(rows, _SEARCH))
    if not seen:
        raise DataError(
            name, "is SQuAD without a question", "questions under qas", "Check that this is the right file."
        )
    columns = list(dict.fromkeys([*_keys(seen), *needed]))
    if not columns:
        raise DataError(seen[0].where, seen[0].error or "is an object without keys", "objects with keys")
    return format, columns, itertools.chain(seen, rows)


def _document(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # No line end may stand in a string: one that is not closed goes on to the end of the file.
        early = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        saw = "ends in the middle of the JSON document" if early else "is not JSON"
        fix = "Copy or export the file again."
        if error.msg == "Extra data":
            fix = "If every line is an object, name the file .jsonl."
        raise DataError(f"{name}:{error.lineno}", f"{saw} ({_reason(error)})", fix=fix) from error
    except (ValueError, RecursionError) as error:
        raise DataError(name, f"is not JSON ({_reason(error)})", fix="Correct the file.") from error


def _document_format(document: Any) -> str:
    """One of `FORMATS`; empty for what has no rows."""
    if is_squad(document):
        return "squad"
    if not isinstance(document, list) or not any(isinstance(row, dict) for row in document):
        return ""
    return "label-studio" if is_label_studio(document) else "json"


def _described(document: Any) -> str:
    """What was seen in place of rows."""
    if isinstance(document, list) and document:
        first = document[0]
        keys = f" with the keys {_quoted(first)}" if isinstance(first, dict) and first else ""
        return f"is a JSON list that begins with {kind_of(first)}{keys}"
    if isinstance(document, dict) and document:
        nearly = isinstance(document.get("data"), list) and not is_squad(document)
        articles = '; none of "data" has "paragraphs"' if nearly else ""
        return f"is a JSON object with the keys {_quoted(document)}{articles}"
    return "is an empty JSON document" if document in ({}, []) else f"holds nothing but {kind_of(document)}"


def _quoted(keys: Iterable[str]) -> str:
    return listed(f'"{key}"' for key in keys)


def _plain_rows(name: str, document: list[Any]) -> Iterator[Row]:
    marked = span_keys(value for value in document if isinstance(value, dict))
    for number, value in enumerate(document):
        where = f"{name}:[{number}]"
        if isinstance(value, dict):
            yield Row(with_spans(value, marked), where)
        else:
            yield Row({}, where, f"is {kind_of(value)}; an object is needed")


# Parquet to rows


def _parquet_reader(name: str, binary: io.BufferedReader, stack: ExitStack) -> RowReader:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not binary.peek(1):
        _empty(name)
    try:
        # A buffer, so that a row group is not held in memory whole.
        file = stack.enter_context(pq.ParquetFile(binary, buffer_size=CHUNK))
        schema = file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        fix = "Write the file again, or name it after its format."
        raise DataError(name, f"is not a sound Parquet file ({reason})", fix=fix) from error
    _check_unique(name, schema.names)
    return RowReader(
        name, "parquet", schema.names, _parquet_rows(name, file, schema.names), stack.pop_all(), None, schema
    )


def _parquet_rows(name: str, file: Any, columns: list[str]) -> Iterator[Row]:
    import pyarrow as pa

    done = 0
    try:
        for batch in file.iter_batches(batch_size=_BATCH):
            for values in zip(*map(_plain_values, batch.columns), strict=True):
                done += 1
                yield Row(dict(zip(columns, values, strict=True)), f"{name}:row {done}")
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise DataError(f"{name}:row {done + 1}", f"cannot be read ({reason})", fix="Write the file again.") from error


def _plain_values(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        return [_plain_value(scalar) for scalar in column]


def _plain_value(scalar: Any) -> Any:
    """A Python value; or nanoseconds as ISO text, and a year past 9999 as a number of the column's unit."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        if not hasattr(scalar, "value"):
            raise
        return str(scalar.cast("string")) if str(scalar.type).startswith("timestamp[ns") else scalar.value
