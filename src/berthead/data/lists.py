"""Lists in cells of text, as JSON, Python and numpy write them."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import numpy as np

from berthead.data.labels import plain
from berthead.errors import shown

_PAIRS = {"[": "]", "(": ")", "{": "}"}
_AROUND = re.compile(r"(?:np\.|numpy\.)?(?:frozenset|set|array|list|tuple)\((.*?)(?:,\s*dtype=[^)\[\]]*)?\)", re.DOTALL)
_ITEM = re.compile(
    r"""\s*(?:np\.\w+\()?
    (?: (?P<text> '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" )
      | (?P<number> [-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)? )
      | (?P<word> True | False | None | nan ) (?!\w)
    ) \)? (?P<end> \s*,\s* | \s+ | $ )""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"True": True, "False": False, "None": None, "nan": None}


def list_in(text: str) -> list[Any] | None:
    """The flat list that a cell of text holds: JSON, or what pandas writes of a list, a tuple, a set or an array.

    Args:
        text: the cell.

    Returns:
        Its items: texts, numbers, booleans, None for a missing one; None if the cell is no list.

    Example:
        >>> list_in("['late' 'angry']"), list_in("('late',)"), list_in('["late", 1]'), list_in("late")
        (['late', 'angry'], ['late'], ['late', 1], None)
    """
    text = text.strip()
    if text.startswith("["):
        try:
            found = json.loads(text)
            return found if isinstance(found, list) else None
        except (ValueError, RecursionError):
            pass
    if around := _AROUND.fullmatch(text):
        text = around[1].strip() or "[]"
    if len(text) < 2 or text[0] not in _PAIRS or text[-1] != _PAIRS[text[0]] or text == "{}":
        return None
    inside = text[1:-1].strip()
    items = _items(inside)
    # Python writes a tuple of one with a comma: (late) is a word in brackets.
    return None if items is not None and text[0] == "(" and inside and "," not in inside else items


def list_of(value: Any) -> list[Any] | None:
    """A list, or the list in a cell of text; None for anything else.

    Args:
        value: a cell.

    Example:
        >>> list_of(("a", "b")), list_of('["a"]'), list_of("[sic]")
        (['a', 'b'], ['a'], None)
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "('", '("')):
        value = list_in(value)
    if isinstance(value, np.ndarray | tuple):
        value = list(value)
    return [plain(one) for one in value] if isinstance(value, list) else None


def labels_in(text: str, separator: str = "|") -> list[Any]:
    """The labels in a cell of text: a list, or names with a separator between them; blank is no label.

    Args:
        text: the cell.
        separator: what stands between two labels.

    Returns:
        The labels, those between separators without blanks around them.

    Raises:
        ValueError: it looks like a list, but is none.

    Example:
        >>> labels_in("late | angry"), labels_in("late; angry", ";"), labels_in("['late']")
        (['late', 'angry'], ['late', 'angry'], ['late'])
    """
    found = list_in(text)
    if found is not None:
        return found
    if separator not in text and looks_like_list(text):
        raise ValueError(f"is {shown(text)[:60]}, which looks like a list but is none; expected a list of quoted names")
    return [part.strip() for part in text.split(separator) if part.strip()]


def looks_like_list(text: str) -> bool:
    """Whether a cell that is no list was probably meant as one: `[late, angry]`, or an array cut off by `...`."""
    text = text.strip()
    ends = len(text) > 1 and text[0] in _PAIRS and text[-1] == _PAIRS[text[0]]
    return ends and (text[1] in "'\"" or (text[0] != "(" and any(mark in text for mark in (",", "'", '"', "..."))))


def _items(inside: str) -> list[Any] | None:
    items: list[Any] = []
    place = 0
    while place < len(inside):
        match = _ITEM.match(inside, place)
        # Python's items have commas between them, numpy's none: `'a' 'b'` are two, not the one that Python makes.
        if match is None:
            return None
        items.append(_value(match))
        place = match.end()
    return items


def _value(match: re.Match[str]) -> Any:
    if match["text"] is not None:
        try:
            return ast.literal_eval(match["text"].replace("\n", "\\n"))
        except (ValueError, SyntaxError):  # an escape that Python does not know
            return match["text"][1:-1]
    if match["number"] is not None:
        return float(match["number"]) if re.search(r"[.eE]", match["number"]) else int(match["number"])
    return _WORDS[match["word"]]
