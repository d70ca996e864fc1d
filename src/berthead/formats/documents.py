"""What a JSON document may hold: one record each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from berthead.records import Row


@dataclass(frozen=True, slots=True)
class Document:
    """Something that is written as one JSON document.

    Args:
        name: of the format.
        described: what such a document looks like, for errors.
        is_one: whether what JSON gave is such a document.
        rows: of a document, with the file's name for places; an unsound one is a row with an error.
        needed: columns that are named although no row may have them: then the rows' own errors are told.
        target: the same, where no row is sound.
        lacks: why a document is nearly such a one, or nothing.
    """

    name: str
    described: str
    is_one: Callable[[Any], bool]
    rows: Callable[[str, Any], Iterator[Row]]
    needed: tuple[str, ...] = ()
    target: str = ""
    lacks: Callable[[Any], str] = lambda document: ""
