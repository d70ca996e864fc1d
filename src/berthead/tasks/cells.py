"""Answers as cells of a table and as JSON: functions that tasks share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from berthead.data.labels import Labels
from berthead.records import Label, Span


def short(value: Any) -> Any:
    """A float32 in the fewest digits that give the same float32 again; anything else unchanged.

    Example:
        >>> short(float(np.float32(0.1)))
        0.1
    """
    return float(str(np.float32(value))) if isinstance(value, float) else value


def number_text(value: float) -> str:
    """A number for a reader: six digits, or as many as a large number needs that float32 does not hold.

    Example:
        >>> number_text(2.5), number_text(0.123456789), number_text(1700000093.25), number_text(2500000.0)
        ('2.5', '0.123457', '1700000093.25', '2.5e+06')
    """
    with np.errstate(over="ignore"):
        exact = float(np.float32(value)) == value
    return f"{value:.6g}" if exact or abs(value) < 1e5 else f"{value:.15g}"


def spans_json(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """Spans as JSON objects: start, end, label, text and score."""
    return [
        {"start": one.start, "end": one.end, "label": one.label, "text": one.text, "score": short(one.score)}
        for one in spans
    ]


def common_type(labels: Iterable[Label]) -> type:
    """The common type of all labels; str if there are several types, or no labels."""
    kinds = {type(label) for label in labels}
    return kinds.pop() if len(kinds) == 1 else str


def typed(label: Label) -> tuple[str, Label]:
    """A label as a key that differs by type: "0", 0 and False are three."""
    return type(label).__name__, label


def is_label(labels: Labels, answer: Any, target: Any) -> bool:
    """Whether an answer is the target, which may have another type; a label that is not known is never right."""
    try:
        return labels.number(target) == labels.number(answer)
    except KeyError:
        return False


def quoted(label: Label) -> str:
    """A label as JSON, without escaping letters."""
    return json.dumps(label, ensure_ascii=False)


def answer_json(answer: Any, spans: Sequence[Span] | None, has_label: bool) -> Any:
    """An answer as JSON.

    Args:
        answer: of an Answer or a Prediction.
        spans: the spans in it or beside it.
        has_label: whether it is a label with probabilities.

    Returns:
        Spans as lists of start, end, label and text; beside a label as `label` and `spans`; else the answer.
    """
    if spans is None or (isinstance(answer, str) and not has_label):
        return answer
    plain = [{"start": one.start, "end": one.end, "label": one.label, "text": one.text} for one in spans]
    if not isinstance(answer, list):
        return {"label": answer, "spans": plain}
    return answer if answer and isinstance(answer[0], str) else plain
