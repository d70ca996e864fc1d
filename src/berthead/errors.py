"""All errors for users: where, what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any, ClassVar, Self

_LONGEST = 1200  # characters of what was seen, in a message


class BertheadError(Exception):
    """An error that a user can act on.

    Args:
        where: the place, as `file:line`, a folder, a flag or an argument.
        saw: what was found there.
        expected: what is allowed, such as `a number above 0` (optional).
        fix: what to do next (optional).
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, where: str, saw: str, expected: str = "", fix: str = "") -> None:
        self.where, self.saw, self.expected, self.fix = where, saw, expected, fix
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The message in the words of the command line; what Python shows may say `label=...` for `--label ...`."""
        # Libraries quote whole files in their reasons.
        short = self.saw if len(self.saw) <= _LONGEST else f"{self.saw[:_LONGEST]} ..."
        seen = f"{short}; expected {self.expected}" if self.expected else short
        message = f"{self.where}: {seen}" if self.where else seen
        end = "" if message.endswith("?") else "."  # behind `Did you mean "label"?`
        return printable(f"{message}{end} {self.fix}" if self.fix else message)

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is pickled as its class and the one message; other processes are to raise the same error.
        return type(self), (self.where, self.saw, self.expected, self.fix), self.__dict__


class UsageError(BertheadError, ValueError):
    """A flag, an option or an argument that cannot be used."""

    exit_code = 2
    http_status = 400


class DataError(BertheadError, ValueError):
    """Rows, columns or labels that cannot be used.

    Attributes:
        row: the number of the row, from 0, if the raiser does not know its location.
    """

    exit_code = 3
    http_status = 422
    row: int | None = None

    def about(self, row: int) -> Self:
        """The same error, about this row."""
        self.row = row
        return self


class ModelError(BertheadError):
    """An encoder or a model folder that is missing, broken or not to be trusted."""

    exit_code = 2
    http_status = 503


class OutputError(BertheadError):
    """A result that could not be written."""

    exit_code = 6
    http_status = 500


class MachineError(BertheadError):
    """Too little memory, or a needed process died."""

    exit_code = 1
    http_status = 503


class GateError(BertheadError):
    """A failed check: golden examples, a quality bound."""

    exit_code = 5
    http_status = 503


class Interrupted(BertheadError):
    """The user stopped the work; finished work is kept."""

    exit_code = 130
    http_status = 503


# Control characters but for tabs and line ends, those that change the order of letters, and halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""A text for a terminal: what would move its cursor or change its colours is shown as `\u001b`, as in JSON.

    Args:
        text: what data, file names or records hold, and words around it; JSON stays the same JSON.

    Returns:
        The text with such characters escaped; tabs and line ends stay.

    Example:
        >>> printable("red\x1b[31m")
        'red\\u001b[31m'
    """
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that suggests the nearest known word, or "".

    Args:
        word: what was typed.
        known: the words that exist.

    Returns:
        `Did you mean "label"?`, or the empty string if nothing is near.

    Example:
        >>> did_you_mean("lable", ["text", "label"])
        'Did you mean "label"?'
    """
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), list(names), n=1, cutoff=0.6)
    return f'Did you mean "{names[near[0]]}"?' if near else ""


def listed(items: Iterable[object], most: int = 10) -> str:
    """Items as a short comma-separated list: `a, b, c and 7 more`."""
    texts = [str(item) for item in items]
    shown = ", ".join(texts[:most])
    return shown if len(texts) <= most else f"{shown} and {len(texts) - most} more"


def shown(label: Any) -> str:
    """A label as shown in messages: text in quotes, numbers without."""
    return json.dumps(label, ensure_ascii=False, default=str)


def counted(number: int, unit: str) -> str:
    """A number with its unit, in the singular for one.

    Args:
        number: how many.
        unit: what is counted, in the singular; its plural ends in s.

    Returns:
        `1 row`, `2,000 rows`.

    Example:
        >>> counted(1, "row"), counted(2000, "row")
        ('1 row', '2,000 rows')
    """
    return f"{number:,} {unit}{'' if number == 1 else 's'}"
