"""Python inputs (texts, tuples, dicts, data frames) to examples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from berthead.data.column_names import same_name
from berthead.data.examples import Columns, rows_of, to_example
from berthead.data.forms import FORMS
from berthead.data.frames import (
    KINDS,
    collected,
    columns_of,
    first_of,
    is_column,
    is_columns,
    is_frame,
    records_of,
    rows_of_columns,
)
from berthead.data.words import WordTable
from berthead.errors import DataError, UsageError, did_you_mean, listed, shown
from berthead.formats.registry import path_in
from berthead.function.protocol import Function
from berthead.records import Example, Row

Text = str | tuple[str, Any] | dict[str, Any]
"""One input: a text; a tuple of two texts; question and context; question and choices; a dict of its columns."""


def is_one(inputs: Any, function: Function) -> bool:
    """Whether this is one input; two texts are a pair in a tuple, and a batch of two in a list.

    Args:
        inputs: the user's value.
        function: the function that reads them.

    Returns:
        Whether `example_of` accepts it.
    """
    if isinstance(inputs, dict):
        return not _is_table(inputs, function)
    if isinstance(inputs, str):
        return True
    if not isinstance(inputs, tuple) or len(inputs) != 2 or not isinstance(inputs[0], str):
        return False
    return isinstance(inputs[1], str) or (
        bool(FORMS[function.task.form].choices) and isinstance(inputs[1], list | tuple)
    )


def _is_table(inputs: dict[Any, Any], function: Function) -> bool:
    """Whether a dict holds columns of many inputs, and not one input; a list as the text may be its tokens."""
    if FORMS[function.task.form].reads_words or not is_columns(inputs):
        return False
    names = {str(name): name for name in inputs}
    return is_column(inputs[names[columns_in(list(names), function, "predict").text]])


def refuse_path(inputs: Any) -> None:
    """Refuse a path where a text is expected: its name would be answered, not what it holds.

    Args:
        inputs: the user's value.

    Raises:
        UsageError: it is a path, or a text that is or looks like one.
    """
    is_path = isinstance(inputs, os.PathLike)
    what = path_in(inputs) if isinstance(inputs, str) else "is a path" if is_path else ""
    if what:
        name = str(inputs)
        read = os.path.join(name, "*.csv") if what == "is a folder" else name  # noqa: PTH118 - of any text
        fix = f'For all its rows: model.predict_file({shown(read)}, "answers.csv").'
        fix += "" if is_path else f" For this text itself: model.predict([{shown(name)}])."
        raise UsageError("predict", f"{shown(name)} {what}", "a text, or many inputs", fix)


def examples_of(inputs: Any, function: Function) -> Iterator[Example]:
    """Many inputs as examples, in their order.

    Args:
        inputs: an iterable of what `example_of` reads, a data frame of pandas or polars, an Arrow table, or a dict of
            columns.
        function: the function that reads them.

    Yields:
        An example an input; a fault in a cell is the example's error.

    Raises:
        DataError: another type, missing columns, or an input of another form.
    """
    inputs, where = collected(inputs), "the data frame"
    is_table = isinstance(inputs, dict) and _is_table(inputs, function)
    if is_table or is_frame(inputs):
        names = list(map(str, inputs) if is_table else columns_of(inputs, where))
        if not is_table:
            _refuse_words(names, function, where, lambda most: list(rows_of(records_of(first_of(inputs, most), where))))
        columns = columns_in(names, function, where)
        read = [name for name in (columns.text, columns.pair, *columns.choices) if name is not None]
        for row in rows_of(rows_of_columns(inputs, where) if is_table else records_of(inputs, where, read)):
            yield to_example(row, columns, None)
        return
    # Iterating these gives bytes, keys and column names, not texts.
    if isinstance(inputs, bytes | dict) or hasattr(inputs, "columns") or not isinstance(inputs, Iterable):
        allowed = f"a list of texts, of tuples or of dicts, {KINDS}"
        raise DataError("predict", f"got {type(inputs).__name__}", allowed, "Pass one input as [input].")
    for number, value in enumerate(inputs, start=1):
        yield example_of(value, function, f"input {number}")


def example_of(value: Any, function: Function, where: str = "input") -> Example:
    """One input to an example.

    Args:
        value: a text; for pairs a tuple of two texts; for span (question, context); for choose
            (question, [choice, ...]); for tag and joint a text, or {"tokens": [...]}; or a dict with the columns that
            the function was fitted on, or with `text`, `pair` and `choices`.
        function: the function that reads it.
        where: the input's location, for errors.

    Returns:
        The example; a fault in a text, such as a blank one, is its error.

    Raises:
        DataError: an input of another form, or a dict without a needed column.

    Example:
        >>> example_of({"question": "Who came?", "context": "Ann came."}, function).pair  # doctest: +SKIP
        'Ann came.'
    """
    if isinstance(value, Mapping):
        named = {str(name): part for name, part in value.items()}
        _refuse_words(list(named), function, where, lambda most: [Row(named, where)])
        return to_example(Row(named, where), columns_in(list(named), function, where), None)
    columns = Columns("text", "pair" if function.columns["pair"] else None, form=function.task.form)
    if FORMS[function.task.form].choices:
        columns = replace(columns, choices=("choices",))
    return to_example(Row(_values(value, function, where), where), columns, None)


def _refuse_words(names: Sequence[str], function: Function, where: str, peek: Callable[[int], list[Row]]) -> None:
    """Refuse rows of a word each, in whose place there would be fewer answers than rows."""
    wanted = {"text": same_name(function.columns["text"], names)}
    words = WordTable.find(function.task.form, wanted, names, peek, where, label=False)
    if words is None:
        return
    fix = f'Give a list of words for each sentence: frame.groupby(frame["{words.sentence}"].ffill())["{words.word}"]'
    fix += ".agg(list), or model.predict_file(FILE, OUT), which answers each sentence."
    raise DataError(where, f'holds a word in each row of "{words.word}"', "a row for each sentence", fix)


def columns_in(names: Sequence[str], function: Function, where: str) -> Columns:
    """The columns of a table or the keys of a dict that a function reads.

    Args:
        names: the existing names.
        function: the function that reads them.
        where: the table or the input, for errors.

    Returns:
        The columns of the fit; else, except for plain texts, the usual ones of its form; else `text`, `pair` and
        `choices`.

    Raises:
        DataError: one is missing; the nearest name is suggested.
    """
    form, fitted = function.task.form, function.columns
    usual = FORMS[form]
    wanted: dict[str, Any] = {"text": _named("text", usual.text, names, function, where), "pair": False}
    if fitted["pair"]:
        wanted["pair"] = _named("pair", usual.pair, names, function, where)
    if usual.choices:
        wanted["choices"] = [name for name in fitted.get("choices", []) if name in names]
    try:
        return Columns.find(form, wanted, names, where, label=False)
    except DataError as error:
        raise DataError(error.where, error.saw, error.expected, 'Give them as a list: "choices".') from error


def _named(role: str, usual: Sequence[str], names: Sequence[str], function: Function, where: str) -> str:
    """The column that plays a role."""
    fitted = function.columns[role]
    # Plain texts need the fitted column, as in files: the usual names are for richer forms.
    known = [fitted, *(() if FORMS[function.task.form].is_plain else usual), role]
    for name in known:
        if (found := same_name(name, names)) is not None:
            return found
    saw = f'has no column "{fitted}": its columns are {listed(map(_quoted, names), 20) or "none"}'
    near = did_you_mean(fitted, names)
    allowed = "the column that the model was fitted on"
    raise DataError(where, saw, allowed, near or f'Call the column "{fitted}", or "{role}".')


def _quoted(name: str) -> str:
    return f'"{name}"'


def _values(value: Any, function: Function, where: str) -> dict[str, Any]:
    """An input that is not a dict, as text, pair and choices."""
    form = FORMS[function.task.form]
    second = form.second or ("pair" if function.columns["pair"] else None)
    is_sequence = isinstance(value, tuple | list)
    if form.choices and function.columns["pair"]:
        fix = (
            f"Give {{{', '.join(map(_quoted, (function.columns['text'], function.columns['pair'], 'choices')))}: ...}}."
        )
        raise DataError(where, f"is {type(value).__name__}", "a dict: this model reads a context too", fix)
    if second is None:
        if is_sequence and not form.reads_words:
            fix = "Fit it with --pair to read pairs."
            raise DataError(where, f"is {type(value).__name__}", "a text: this model reads single texts", fix)
        return {"text": value}
    if not is_sequence or len(value) != 2:
        reads, shape = form.two_texts, form.row
        saw = f"is {type(value).__name__}" + (f" of {len(value)}" if is_sequence else "")
        raise DataError(where, saw, f"a tuple of two: this model reads {reads}", f"Give {shape}.")
    return {"text": value[0], second: value[1]}
