"""The columns that are read from a table, and those added to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from berthead.data.examples import Columns
from berthead.data.forms import FORMS
from berthead.data.labels import Labels
from berthead.errors import UsageError
from berthead.function.protocol import Function
from berthead.options import PredictOptions
from berthead.records import Prediction
from berthead.tasks import Task
from berthead.tasks.cells import short

# The prefix of the probability columns of labels.
_SHARE = "p("


def named_columns(function: Function, options: PredictOptions, names: Sequence[str]) -> dict[str, Any]:
    """The columns of an input file, by role, as the options or the fit name them.

    Args:
        function: the fitted function.
        options: columns, if they have other names.
        names: the file's columns.

    Returns:
        What `Columns.find` takes.

    Raises:
        UsageError: a pair column for a function of single texts.
    """
    fitted = function.columns
    if options.pair and not fitted["pair"]:
        raise UsageError("--pair", "this model was fitted on single texts", "", "Leave --pair out.")
    # Other data of the same form may use other usual column names, and have a text instead of tokens.
    form, given = function.task.form, options.to_dict()
    wanted = {
        role: given[role] or (name if FORMS[form].is_plain or _there(name, names) else None)
        for role in ("text", "pair", "label", "intent", "choices")
        for name in [fitted.get(role)]
    }
    wanted["pair"] = wanted["pair"] if fitted["pair"] else False  # a context is read as in the fit
    wanted["tag_names"] = fitted.get("tag_names")
    wanted["separator"] = options.separator or fitted.get("separator")
    return wanted


def input_columns(
    function: Function, options: PredictOptions, names: Sequence[str], where: str, label: bool
) -> Columns:
    """The columns of an input file, named by the options or as at the fit.

    Args:
        function: the fitted function.
        options: columns, if they have other names.
        names: the file's columns.
        where: the file, for errors.
        label: whether targets are read.

    Returns:
        The columns.

    Raises:
        DataError: a column is missing.
        UsageError: a pair column for a function of single texts.
    """
    wanted, task = named_columns(function, options, names), function.task
    kinds = {"several": task.several_labels, "numbers": task.several_numbers}
    return Columns.find(task.form, wanted, names, where, label=label, **kinds)


def _there(wanted: Any, names: Sequence[str]) -> bool:
    return bool(wanted) and all(name in names for name in ([wanted] if isinstance(wanted, str) else wanted))


def added_names(function: Function, columns: Sequence[str], probabilities: bool, prefix: str = "") -> dict[str, str]:
    """The columns added to each row: our name to a column name that the input does not use.

    Args:
        function: the fitted function.
        columns: the input's columns.
        probabilities: one column a label as well.
        prefix: the prefix of the column names.

    Returns:
        The columns that the task's answers add, and `p(label)` for each label whose probability they hold.
    """
    task = function.task
    wanted = list(task.columns(probabilities))
    if probabilities and task.has_probabilities:
        wanted += [f"{_SHARE}{text})" for text in Labels(task.answer_labels).texts()]
    names: dict[str, str] = {}
    for name in wanted:
        free, number = f"{prefix}{name}", 2
        while free in columns or free in names.values():
            free, number = f"{prefix}{name}_{number}", number + 1
        names[name] = free
    return names


def added_types(function: Function, names: Mapping[str, str]) -> dict[str, type]:
    """The types of added columns: str, float, int, bool or list (of str).

    Args:
        function: the fitted function.
        names: the result of `added_names`.

    Returns:
        Column name to type.
    """
    kinds = function.task.columns(probabilities=True)
    return {name: kinds.get(ours, float) for ours, name in names.items()}


def added_values(task: Task, prediction: Prediction, names: Mapping[str, str]) -> dict[str, Any]:
    """Our names to values: labels as the user wrote them, computed numbers as float32."""
    values = task.cells(prediction)
    columns = [name for name in names if name.startswith(_SHARE)]
    shares = (
        [short(share) for share in prediction.probabilities.values()] if columns and prediction.probabilities else []
    )
    return {name: values[name] for name in names if name in values} | dict(zip(columns, shares, strict=False))
