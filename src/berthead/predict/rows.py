"""Rows of a file, a data frame or a list of dicts; with targets for scoring."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from berthead.data.examples import rows_of, sound_examples, to_example
from berthead.data.frames import KINDS, collected, is_columns, is_frame, records_of, rows_of_columns
from berthead.data.words import WordTable
from berthead.errors import DataError
from berthead.formats.readers import RowReader, open_rows
from berthead.function.protocol import Function
from berthead.options import ROW_OPTIONS, PredictOptions
from berthead.predict.columns import input_columns, named_columns
from berthead.predict.reading import split_readable
from berthead.records import Example, Row
from berthead.tasks import Task


def read_rows(data: Any) -> tuple[list[str], Iterable[Row], str]:
    """Columns, rows and name of a file, a data frame or a list of dicts.

    Args:
        data: a path, `-`, a data frame of pandas or polars, an Arrow table, a dict of columns, or dicts.

    Returns:
        Column names, rows, and the data's name for messages.

    Raises:
        DataError: it is empty or of another type.
    """
    if isinstance(data, str | Path):
        reader = open_rows(data)
        return reader.columns, reader, reader.name
    data = collected(data)
    if is_frame(data):
        records = records_of(data, "data")
    elif is_columns(data):
        records = rows_of_columns(data, "data")
    else:
        records = list(data) if isinstance(data, Iterable) and not isinstance(data, Mapping) else [data]
    if not records:
        raise DataError("data", "is empty", "at least two labelled rows")
    if not all(isinstance(record, dict) for record in records):
        raise DataError("data", f"holds {type(records[0]).__name__}", f"a file, a list of dicts, {KINDS}")
    return list(dict.fromkeys(str(name) for record in records for name in record)), rows_of(records), "data"


def in_sentences(
    rows: Iterable[Row], names: Sequence[str], form: str, wanted: Mapping[str, Any], where: str
) -> tuple[Iterable[Row], str | None]:
    """Labelled rows of a word each as rows of a sentence.

    Args:
        rows: of `read_rows`.
        names: their columns.
        form: a key of `FORMS`.
        wanted: role to the given column, as for `Columns.find`.
        where: the data, for errors.

    Returns:
        The rows of sentences, and the column of their words; the same rows and None, if they hold other things.

    Raises:
        DataError: there is a word a row, and no column says where a sentence begins.
    """
    if isinstance(rows, RowReader):
        words = WordTable.find(form, wanted, names, rows.peek, where)
        if words is not None:
            rows.through(words.sentences, words.note)
    else:
        held, others = list[Row](), iter(rows)

        def peek(most: int) -> list[Row]:
            held.extend(itertools.islice(others, most))
            return held

        words = WordTable.find(form, wanted, names, peek, where)
        rows = itertools.chain(held, others)
        rows = rows if words is None else words.sentences(rows)
    return rows, words.word if words else None


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows for scoring functions.

    Args:
        examples: the good rows, with targets unless `labelled` is false.
        bad: the other rows, as `file:line: what is wrong`.
        notes: notes about them.
        labelled: whether there were targets to read.
        skips_bad: whether bad rows are left out.
    """

    examples: list[Example]
    bad: list[str]
    notes: list[str]
    labelled: bool = True
    skips_bad: bool = False

    @property
    def left_out(self) -> list[str]:
        """The bad rows, as notes."""
        return [f"left out: {line}" for line in self.bad]

    @property
    def unscored(self) -> list[str]:
        """A note that there are no targets; empty if there are."""
        return [] if self.labelled else ["there is no column of targets: answers are compared but not scored"]


def labelled_rows(data: Any, functions: Sequence[Function], *, needed: bool = True, **flags: Any) -> LabelledRows:
    """Rows with targets, for one function or for several of one task.

    Args:
        data: a file, a data frame, or a list of dicts.
        functions: the readers; the first defines the columns; a target is good if one of them knows it.
        needed: whether targets are required; otherwise they are read if their column exists.
        flags: text, pair, label, choices and intent: columns, None: as fitted; skip_bad_rows: leave out bad rows.

    Returns:
        The rows.

    Raises:
        UsageError: an option that cannot be used.
        DataError: rows that cannot be used, or labels that no function knows.
    """
    options = PredictOptions.from_sources(flags, only=ROW_OPTIONS)
    names, rows, where = read_rows(data)
    labelled, task = True, functions[0].task
    rows, word = in_sentences(rows, names, task.form, named_columns(functions[0], options, names), where)
    named = replace(options, text=word or options.text)
    try:
        columns = input_columns(functions[0], named, names, where, label=True)
    except DataError:
        if needed or options.label or options.intent:
            raise
        columns, labelled = input_columns(functions[0], named, names, where, label=False), False

    def known(value: Any) -> Any:
        target = task.read(value)
        if not any(knows(one.task, target) for one in functions):
            task.check(target)
        return target

    read = (to_example(row, columns, known if labelled else None, task.settled) for row in rows)
    examples, bad = sound_examples(read, options.skip_bad_rows)
    for one in functions if options.skip_bad_rows else ():
        examples, long = split_readable(one.task, one.tokenizer, examples, one.policy)
        bad += long
    if not examples:
        what = "scored" if labelled else "answered"
        raise DataError(where, f"holds no rows that can be {what}", "rows with a text and a label")
    return LabelledRows(examples, bad, notes_on(rows) + mended(examples), labelled, options.skip_bad_rows)


def knows(task: Task, target: Any) -> bool:
    """Whether a function can answer with this target."""
    try:
        task.check(target)
    except ValueError:
        return False
    return True


def mended(examples: Iterable[Example]) -> list[str]:
    """Corrections made in the rows, as lines."""
    return [f"corrected: {example.where}: {example.note}" for example in examples if example.note]


def notes_on(rows: Iterable[Row]) -> list[str]:
    """Notes of a file's reader; empty for rows in memory."""
    return rows.notes if isinstance(rows, RowReader) else []
