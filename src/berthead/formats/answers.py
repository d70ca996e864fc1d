"""Answers as SQuAD's own scripts read them: a JSON object of each row's id and its answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, BinaryIO

from berthead.errors import OutputError, listed, shown
from berthead.formats.format import Header, UnfitRow, Writing

# `prediction`, with the name of a function before it, and that of a target or a number behind it.
_PREDICTION = re.compile("(^|_)prediction(_|$)")


class AnswersById:
    """Rows as `{"id": "answer", ...}`; other columns are not written.

    Args:
        stream: the output.
        header: its columns, which name the answer.
    """

    left_out = ()

    def __init__(self, stream: BinaryIO, header: Header) -> None:
        self._stream, self._answer = stream, _answer_of(header)
        self._known: set[str] = set()

    def write(self, values: dict[str, Any]) -> None:
        """Add one row; UnfitRow if its id was there before."""
        check(values)
        name = str(values["id"])
        if name in self._known:
            raise UnfitRow(f"id {shown(name)}", "occurs twice", "an id for each row", "Write a .jsonl file.")
        answer = values.get(self._answer)
        line = f"{json.dumps(name)}: {json.dumps('' if answer is None else answer)}"
        self._stream.write(f"{',' if self._known else '{'}\n{line}".encode())
        self._known.add(name)

    def finish(self) -> None:
        """Close the object; the stream stays open."""
        self._stream.write(b"\n}\n" if self._known else b"{}\n")

    def abandon(self) -> None:
        """Close without finishing; the output will be discarded."""


def check(values: dict[str, Any]) -> None:
    """Refuse a row without an id: UnfitRow."""
    if not isinstance(values.get("id"), str | int) or values["id"] == "":
        saw = "has no id, under which a .json file holds its answer"
        raise UnfitRow("the row", saw, 'a column "id"', "Write a .jsonl file, which holds all columns.")


def check_added(added: Iterable[str]) -> None:
    """Refuse several answers a row: OutputError."""
    answers = list(filter(_PREDICTION.search, added))
    if len(answers) > 1:
        saw = f"holds one answer of each row, and this model gives {listed(answers)}"
        raise OutputError("a .json file", saw, "", "Write a .jsonl file, which holds all columns.")


def _answer_of(header: Header) -> str:
    return next(filter(_PREDICTION.search, header.added))


def _as_it_is(header: Header, rows: Iterable[dict[str, Any]]) -> Header:
    return header


# Parts are JSON Lines: what is one object cannot be joined from several.
ANSWERS = Writing(encode=lambda stream, header, whole: AnswersById(stream, header), learn=_as_it_is, check=check,
                  check_added=check_added)  # fmt: skip
