"""Label names and their numbers; a label keeps its type from the user's data."""

from __future__ import annotations

import math
from collections import Counter
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

        Raises:
            KeyError: the label is not known; `unknown` says so in words.
        """
        return self._numbers[_key(label)]

    def unknown(self, label: Any) -> tuple[str, str]:
        """The message for an unknown label: what was found, and what is allowed."""
        near = did_you_mean(str(label), [str(name) for name in self.names])
        known = f"expected one of {counted(len(self), 'known label')}: {listed(map(shown, self.names))}"
        return f"is {shown(label)}", f"{known}. {near}" if near else known

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


def _key(label: Label) -> tuple[str, Label]:
    return type(label).__name__, label
