"""Training data of spaCy 2: pairs of a text and its entities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from berthead.formats.documents import Document
from berthead.formats.json_values import kind_of
from berthead.records import Row


def is_spacy(document: Any) -> bool:
    """Whether a JSON document is training data of spaCy 2: a text and its entities in each pair.

    Args:
        document: a value from JSON.

    Returns:
        True for a list of [text, {"entities": [...]}], or an object with such a list under "annotations".

    Example:
        >>> is_spacy([["Rome fell", {"entities": [[0, 4, "LOC"]]}]])
        True
    """
    pairs = document.get("annotations") if isinstance(document, dict) else document
    return isinstance(pairs, list) and any(_is_pair(pair) for pair in pairs)


def _is_pair(pair: Any) -> bool:
    is_two = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
    return is_two and isinstance(pair[1], dict) and "entities" in pair[1]


def _spacy_rows(name: str, document: Any) -> Iterator[Row]:
    pairs, before = (document["annotations"], "annotations") if isinstance(document, dict) else (document, "")
    for number, pair in enumerate(pairs):
        where = f"{name}:{before}[{number}]"
        if pair is None:  # a text that was skipped
            continue
        if not _is_pair(pair):
            yield Row({}, where, f'is {kind_of(pair)}; expected [text, {{"entities": [[start, end, label], ...]}}]')
            continue
        yield Row({"text": pair[0], "spans": pair[1]["entities"]}, where)


SPACY = Document(
    name="spacy",
    described='training data of spaCy, as [["...", {"entities": [[0, 5, "PER"]]}]]',
    is_one=is_spacy,
    rows=_spacy_rows,
    needed=("text",),
    target="spans",
)
