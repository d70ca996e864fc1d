"""The choices of a question: their columns, and their cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from berthead.data.column_names import find_column, same_name
from berthead.data.forms import Form
from berthead.data.labels import is_blank, plain
from berthead.data.lists import list_of
from berthead.errors import DataError, counted, listed, shown
from berthead.records import Row

# A column for each choice, such as choice_1, option B, ending0, or A, B, C.
_CHOICE_COLUMN = re.compile(r"((choice|option|ending|answer)[ _-]?([0-9]+|[a-h])|[A-H])", re.IGNORECASE)


def choice_columns(kind: Form, wanted: Any, names: Sequence[str], where: str) -> tuple[str, ...]:
    """The columns of the choices: those given, one with lists, or two or more with names such as `choice_a`."""
    if wanted:
        named = wanted.split(",") if isinstance(wanted, str) else list(wanted)
        return tuple(find_column("choices", name.strip(), names, where) for name in named)
    for name in kind.choices:
        if (found := same_name(name, names)) is not None:
            return (found,)
    several = tuple(name for name in names if _CHOICE_COLUMN.fullmatch(name))
    if len(several) < 2:
        saw = "has no column of choices, nor two columns such as choice_a, choice_b"
        fix = "Name them: --choices COLUMN,COLUMN."
        raise DataError(where, saw, f"one of its columns: {listed(names, 20)}", fix)
    return several


def named_choice(row: Row, columns: Sequence[str], cell: Any) -> Any:
    """The right choice, by its text if the row gives its choices names other than letters."""
    found = row.values.get(columns[0])
    if not isinstance(found, dict) or len(columns) > 1:
        return cell
    names, texts = (list_of(found.get(key)) or [] for key in ("label", "text"))
    letters = [chr(ord("A") + place) for place in range(len(names))]
    if len(names) != len(texts) or names == letters or plain(cell) not in names:
        return cell
    return texts[names.index(plain(cell))]


def choices_in(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    """The choices of a row: from a column with a list, or from the columns that are not blank."""
    if len(columns) > 1:
        cells = [plain(row.values.get(name)) for name in columns]
        while cells and is_blank(cells[-1]):
            cells.pop()  # rows may have fewer choices than columns
        where = list(columns)
    else:
        value = row.values.get(columns[0])
        found = list_of(value.get("text") if isinstance(value, dict) else value)
        if found is None:
            seen = shown(row.values.get(columns[0]))[:60]
            raise ValueError(f'column "{columns[0]}" is {seen}; expected a list of choices')
        cells, where = found, [columns[0]] * len(found)
    for number, cell in enumerate(cells):
        if is_blank(cell) or isinstance(cell, dict | list | tuple):
            seen = "empty" if is_blank(cell) else shown(cell)[:60]
            raise ValueError(
                f'column "{where[number]}": choice {number + 1} of {len(cells)} is {seen}; expected a text'
            )
    if len(cells) < 2:
        raise ValueError(f'column "{columns[0]}" holds {counted(len(cells), "choice")}; expected at least 2')
    return tuple(str(cell) for cell in cells)
