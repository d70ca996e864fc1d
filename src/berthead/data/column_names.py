"""Names of columns: given, usual, or the same in another case."""

from __future__ import annotations

from collections.abc import Sequence

from berthead.data.forms import SYNONYMS
from berthead.errors import DataError, did_you_mean, listed


def find_column(role: str, wanted: str | None, columns: Sequence[str], where: str, usual: tuple[str, ...] = ()) -> str:
    """The column that plays a role.

    Args:
        role: `text`, `pair`, `label` or another.
        wanted: the given name; None: the usual names are tried.
        columns: the columns there are.
        where: the file, for errors.
        usual: the role's usual names; empty: those of a single text.

    Returns:
        A name in `columns`.

    Raises:
        DataError: there is no such column; the nearest name is suggested.

    Example:
        >>> find_column("text", None, ["id", "sentence"], "a.csv")
        'sentence'
    """
    names = (wanted,) if wanted else usual or SYNONYMS[role]
    for name in names:
        if name in columns:
            return name
    for name in names:
        if (same := same_name(name, columns)) is not None:
            return same
    seen = f'has no column "{wanted}"' if wanted else f"has no column for the {role}"
    fix = did_you_mean(wanted, columns) if wanted else ""
    raise DataError(where, seen, f"one of its columns: {listed(columns, 20)}", fix or f"Name one: --{role} COLUMN.")


def same_name(name: str, columns: Sequence[str]) -> str | None:
    """The column of this name, or the only one whose name differs in case or in blanks around it; None: there is none.

    Example:
        >>> same_name("text", ["Text", "Label"]), same_name("text", ["Text", "TEXT"])
        ('Text', None)
    """
    if name in columns:
        return name
    same = [one for one in columns if one.strip().casefold() == name.strip().casefold()]
    return same[0] if len(same) == 1 else None
