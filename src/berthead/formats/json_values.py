"""Values read from JSON: their types in words, and keys that must be there."""

from __future__ import annotations

from typing import Any

_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
_WANTED = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def kind_of(value: Any) -> str:
    """The JSON type of a value, in words.

    Args:
        value: a value from JSON.

    Returns:
        `a list`, `a text`, `null` and so on.

    Example:
        >>> kind_of([]), kind_of(None)
        ('a list', 'null')
    """
    return _KINDS.get(type(value), "null")


def wanted(values: dict[str, Any], key: str, kind: type, place: str = "") -> Any:
    """The value of a key that must be there.

    Args:
        values: an object of JSON.
        key: the key.
        kind: dict, list, str or int; true and false are not int.
        place: the object's position in its row, for the message.

    Returns:
        The value, of this kind.

    Raises:
        ValueError: it is missing or of another kind; the message names place and key.

    Example:
        >>> wanted({"start": 3}, "start", int)
        3
    """
    need, before = f"expected {_WANTED[kind]}", f"{place} " if place else ""
    if key not in values:
        raise ValueError(f'{before}has no "{key}"; {need}')
    value = values[key]
    if type(value) is not kind:
        raise ValueError(f'{before}has {kind_of(value)} as "{key}"; {need}')
    return value
