"""Which columns of a table are read, and which are added to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from berthead.data.examples import Columns
from berthead.data.labels import Labels
from berthead.errors import UsageError
from berthead.function.protocol import Function
from berthead.options import PredictOptions
from berthead.records import Prediction, Span
from berthead.tasks import Choose


def input_columns(function: Function, options: PredictOptions, names: list[str], where: str, label: bool) -> Columns:
    """The columns of an input file, named by the options or as they were at fit.

    Args:
        function: the fitted function.
        options: may name other columns.
        names: the file's columns.
        where: the file, for errors.
        label: whether targets are read.

    Returns:
        The columns.

    Raises:
        DataError: a column is missing.
        UsageError: a pair is asked of a function of single texts.
    """
    fitted = function.columns
    if options.pair and not fitted["pair"]:
        raise UsageError("--pair", "this model was fitted on single texts", "no --pair")
    # Other data of the same form may call its columns by other usual names, and hold a text where fit saw tokens.
    form, given = function.task.form, options.to_dict()
    wanted = {
        role: given[role] or (name if form == "text" or _there(name, names) else None)
        for role in ("text", "pair", "label", "intent", "choices")
        for name in [fitted.get(role)]
    }
    return Columns.find(form, wanted, names, where, label=label)


def _there(wanted: Any, names: list[str]) -> bool:
    return bool(wanted) and all(name in names for name in ([wanted] if isinstance(wanted, str) else wanted))


def added_names(function: Function, columns: Sequence[str], probabilities: bool, prefix: str = "") -> dict[str, str]:
    """What is added to each row: our name to a column name that the input does not use yet.

    Args:
        function: the fitted function.
        columns: the input's columns.
        probabilities: one column a label as well.
        prefix: what the column names begin with.

    Returns:
        `prediction`, `score` (not for numbers and tags), `start` and `end` of an answer, `spans` beside a label,
        `predicted_tags` where the input may hold tokens, and `p(label)` for each label.
    """
    task = function.task
    more = {
        "regress": [],
        "tag": ["predicted_tags"],
        "span": ["score", "start", "end"],
        "joint": ["score", "spans", "predicted_tags"],
    }
    wanted = ["prediction", *more.get(task.name, ["score"])]
    labels = task.to_json()["labels"]
    if probabilities and labels and task.name != "tag":
        wanted += [f"p({text})" for text in Labels(labels).texts()]
    elif probabilities and task.form == "choices":
        wanted.append("probabilities")  # of as many choices as each row has
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
        names: as `added_names` says.

    Returns:
        Column name to type.
    """
    answer: dict[str, type] = {"regress": float, "multilabel": list, "tag": str, "span": str}
    task = function.task
    if isinstance(task, Choose):
        answer["choose"] = int if task.style == "number" else str
    kind = answer.get(task.name) or _label_type(function)
    kinds: dict[str, type] = {
        "prediction": kind,
        "start": int,
        "end": int,
        "spans": str,
        "predicted_tags": list,
        "probabilities": str,
    }
    return {name: kinds.get(ours, float) for ours, name in names.items()}


def _label_type(function: Function) -> type:
    kinds = {type(label) for label in function.task.to_json()["labels"]}
    return kinds.pop() if len(kinds) == 1 else str


def added_values(prediction: Prediction, names: Mapping[str, str]) -> dict[str, Any]:
    """Our names to values: a label stays as the user wrote it, what was computed is float32."""
    answer = prediction.answer
    if isinstance(answer, list) and prediction.spans is not None and prediction.tags != answer:
        answer = spans_json(prediction.spans)
    values: dict[str, Any] = {
        "prediction": answer if "score" in names or prediction.spans is not None else _short(answer)
    }
    values |= {
        "score": None if prediction.score is None else _short(prediction.score),
        "predicted_tags": prediction.tags,
    }
    if "start" in names:
        best = prediction.spans[0] if prediction.answer and prediction.spans else None
        values |= {"start": best and best.start, "end": best.end if best else None}
    if "spans" in names:
        values["spans"] = spans_json(prediction.spans or [])
    shares = [_short(share) for share in (prediction.probabilities or {}).values()]
    if "probabilities" in names:
        values["probabilities"] = shares
    columns = [name for name in names if name.startswith("p(")]
    return {name: values[name] for name in names if name in values} | dict(zip(columns, shares, strict=False))


def spans_json(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """Spans as JSON objects: start, end, label, text and score."""
    return [
        {"start": one.start, "end": one.end, "label": one.label, "text": one.text, "score": _short(one.score)}
        for one in spans
    ]


def _short(value: Any) -> Any:
    """A float32 in as few digits as it takes to read the same float32 again."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
