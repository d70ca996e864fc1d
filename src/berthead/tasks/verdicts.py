"""Single answers: whether two are the same, whether one is right, and how they are written down."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from typing import Any

from berthead.data import tags as tagging
from berthead.records import Example, Label
from berthead.tasks.answer_scores import exact
from berthead.tasks.base import Answer, Task
from berthead.tasks.choose import Choice, Choose
from berthead.tasks.classify import Classify
from berthead.tasks.joint import Joint, TagsAndLabel
from berthead.tasks.marks import Mark, aligned
from berthead.tasks.multilabel import Multilabel
from berthead.tasks.regress import Regress
from berthead.tasks.span import Extract, Gold
from berthead.tasks.tag import Tag
from berthead.text.windows import Input


def identity(task: Task, answer: Answer) -> Hashable:
    """What two answers of functions of one task have in common where they are the same.

    Args:
        task: that gave the answer.
        answer: one.

    Returns:
        For labels the label with its type, or the set of them; for tags the set of spans (plain ones: the tags); for
        choices the number; for numbers six digits, as they are printed; for anything else the text.

    Example:
        >>> identity(Regress(0, 1, 0, 5), Answer(2.00000001)) == identity(Regress(1, 1, 1, 5), Answer(2.0))
        True
    """
    if isinstance(task, Classify):
        return _typed(answer.answer)
    if isinstance(task, Multilabel):
        return frozenset(map(_typed, answer.answer))
    if isinstance(task, Regress):
        return f"{answer.answer:.6g}"
    if isinstance(task, Choose):
        shares = answer.probabilities or {}
        return max(shares, key=shares.__getitem__)
    if isinstance(task, Joint):
        return _typed(answer.answer), _tagged(task.tag, answer)
    if isinstance(task, Tag):
        return _tagged(task, answer)
    if isinstance(task, Extract):
        return str(answer.answer)
    return json.dumps(written(answer), default=str, sort_keys=True)


def is_right(task: Task, answer: Answer, example: Example, read: Input) -> bool | None:
    """Whether an answer is wholly right.

    Args:
        task: that gave the answer.
        answer: the example's.
        example: with a target.
        read: what was read of it.

    Returns:
        All labels, all spans, both of a joint row, or one of the answers as SQuAD's exact match counts it; of a task of
        another package the very label. None where this cannot be said: of numbers, and of what is no label.
    """
    target = example.target
    if isinstance(task, Extract):
        return bool(exact(answer.answer, [gold.text for gold in target]))
    wanted: Hashable
    if isinstance(task, Classify):
        wanted = _typed(target)
    elif isinstance(task, Multilabel):
        wanted = frozenset(map(_typed, target))
    elif isinstance(task, Choose):
        wanted = target.number(task.style)
    elif isinstance(task, Joint):
        wanted = _typed(target.label), _wanted_tags(task.tag, target.tags, read)
    elif isinstance(task, Tag):
        wanted = _wanted_tags(task, target, read)
    elif task.to_json()["labels"] and isinstance(target, str | int | float | bool):
        return bool(answer.answer == target)
    else:
        return None
    return identity(task, answer) == wanted


def written(answer: Answer) -> Any:
    """An answer as JSON: spans as lists of start, end, label and text; beside a label as `label` and `spans`."""
    if answer.spans is None or (isinstance(answer.answer, str) and answer.probabilities is None):
        return answer.answer
    spans = [{"start": one.start, "end": one.end, "label": one.label, "text": one.text} for one in answer.spans]
    if not isinstance(answer.answer, list):
        return {"label": answer.answer, "spans": spans}
    return answer.answer if answer.answer and isinstance(answer.answer[0], str) else spans


def written_target(task: Task, example: Example) -> Any:
    """A target as JSON, in the user's own terms."""
    target = example.target
    if isinstance(target, Choice):
        style = task.style if isinstance(task, Choose) else "number"
        return Choose.named(target.number(style), example.choices or (), style)
    if isinstance(target, TagsAndLabel):
        return {"label": target.label, "spans": _plain(target.tags)}
    return _plain(target)


def _plain(target: Any) -> Any:
    if not isinstance(target, tuple | list):
        return target
    return [one.text if isinstance(one, Gold) else one._asdict() if isinstance(one, Mark) else one for one in target]


def _typed(label: Label) -> tuple[str, Label]:
    return type(label).__name__, label


def _tagged(task: Tag, answer: Answer) -> Hashable:
    if task.scheme == "plain" and answer.tags is not None:
        return tuple(answer.tags)
    return frozenset((one.start, one.end, one.label) for one in answer.spans or ())


def _wanted_tags(task: Tag, target: Sequence[Any], read: Input) -> Hashable:
    """The target as `_tagged` gives the answer: spans by characters, or plain tags."""
    if task.scheme == "plain":
        return tuple(target)
    assert read.units is not None
    words = read.units.start >= 0
    starts, ends = read.units.start[words].tolist(), read.units.end[words].tolist()
    marked = bool(target) and isinstance(target[0], Mark)
    tags = aligned(target, read)[0] if marked else tagging.to_bio(target, task.scheme)
    return frozenset((starts[one.first], ends[one.end - 1], one.label) for one in tagging.entities(tags))
