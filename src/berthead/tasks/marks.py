"""Labelled character spans of a text, and the words that they cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from berthead.data.labels import is_blank
from berthead.errors import shown
from berthead.formats.offsets import is_whole, utf16_place
from berthead.records import Example
from berthead.text.windows import EncodedExample


class Mark(NamedTuple):
    """A labelled part of a text, by characters."""

    start: int
    end: int
    label: str


def mark_of(value: Any) -> Mark:
    """A span of the user's data as a mark.

    Args:
        value: {"start", "end", "label"}, or the three as a list.

    Returns:
        The mark.

    Raises:
        ValueError: it is something else.

    Example:
        >>> mark_of({"start": 0, "end": 4, "label": "LOC"})
        Mark(start=0, end=4, label='LOC')
    """
    if isinstance(value, list | tuple) and len(value) == 3:
        value = dict(zip(("start", "end", "label"), value, strict=True))
    if not isinstance(value, dict) or not {"start", "end", "label"} <= value.keys():
        raise ValueError(f'holds {shown(value)[:60]}; expected a span such as {{"start": 0, "end": 5, "label": "PER"}}')
    start, end, label = value["start"], value["end"], value["label"]
    if any(isinstance(place, bool) or not isinstance(place, int) for place in (start, end)) or is_blank(label):
        raise ValueError(
            f"holds the span {shown(value)[:80]}; expected whole numbers as start and end, a text as label"
        )
    if not 0 <= start < end:
        raise ValueError(f"holds the span {start}-{end}; expected a start of at least 0, and an end above it")
    return Mark(start, end, str(label))


def check_marks(marks: Sequence[Mark], text: str) -> None:
    """Check that marks are inside their text and do not overlap.

    Args:
        marks: in any order.
        text: the text.

    Raises:
        ValueError: names the first that is not.
    """
    ordered = sorted(marks)
    for mark in ordered:
        if mark.end > len(text):
            raise ValueError(
                f"holds the span {mark.start}-{mark.end} ({mark.label}); "
                f"expected an end of at most {len(text)}, the characters of the text"
            )
        if not text[mark.start : mark.end].strip():
            raise ValueError(
                f"holds the span {mark.start}-{mark.end} ({mark.label}) of white space; expected text in it"
            )
    for one, other in pairwise(ordered):
        if other.start < one.end:
            both = f"{one.start}-{one.end} ({one.label}) and {other.start}-{other.end} ({other.label})"
            raise ValueError(f"holds the spans {both}, which overlap; expected each character in one span at most")


def aligned(marks: Sequence[Mark], read: EncodedExample, text: str = "") -> tuple[list[str], list[str]]:
    """Spans of characters as BIO tags of words.

    Args:
        marks: spans that do not overlap.
        read: the words of the text.
        text: for the messages.

    Returns:
        A tag for each word, and a line for each span that begins or ends inside a word: it gets the whole word.
    """
    assert read.units is not None
    words = read.units.start >= 0
    starts, ends = read.units.start[words], read.units.end[words]
    tags, lines = ["O"] * len(starts), []
    for mark in sorted(marks):
        first = int(np.searchsorted(ends, mark.start, side="right"))
        end = int(np.searchsorted(starts, mark.end, side="left"))
        shown_mark = f"span {mark.start}-{mark.end} {shown(text[mark.start : mark.end])} ({mark.label})"
        free = [place for place in range(first, end) if tags[place] == "O"]
        if not free or len(free) < end - first:
            lines.append(f"{shown_mark} {'shares a word with another span' if end > first else 'covers no word'}")
        elif text and trimmed(text, mark) != (int(starts[first]), int(ends[end - 1])):
            whole = text[starts[first] : ends[end - 1]]
            lines.append(
                f"{shown_mark} begins or ends inside a word; {shown(whole)} is labelled, and counts as another answer"
            )
        tags[first:end] = [tags[place] if tags[place] != "O" else f"I-{mark.label}" for place in range(first, end)]
        if free:
            tags[free[0]] = f"B-{mark.label}"
    return tags, lines


def trimmed(text: str, mark: Mark) -> tuple[int, int]:
    """The start and end of a mark without white space at its ends, which no answer holds.

    Args:
        text: the text.
        mark: a part of it.

    Returns:
        Its first character, and the character after its last.

    Example:
        >>> trimmed("in Rome ", Mark(2, 8, "LOC"))
        (3, 7)
    """
    inside = text[mark.start : mark.end]
    return mark.start + len(inside) - len(inside.lstrip()), mark.end - len(inside) + len(inside.rstrip())


def in_code_points(example: Example) -> Example:
    """The example with its spans in code points, if they only fit its words in UTF-16 units."""
    text, marks = example.text, example.target
    if text.isascii() or max(text) <= "\uffff" or all(is_whole(text, mark.start, mark.end) for mark in marks):
        return example
    places = [utf16_place(text, mark.start, mark.end) for mark in marks]
    if not all(place and is_whole(text, *place) for place in places):
        return example
    moved = tuple(Mark(*place, mark.label) for place, mark in zip(places, marks, strict=True) if place)
    return replace(example, target=moved, note="its spans look like UTF-16 offsets, and are read as such")
