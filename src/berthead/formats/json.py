"""JSON to rows: an object a line, or a document that holds SQuAD, a Label Studio export or a list of objects."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from berthead.errors import DataError, listed
from berthead.formats.annotations import is_label_studio, kind_of, label_studio_rows, span_keys, with_spans
from berthead.formats.squad import is_squad, squad_rows
from berthead.records import Row

_SQUAD = 'SQuAD, as {"data": [{"paragraphs": [...]}]}'
_STUDIO = 'a Label Studio export, as [{"data": {"text": "..."}, "annotations": [...]}]'
_DOCUMENTS = {
    "squad": _SQUAD,
    "label-studio": f"{_STUDIO}, or as JSON-MIN",
    "json": f"{_SQUAD}; {_STUDIO}; or a list of objects",
}
_SEARCH = 1000  # rows in which every key should show, and a first object


def json_lines(name: str, lines: Iterator[str]) -> tuple[list[str], Iterator[Row]]:
    """The keys of the first thousand rows, and all rows; blank lines are none."""
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


def json_document(name: str, asked: str, lines: Iterator[str]) -> tuple[str, list[str], Iterator[Row]]:
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
    if all(row.error for row in seen):
        needed += {"squad": ("answers",), "label-studio": ("spans",)}.get(format, ())
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
