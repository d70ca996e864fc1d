"""Places in a text as other programs count them: in UTF-16 units, or with a line end of two characters as one."""

from __future__ import annotations


def is_whole(text: str, start: int, end: int) -> bool:
    """Whether a part of a text is there, and neither begins nor ends in white space or inside a word.

    Args:
        text: the text.
        start: the first character, in code points.
        end: the character after the last.

    Example:
        >>> is_whole("Rome fell", 0, 4), is_whole("Rome fell", 0, 3)
        (True, False)
    """
    part = text[max(start, 0) : end]
    if not 0 <= start < end <= len(text) or part != part.strip():
        return False
    cuts_first = text[start - 1 : start].isalnum() and part[0].isalnum()
    return not (cuts_first or (part[-1].isalnum() and text[end : end + 1].isalnum()))


def utf16_place(text: str, start: int, end: int, *, one_line_end: bool = False) -> tuple[int, int] | None:
    """A place in UTF-16 units, as browsers and Java count, in code points.

    Args:
        text: the text.
        start: the first unit.
        end: the unit after the last.
        one_line_end: whether a carriage return with a line feed counts as one character.

    Returns:
        Start and end in code points; None if there is no such place.

    Example:
        >>> utf16_place("\U0001f44d ok", 3, 5)
        (2, 4)
    """
    if not 0 <= start < end:
        return None
    found, unit = {0: 0}, 0
    for place, letter in enumerate(text, 1):
        if not (one_line_end and letter == "\r" and text[place : place + 1] == "\n"):
            unit += 1 + (ord(letter) > 0xFFFF)
        found.setdefault(unit, place)
    if start not in found or end not in found:
        return None
    return found[start], found[end]
