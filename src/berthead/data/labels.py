"""Label names and their numbers; a label keeps its type from the user's data."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from berthead.errors import DataError, counted, did_you_mean, listed, shown
from berthead.records import Label

MOST_LABELS = 1_000


class Labels:
    """The labels that a function knows, in a fixed order.

    Args:
        names: the labels; "0", 0 and False are three labels.

    Example:
        >>> labels = Labels(["0", 0])
        >>> labels.number(0), labels.number("0")
        (1, 0)
    """

    def __init__(self, names: Sequence[Label]) -> None:
        self.names = tuple(names)
        self._numbers = {_key(name): number for number, name in enumerate(self.names)}
        self._by_text: dict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(self.names):
            self._by_text[text_of_label(name)].append(number)
        if len(self._numbers) < len(self.names):
            raise DataError("labels", "a label occurs twice", "each label once")

    @classmethod
    def from_values(cls, values: Iterable[Label]) -> Labels:
        """The distinct labels of these values, sorted by type and then by value.

        Args:
            values: labels, with repetitions.

        Returns:
            The labels.
        """
        distinct = {_key(value): value for value in values}
        return cls([distinct[key] for key in sorted(distinct)])

    @classmethod
    def from_json(cls, names: Any) -> Labels:
        """The labels from their JSON.

        Args:
            names: the value in JSON.

        Returns:
            The labels.

        Raises:
            ValueError: it is no list of texts, numbers, true and false, each once (a DataError is one too).
        """
        sound = isinstance(names, list) and len(names) > 0
        if not sound or not all(isinstance(name, str | int | float | bool) for name in names):
            raise ValueError(f"labels are {shown(names)[:60]}; expected a list of texts, numbers or booleans")
        return cls(names)

    def __len__(self) -> int:
        return len(self.names)

    def number(self, label: Label) -> int:
        """The number of a label, from 0.

        A label of another type is the one that reads the same: a csv file holds "1" where a data frame holds 1 or 1.0.

        Raises:
            KeyError: the label is not known, or reads like two; `unknown` says so in words.

        Example:
            >>> Labels(["1", "2"]).number(2.0)
            1
        """
        number = self._numbers.get(_key(label))
        if number is not None:
            return number
        same = self._by_text.get(text_of_label(label), ())
        if len(same) != 1:
            raise KeyError(label)
        return same[0]

    def unknown(self, label: Any) -> tuple[str, str]:
        """The message for an unknown label: what was found, and what is allowed."""
        same = [self.names[number] for number in self._by_text.get(text_of_label(label), ())]
        if same:
            labels = " and ".join(f"{shown(name)} ({kind_of(name)})" for name in same)
            return (
                f"is {shown(label)} ({kind_of(label)})",
                f"expected a label of one type: the known labels {labels} read the same",
            )
        near = did_you_mean(str(label), [str(name) for name in self.names])
        known = f"expected one of {counted(len(self), 'known label')}: {listed(map(shown, self.names))}"
        kinds = {kind_of(name) for name in self.names}
        other = (
            f" ({kind_of(label)}; the labels are of type {listed(sorted(kinds))})"
            if kind_of(label) not in kinds
            else ""
        )
        return f"is {shown(label)}{other}", f"{known}. {near}" if near else known

    def texts(self) -> list[str]:
        """Each label as a distinct text, for formats that only have text.

        Returns:
            `str(label)`, with the type's name if two labels would read the same.
        """
        counts = Counter(str(name) for name in self.names)
        taken = {name for name in self.names if isinstance(name, str)}
        texts = []
        for name in self.names:
            text = str(name)
            if not isinstance(name, str) and counts[text] > 1:
                text += f" ({type(name).__name__})"
                while text in taken:
                    text += "'"
                taken.add(text)
            texts.append(text)
        return texts

    def keys(self) -> list[Label]:
        """The labels as dict keys: their texts if Python treats two labels as equal, such as 0 and False."""
        return list(self.names) if len(set(self.names)) == len(self) else list(self.texts())


def is_blank(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, or white space. "None" and "NA" are text."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas' own nothings
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, str) and not value.strip()


def plain(value: Any) -> Any:
    """A numpy or pandas scalar as the plain Python value; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


_TYPES = {str: "text", bool: "boolean", int: "integer", float: "float"}
_DECIMAL = re.compile(r"(-?(?:0|[1-9]\d{0,14}))\.(\d{1,15})")


def kind_of(label: Any) -> str:
    """The type of a label in words: text, boolean, integer or float."""
    return _TYPES.get(type(label), type(label).__name__)


def text_of_label(label: Label) -> str:
    """What a label reads like in a file of text, whatever its type.

    Example:
        >>> text_of_label(1), text_of_label(1.0), text_of_label("1.0"), text_of_label(True), text_of_label("007")
        ('1', '1', '1', 'true', '007')
    """
    text = str(label)
    if isinstance(label, bool) or text in ("True", "TRUE", "False", "FALSE"):
        return text.lower()
    if decimal := _DECIMAL.fullmatch(text):  # 1.50 is 1.5, and 1.0 is 1
        fraction = decimal[2].rstrip("0")
        return f"{decimal[1]}.{fraction}" if fraction else decimal[1].replace("-0", "0")
    return text


def _key(label: Label) -> tuple[str, Label]:
    return type(label).__name__, label
