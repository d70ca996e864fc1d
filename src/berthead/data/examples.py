"""Rows to examples of a task's form."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from berthead.data.choices import choice_columns, choices_in, named_choice
from berthead.data.column_names import find_column
from berthead.data.forms import FORMS, Form
from berthead.data.labels import is_blank, plain, text_of_label
from berthead.data.lists import labels_in, list_of
from berthead.errors import DataError, UsageError, listed, shown
from berthead.records import Example, Row

# Characters of a row: tokens take up to a hundred bytes a character, so longer texts would fill the memory.
LONGEST_TEXT = 10_000_000
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class TargetCells:
    """The cells of a target that has a column for each of several numbers.

    Args:
        cells: by column.
    """

    cells: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what.

    Args:
        text: the column of the text, the tokens or the question.
        pair: of the second text or the context, or None.
        label: of the target, or a column for each label or number, with commas between them; None: targets are not
            read.
        choices: of the choices: one with lists, or one for each choice.
        intent: of the label beside the tags, or None.
        form: a key of FORMS.
        tag_names: the names of tags that are numbers, in their order; empty: tags are names.
        separator: what separates the labels in a cell of text, or None: the task's own.
        numbers: whether several columns of the target hold numbers; else 0 or 1, whether a row has their label.
    """

    text: str
    pair: str | None = None
    label: str | None = None
    choices: tuple[str, ...] = ()
    intent: str | None = None
    form: str = "text"
    tag_names: tuple[str, ...] = ()
    separator: str | None = None
    numbers: bool = False

    @classmethod
    def find(
        cls, form: str, wanted: Mapping[str, Any], names: Sequence[str], where: str, *, label: bool = True,
        several: bool = False, numbers: bool = False,
    ) -> Columns:  # fmt: skip
        """The columns of a file.

        Args:
            form: a key of FORMS.
            wanted: role to the given column; None: the usual names are tried. `pair` may be False: there is none.
            names: the file's columns.
            where: the file, for errors.
            label: whether targets are read.
            several: whether a target is a list of labels.
            numbers: whether a target may be several numbers.

        Returns:
            The columns.

        Raises:
            DataError: a column is missing.
            UsageError: a role was named that this form does not have.
        """
        kind = FORMS[form]
        for role in ("pair", "choices", "intent"):
            if wanted.get(role) and not getattr(kind, role):
                raise UsageError(
                    f"--{role}", f'is "{wanted[role]}", but this task reads no such column', "", f"Leave --{role} out."
                )

        separator = wanted.get("separator")
        if separator is not None and (not several or not separator.strip()):
            saw = f'is "{separator}"' + ("" if several else ", but this task reads no lists of labels")
            allowed = 'a mark such as "," or ";"' if several else ""
            raise UsageError("--separator", saw, allowed, "" if several else "Leave --separator out.")

        def find(role: str, usual: tuple[str, ...]) -> str:
            return find_column(role, wanted.get(role), names, where, usual)

        text = find("text", kind.text)
        has_pair = kind.needs_pair or wanted.get("pair")
        if kind.choices and wanted.get("pair") is None:  # what a question is about is read wherever it is given
            has_pair = any(name in names and name != text for name in kind.pair)
        return cls(
            text,
            find("pair", kind.pair) if has_pair else None,
            _label_columns(kind, wanted.get("label"), names, where, several or numbers) if label else None,
            choice_columns(kind, wanted.get("choices"), names, where) if kind.choices else (),
            find("intent", kind.intent) if kind.intent and label else None,
            form,
            tuple(wanted.get("tag_names") or ()),
            separator,
            numbers,
        )

    def to_dict(self) -> dict[str, Any]:
        """The names; those of choices and intent, and the separator, if there are any."""
        names: dict[str, Any] = {"text": self.text, "pair": self.pair, "label": self.label}
        names |= {"choices": list(self.choices)} if self.choices else {}
        names |= {"intent": self.intent} if self.intent else {}
        names |= {"tag_names": list(self.tag_names)} if self.tag_names else {}
        return names | ({"separator": self.separator} if self.separator else {})

    def target_cell(self, row: Row) -> Any:
        """The cell of the target: a list of labels if each has a column, or if they are separated by a given mark.

        Of several numbers it is all their cells, as `TargetCells`.

        Raises:
            ValueError: a column of a label holds something other than 0 and 1.
        """
        label = self.label or ""
        if label in row.values or "," not in label:
            cell = row.values.get(label)
            return labels_in(cell, self.separator) if self.separator and isinstance(cell, str) else cell
        names = label.split(",")
        if self.numbers:
            return TargetCells({name: row.values.get(name) for name in names})
        return [name for name in names if _is_one(row.values.get(name), name)]


def _label_columns(kind: Form, wanted: Any, names: Sequence[str], where: str, several: bool) -> str:
    """The column of the target, or those of the labels with commas between them."""
    if not wanted or wanted in names or "," not in wanted:
        return find_column("label", wanted, names, where, kind.label)
    if not several:
        saw = f'names several columns, "{wanted}", but this task reads one'
        fix = "For several labels a row: --task multilabel; for several numbers: --task regress."
        raise UsageError("--label", saw, "", fix)
    found = [find_column("label", name.strip(), names, where) for name in wanted.split(",")]
    if len(set(found)) < len(found):
        raise UsageError("--label", f'is "{wanted}"', "each column once")
    return ",".join(found)


def _is_one(cell: Any, name: str) -> bool:
    """Whether a cell of a label's own column says that the row has the label."""
    cell = plain(cell)
    text = "" if is_blank(cell) else text_of_label(cell).strip()
    if text not in ("0", "1", "true", "false"):
        seen = "is blank" if is_blank(cell) else f"is {shown(cell)[:60]}"
        numbers = "; for numbers: --task regress" if _NUMBER.fullmatch(text) else ""
        raise CellError(name, f"{seen}; expected 0 or 1: whether the row has this label{numbers}")
    return text in ("1", "true")


class CellError(ValueError):
    """An error in a cell other than the label's.

    Args:
        role: which column: "intent", or a name in a table.
        fault: what was found and what is allowed.

    Example:
        >>> CellError("intent", "is blank").role
        'intent'
    """

    def __init__(self, role: str, fault: str) -> None:
        super().__init__(fault)
        self.role = role


def to_example(
    row: Row, columns: Columns, read: Callable[[Any], Any] | None,
    settle: Callable[[Example], Example] | None = None,
) -> Example:  # fmt: skip
    """A row as an example; a fault in the row becomes its error.

    Args:
        row: the row.
        columns: the columns of text, target and so on.
        read: a cell to a target (raises ValueError, or CellError about another column); None: targets are not read.
        settle: adapts the target to the text (raises ValueError), or None.

    Returns:
        The example.
    """
    if row.error:
        return Example("", where=row.where, error=row.error)
    try:
        example = _untargeted(row, columns)
    except ValueError as error:
        return Example("", where=row.where, error=str(error))
    length = len(example.text) + len(example.pair or "") + sum(map(len, example.choices or ()))
    if length > LONGEST_TEXT:
        fault = f"has {length:,} characters; expected at most {LONGEST_TEXT:,}: divide it into several rows"
        return Example("", where=row.where, error=fault)
    if columns.label is None or read is None:
        return example
    try:
        cell = columns.target_cell(row)
        if columns.tag_names:
            cell = _named_tags(cell, columns.tag_names)
        if columns.intent is not None:
            cell = cell, row.values.get(columns.intent)
        if columns.choices:
            cell = named_choice(row, columns.choices, cell), example.choices
        example = replace(example, target=read(cell))
        return settle(example) if settle else example
    except ValueError as error:
        column = getattr(columns, error.role, error.role) if isinstance(error, CellError) else columns.label
        return Example("", where=row.where, error=f'column "{column}" {error}')


def _untargeted(row: Row, columns: Columns) -> Example:
    """Texts, words and choices of a row, without the target; ValueError says what is wrong."""
    words = _words(row, columns.text) if FORMS[columns.form].reads_words else None
    text = " ".join(words) if words is not None else _cell_text(row, columns.text)
    pair = _cell_text(row, columns.pair) if columns.pair else None
    return Example(
        text, pair, None, row.where, words=words, choices=choices_in(row, columns.choices) if columns.choices else None
    )


def _named_tags(cell: Any, names: Sequence[str]) -> Any:
    """Numbers of tags, in files of text too, as their names; anything else as it is."""
    tags = list_of(cell)
    if tags and all(isinstance(tag, str) and tag.isdecimal() for tag in tags):
        tags = [int(tag) for tag in tags]
    if not tags or not all(isinstance(tag, int) and not isinstance(tag, bool) for tag in tags):
        return cell
    if odd := [tag for tag in tags if not 0 <= tag < len(names)]:
        raise ValueError(
            f"holds the tag {odd[0]}; expected 0 to {len(names) - 1}, as --tag-names has {len(names)} names"
        )
    return [names[tag] for tag in tags]


def _cell_text(row: Row, column: str) -> str:
    value = plain(row.values.get(column))
    if is_blank(value):
        seen = "is missing" if column not in row.values else "is blank"
        raise ValueError(f'column "{column}" {seen}; expected a text')
    if isinstance(value, dict | list | tuple | set | bytes | np.ndarray):
        raise ValueError(f'column "{column}" is {shown(value)[:60]}; expected a text')
    return value if isinstance(value, str) else str(value)


def _words(row: Row, column: str) -> tuple[str, ...] | None:
    """The tokens in a cell: a list, or its JSON; None if it holds a text."""
    value = list_of(row.values.get(column))
    if value is None:
        return None
    for number, word in enumerate(value):
        if not isinstance(word, str) or not word:
            raise ValueError(f'column "{column}" holds {shown(word)[:60]} as token {number + 1}; expected a text')
    if not any(word.strip() for word in value):
        raise ValueError(f'column "{column}" holds no token; expected at least one')
    return tuple(value)


def sound_examples(examples: Iterable[Example], skip_bad_rows: bool, most: int = 5) -> tuple[list[Example], list[str]]:
    """Examples without errors, and the errors as lines.

    Args:
        examples: all examples.
        skip_bad_rows: leave bad rows out; otherwise they are an error.
        most: the most errors shown in the message.

    Returns:
        The good examples, and `file:line: what is wrong` for each of the others.

    Raises:
        DataError: there are bad rows, without `skip_bad_rows`.
    """
    sound: list[Example] = []
    bad: list[Example] = []
    for example in examples:
        (bad if example.error else sound).append(example)
    if bad and not skip_bad_rows:
        more = f" ({len(bad)} such rows: {listed((one.where for one in bad), most)})" if len(bad) > 1 else ""
        raise DataError(
            bad[0].where, f"{bad[0].error}{more}", "", "Correct them, or leave them out with --skip-bad-rows."
        )
    return sound, [f"{one.where}: {one.error}" for one in bad]


def rows_of(records: Iterable[Mapping[Any, Any]]) -> Iterator[Row]:
    """Dicts in memory as rows, numbered from 1; names that are numbers become text."""
    for number, values in enumerate(records, start=1):
        yield Row({str(name): value for name, value in values.items()}, f"row {number}")
