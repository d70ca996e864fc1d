"""Tasks by name: berthead's own, and those of installed packages."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

from berthead import plugins
from berthead.data.forms import FORMS
from berthead.errors import ModelError, UsageError, did_you_mean, listed
from berthead.tasks.base import Task

_MEMBERS = sorted(name for name in {*vars(Task), *Task.__annotations__} if not name.startswith("_"))
# What a class that inherits from Task has to say, and what it need not.
REQUIRED = tuple(
    name
    for name in _MEMBERS
    if name not in vars(Task) or getattr(inspect.getattr_static(Task, name), "__isabstractmethod__", False)
)
OPTIONAL = tuple(name for name in _MEMBERS if name not in REQUIRED)


def _built_in(place: str) -> type[Task]:
    module, _, name = place.partition(":")
    return cast(type[Task], getattr(import_module(module), name))


TASKS: dict[str, type[Task]] = {name: _built_in(place) for name, place in plugins.BUILT_IN_TASKS.items()}


def find_task(name: str, fitted_with: Any = "") -> type[Task]:
    """A task by its name.

    Args:
        name: one of TASKS, or of an installed package.
        fitted_with: the package that a model folder names.

    Returns:
        The class.

    Raises:
        ModelError: there is none, or an installed package offers something that is not a task.

    Example:
        >>> find_task("regress").metrics["mae"]
        -1
    """
    if name in TASKS:
        return TASKS[name]
    found: Any = plugins.load(plugins.TASKS, name, fitted_with)
    allowed = f'a class that inherits from berthead.tasks.Task, with name = "{name}"'
    if not inspect.isclass(found) or getattr(found, "name", None) != name:
        raise ModelError(f"task {name!r}", f"is {found!r}", allowed)
    if wrong := wrong_with(found):
        raise ModelError(f"task {name!r}", f"is {found!r}, which {wrong}", allowed)
    return cast(type[Task], found)


def wrong_with(found: Any) -> str:
    """Why a class is not a task, in words; empty if it is one."""
    if Task not in found.__mro__:
        return "does not inherit from it"
    theirs = {name: inspect.getattr_static(found, name, None) for name in REQUIRED}
    # A method that is still abstract only says what is wanted.
    lacks = [name for name, one in theirs.items() if one is None or getattr(one, "__isabstractmethod__", False)]
    if lacks:
        return f"lacks {listed(lacks, 20)}"
    if found.form not in FORMS:
        return f"has form {found.form!r} (expected one of {listed(FORMS)})"
    if found.level not in ("row", "token"):
        return f"has level {found.level!r} (expected row or token)"
    if not isinstance(found.metrics, Mapping) or "loss" not in found.metrics:
        return 'has no metric "loss"'
    return ""


def choose_metric(task: type[Task], wanted: str | None) -> str:
    """The metric that chooses the best epoch.

    Args:
        task: the task.
        wanted: its name; None: the task's own.

    Returns:
        The name.

    Raises:
        UsageError: the task has no such metric.
    """
    if wanted is None:
        return next(iter(task.metrics))
    if wanted not in task.metrics:
        known = f"a metric of {task.name}: {listed(task.metrics)}"
        raise UsageError("--metric", f'is "{wanted}"', known, did_you_mean(wanted, task.metrics))
    return wanted
