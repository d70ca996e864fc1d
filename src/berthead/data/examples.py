"""Rows to examples for a task, and a seeded hold-out split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from berthead.data.labels import is_blank, plain, shown
from berthead.errors import DataError, did_you_mean, listed
from berthead.records import Example, Row

# What the field calls these columns, the first is ours.
SYNONYMS = {
    "text": ("text", "sentence", "sentence1", "premise", "content", "review", "document", "question1"),
    "pair": ("pair", "text_pair", "sentence2", "hypothesis", "question2"),
    "label": ("label", "labels", "target", "category", "class", "score"),
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold the text, the second text and the target.

    Args:
        text: the text's column.
        pair: the second text's column, or None: single texts.
        label: the target's column, or None: targets are not read.
    """

    text: str
    pair: str | None = None
    label: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """The three names."""
        return {"text": self.text, "pair": self.pair, "label": self.label}


def find_column(role: str, wanted: str | None, columns: Sequence[str], where: str) -> str:
    """The column that plays a role.

    Args:
        role: `text`, `pair` or `label`.
        wanted: the name that was given; None: the role's usual names are tried.
        columns: the columns there are.
        where: the file, for errors.

    Returns:
        A name in `columns`.

    Raises:
        DataError: there is no such column; the nearest is named.

    Example:
        >>> find_column("text", None, ["id", "sentence"], "a.csv")
        'sentence'
    """
    names = (wanted,) if wanted else SYNONYMS[role]
    for name in names:
        if name in columns:
            return name
    seen = f'has no column "{wanted}"' if wanted else f"has no column for the {role}"
    fix = did_you_mean(wanted, columns) if wanted else ""
    raise DataError(where, seen, f"its columns are {listed(columns, 20)}", fix or f"Name one: --{role} COLUMN.")


def to_example(row: Row, columns: Columns, read: Callable[[Any], Any] | None) -> Example:
    """A row as an example; what is wrong with it becomes its error.

    Args:
        row: the row.
        columns: where text, pair and target stand.
        read: a cell to a target (raises ValueError), or None: targets are not read.

    Returns:
        The example.
    """
    if row.error:
        return Example("", where=row.where, error=row.error)
    texts: list[str] = []
    for column in (columns.text, columns.pair):
        if column is None:
            continue
        value = plain(row.values.get(column))
        if is_blank(value):
            seen = "is missing" if column not in row.values else "is blank"
            return Example("", where=row.where, error=f'column "{column}" {seen}; a text is needed')
        if isinstance(value, dict | list | tuple | set | bytes | np.ndarray):
            return Example("", where=row.where, error=f'column "{column}" is {shown(value)[:60]}; a text is needed')
        texts.append(value if isinstance(value, str) else str(value))
    target = None
    if columns.label is not None and read is not None:
        try:
            target = read(row.values.get(columns.label))
        except ValueError as error:
            return Example("", where=row.where, error=f'column "{columns.label}" {error}')
    return Example(texts[0], texts[1] if columns.pair else None, target, row.where)


def sound_examples(examples: Iterable[Example], skip_bad_rows: bool, most: int = 5) -> tuple[list[Example], list[str]]:
    """Examples without errors, and the errors as lines.

    Args:
        examples: what was read.
        skip_bad_rows: leave bad rows out; otherwise they end the work.
        most: errors shown in the message.

    Returns:
        The sound examples, and `file:line: what is wrong` for each of the others.

    Raises:
        DataError: there are bad rows and they are not to be skipped.
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


def hold_out(
    examples: Sequence[Example], share: float, seed: int, group_of: Callable[[Example], Any]
) -> tuple[list[Example], list[Example]]:
    """Split examples into fitted and held-out ones.

    Equal texts stay on one side, and every group gives the same share.

    Args:
        examples: all examples.
        share: share held out, above 0 and below 1.
        seed: of the choice.
        group_of: what is kept in proportion, such as the label.

    Returns:
        Fitted and held-out examples, each in the given order.
    """
    twins: dict[tuple[str, str | None], list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        twins[example.text, example.pair].append(number)
    groups: dict[Any, list[list[int]]] = defaultdict(list)
    for numbers in twins.values():
        groups[repr(group_of(examples[numbers[0]]))].append(numbers)
    random = np.random.default_rng(seed)
    held: set[int] = set()
    rounding = 0.0
    for key in sorted(groups):
        members = groups[key]
        # What one group lost or gained by rounding the next one makes up: many small groups give their share too.
        wanted = share * len(members) + rounding
        # A group never goes to the held-out side as a whole.
        count = max(0, min(round(wanted), len(members) - 1))
        rounding = min(max(wanted - count, -0.5), 0.5)
        for index in random.permutation(len(members))[:count]:
            held.update(members[index])
    # Nor does a label whose texts all stand under other labels too.
    kept = {repr(group_of(example)) for number, example in enumerate(examples) if number not in held}
    for numbers in twins.values():
        labels = {repr(group_of(examples[number])) for number in numbers}
        if not labels <= kept:
            held.difference_update(numbers)
            kept |= labels
    fitted = [example for number, example in enumerate(examples) if number not in held]
    return fitted, [examples[number] for number in sorted(held)]


def rows_of(records: Iterable[dict[str, Any]]) -> Iterator[Row]:
    """Dicts in memory as rows, numbered from 1."""
    for number, values in enumerate(records, start=1):
        yield Row(values, f"row {number}")
