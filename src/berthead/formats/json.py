"""JSON: an object a line, or a document that holds rows."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO

from berthead.errors import DataError, listed
from berthead.formats.annotations import span_keys, with_spans
from berthead.formats.answers import ANSWERS
from berthead.formats.documents import Document
from berthead.formats.format import Content, Format, Source, Writing
from berthead.formats.json_values import kind_of
from berthead.formats.lines import copy_files, count_line_ends
from berthead.formats.values import ESCAPE, json_of
from berthead.records import Row

_SEARCH = 1000  # rows in which every key should show, and a first object


def json_lines(name: str, lines: Iterator[str]) -> tuple[list[str], Iterator[Row]]:
    """The keys of the first thousand rows, and all rows; blank lines are skipped."""
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
    """Why a text is not JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    # Else a number of more than 4,300 digits.
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


def _spanned(row: Row, marked: frozenset[str]) -> Row:
    """The row, with spans if it is one of doccano's."""
    try:
        values = with_spans(row.values, marked)
    except ValueError as error:
        return Row(row.values, row.where, row.error or str(error))
    return row if values is row.values else Row(values, row.where, row.error)


def _keys(rows: Iterable[Row]) -> list[str]:
    """The keys of these rows, each once; bad rows are ignored."""
    return list(dict.fromkeys(key for row in rows if not row.error for key in row.values))


def json_document(name: str, asked: Sequence[Document], lines: Iterator[str]) -> Content:
    """Format, columns and rows of a document, which is held in memory.

    Args:
        name: the file, for errors and locations.
        asked: the kinds of documents allowed.
        lines: its text.

    Raises:
        DataError: it is not JSON, or holds something else.
    """
    document = _document(name, "".join(lines))
    kind = next((one for one in asked if one.is_one(document)), None)
    if kind is None:
        allowed = "; or ".join(filter(None, ("; ".join(one.described for one in asked[:-1]), asked[-1].described)))
        raise DataError(name, _described(document, asked), allowed, "Check that this is the right file.")
    rows = kind.rows(name, document)
    seen = list(itertools.islice(rows, _SEARCH))
    needed = kind.needed + ((kind.target,) if kind.target and all(row.error for row in seen) else ())
    columns = list(dict.fromkeys([*_keys(seen), *needed]))
    if not columns:
        first = seen[0] if seen else Row({}, name, "holds no row")
        raise DataError(first.where, first.error or "is an object without keys", "objects with keys")
    return Content(columns, itertools.chain(seen, rows), kind.name)


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


def _described(document: Any, asked: Sequence[Document]) -> str:
    """What was found instead of rows."""
    if isinstance(document, list) and document:
        first = document[0]
        keys = f" with the keys {_quoted(first)}" if isinstance(first, dict) and first else ""
        return f"is a JSON list that begins with {kind_of(first)}{keys}"
    if isinstance(document, dict) and document:
        lacks = [f"; {said}" for one in asked if (said := one.lacks(document))]
        return f"is a JSON object with the keys {_quoted(document)}{''.join(lacks)}"
    return "is an empty JSON document" if document in ({}, []) else f"holds nothing but {kind_of(document)}"


def _quoted(keys: Iterable[str]) -> str:
    return listed(f'"{key}"' for key in keys)


def _plain_rows(name: str, document: list[Any]) -> Iterator[Row]:
    marked = span_keys(value for value in document if isinstance(value, dict))
    for number, value in enumerate(document):
        where = f"{name}:[{number}]"
        if isinstance(value, dict):
            yield _spanned(Row(value, where), marked)
        else:
            yield Row({}, where, f"is {kind_of(value)}; expected an object")


class JsonRows:
    """JSON Lines; values keep their types.

    Args:
        stream: the output.
        check: refuses rows that the final format cannot hold.
    """

    left_out = ()

    def __init__(self, stream: BinaryIO, check: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._stream, self._check = stream, check

    def write(self, values: dict[str, Any]) -> None:
        """Add one row."""
        if self._check:
            self._check(values)
        self._stream.write((json_of(values) + "\n").encode("utf-8", ESCAPE))

    def finish(self) -> None:
        """Write the remaining rows; the stream stays open."""

    def abandon(self) -> None:
        """Close without finishing; the output will be discarded."""


OBJECTS = Document(
    name="json",
    described="a list of objects",
    is_one=lambda document: isinstance(document, list) and any(isinstance(row, dict) for row in document),
    rows=_plain_rows,
)

JSON_LINES = Format(
    name="jsonl",
    extensions=(".jsonl", ".ndjson"),
    read=lambda source: Content(*json_lines(source.name, source.lines)),
    writing=Writing(
        encode=lambda stream, header, whole: JsonRows(stream),
        join=lambda stream, header, parts: copy_files(stream, parts),
    ),
    sniffed=lambda head: head.strip().startswith("{"),
    count=count_line_ends,
)


def document_formats(*kinds: Document) -> tuple[Format, ...]:
    """A format for JSON documents of any kind, recognised by their content, and a format for each kind.

    Args:
        kinds: the kinds of documents; a plain list of objects is read too.
    """
    return (
        Format(
            "json",
            partial(_read_document, asked=(*kinds, OBJECTS)),
            (".json",),
            ANSWERS,
            sniffed=partial(_begins, kinds),
            is_document=True,
        ),
        *(Format(kind.name, partial(_read_document, asked=(kind,)), is_document=True) for kind in kinds),
    )


def _read_document(source: Source, asked: Sequence[Document]) -> Content:
    return json_document(source.name, asked, source.lines)


def _begins(kinds: Sequence[Document], head: str) -> bool:
    """Whether a first line starts a document: JSON that continues after the line, a list, or a complete document."""
    head = head.strip()
    if re.match(r"\[\s*([{\]]|$)", head) or (head.startswith("{") and head.endswith(("{", "["))):
        return True
    with suppress(ValueError, RecursionError):
        return head.startswith("{") and any(kind.is_one(json.loads(head)) for kind in kinds)
    return False
