"""LOGITS -> MEANING: one file a task."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

from berthead import plugins
from berthead.data.examples import FORMS
from berthead.errors import ModelError, listed
from berthead.tasks.base import Answer, Batch, Task, choose_metric
from berthead.tasks.choose import Choose
from berthead.tasks.classify import Classify
from berthead.tasks.joint import Joint
from berthead.tasks.multilabel import Multilabel
from berthead.tasks.regress import Regress
from berthead.tasks.span import Extract
from berthead.tasks.tag import Tag

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classify, Multilabel, Regress, Tag, Extract, Choose, Joint)
}  # fmt: skip
# What a task of another package need not say anew where it is a Task.
OPTIONAL = ("form", "level", "settled", "bound", "inputs", "misfits", "over")


def find_task(name: str, fitted_with: Any = "") -> type[Task]:
    """A task by its name.

    Args:
        name: one of TASKS, or of an installed package.
        fitted_with: the package that a model folder says it is of.

    Returns:
        The class.

    Raises:
        ModelError: there is none, or what an installed package offers is no task.
    """
    if name in TASKS:
        return TASKS[name]
    found: Any = plugins.load(plugins.TASKS, name, fitted_with)
    allowed = f'a class like berthead.tasks.Task with name = "{name}"'
    if not inspect.isclass(found) or getattr(found, "name", None) != name:
        raise ModelError(f"task {name!r}", f"is {found!r}", allowed)
    if wrong := _wrong_with(found):
        raise ModelError(f"task {name!r}", f"is {found!r}, which {wrong}", allowed)
    return cast(type[Task], found)


def _wrong_with(found: Any) -> str:
    """Why a class is no task, in words; empty where it is one."""
    members = sorted(name for name in {*vars(Task), *Task.__annotations__} if not name.startswith("_"))
    theirs = {name: inspect.getattr_static(found, name, None) for name in members}
    # What stands in Task and only says what is wanted is nobody's answer.
    ours = {name: vars(Task).get(name) for name in members if name not in OPTIONAL}
    lacks = [name for name in members if theirs[name] is None or theirs[name] is ours.get(name)]
    if lacks:
        return f"lacks {listed(lacks, 20)}"
    if found.form not in FORMS:
        return f"has form {found.form!r} (allowed: {listed(FORMS)})"
    if found.level not in ("row", "token"):
        return f"has level {found.level!r} (allowed: row, token)"
    if not isinstance(found.metrics, Mapping) or "loss" not in found.metrics:
        return 'has no metric "loss"'
    return ""


__all__ = [
    "TASKS", "Answer", "Batch", "Choose", "Classify", "Extract", "Joint", "Multilabel", "Regress", "Tag", "Task",
    "choose_metric", "find_task",
]  # fmt: skip
