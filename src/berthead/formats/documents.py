"""Kinds of JSON documents: one record each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from berthead.records import Row


@dataclass(frozen=True, slots=True)
class Document:
    """A kind of JSON document.

    Args:
        name: the format's name.
        described: what such a document looks like, for errors.
        is_one: whether a JSON value is such a document.
        rows: the rows of a document, with the file's name for locations; an invalid one is a row with an error.
        needed: columns listed even if no row has them, so that the rows' own errors are reported.
        target: the same, if no row is valid.
        lacks: what a similar document lacks, or empty.
    """

    name: str
    described: str
    is_one: Callable[[Any], bool]
    rows: Callable[[str, Any], Iterator[Row]]
    needed: tuple[str, ...] = ()
    target: str = ""
    lacks: Callable[[Any], str] = lambda document: ""
