"""Tasks and heads by name: berthead's own, and those that installed packages offer by entry points.

A package names them in its pyproject.toml:

    [project.entry-points."berthead.tasks"]
    ordinal = "my_package:Ordinal"

Nothing is imported before its name is asked for, and nothing is ever imported from a model folder.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from berthead.errors import ModelError, did_you_mean, listed

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

HEADS, TASKS = "berthead.heads", "berthead.tasks"
# A task of berthead's own is a file in `tasks/` and a line here; a place is written as in an entry point.
BUILT_IN_TASKS = {
    "classify": "berthead.tasks.classify:Classify",
    "multilabel": "berthead.tasks.multilabel:Multilabel",
    "regress": "berthead.tasks.regress:Regress",
    "tag": "berthead.tasks.tag:Tag",
    "span": "berthead.tasks.span:Extract",
    "choose": "berthead.tasks.choose:Choose",
    "joint": "berthead.tasks.joint:Joint",
}
_KINDS = {HEADS: "head", TASKS: "task"}
# A name and a version, and nothing that a terminal would obey.
_DISTRIBUTION = re.compile(r"[A-Za-z0-9._-]{1,80} [A-Za-z0-9.!+_-]{1,40}")


def names(group: str) -> tuple[str, ...]:
    """The names that installed packages offer.

    Args:
        group: HEADS or TASKS.

    Returns:
        Names, sorted.

    Example:
        >>> isinstance(names(HEADS), tuple)
        True
    """
    return tuple(sorted({point.name for point in _points(group)}))


def load(group: str, name: str, fitted_with: Any = "") -> Any:
    """The class behind a name.

    Args:
        group: HEADS or TASKS.
        name: the entry point's name.
        fitted_with: the distribution that a model folder names, such as `my-package 0.1`; shown if it is missing.

    Returns:
        The class.

    Raises:
        ModelError: no installed package offers it, or several do, or importing it fails.
    """
    points = _points(group, name)
    where = f"{_KINDS[group]} {name!r}"
    if not points:
        known = names(group)
        allowed = (
            f"one that is installed: {listed(known)}"
            if known
            else f"an installed package that offers a {_KINDS[group]}; there is none"
        )
        if isinstance(fitted_with, str) and _DISTRIBUTION.fullmatch(fitted_with):
            # Whoever wrote the folder chose the name: it is not for us to say that it can be trusted.
            allowed = f"the package {fitted_with}, with which the model was fitted"
            fix = f"Install it, if you trust it; it offers the entry point {group}."
            raise ModelError(where, "is not installed", allowed, fix)
        fix = did_you_mean(name, known) or f"Install the package that offers it (entry point {group})."
        raise ModelError(where, "is not installed", allowed, fix)
    if len({point.value for point in points}) > 1:
        offers = listed(f"{point.value} ({_distribution(point)})" for point in points)
        raise ModelError(where, f"is offered by several packages: {offers}", "one package", "Uninstall the others.")
    try:
        return points[0].load()
    except (Exception, SystemExit) as error:  # whatever the package's own code raises
        saw = f"{points[0].value} of {_distribution(points[0])} cannot be imported ({type(error).__name__}: {error})"
        raise ModelError(where, saw) from error


def package(group: str, name: str) -> str:
    """The distribution that offers a name, such as `my-package 0.1`; empty if unknown."""
    return next(map(_distribution, _points(group, name)), "")


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else ""


def _points(group: str, name: str | None = None) -> tuple[EntryPoint, ...]:
    # Imported here: a function without plugins answers 20 ms sooner.
    from importlib.metadata import entry_points

    return tuple(point for point in entry_points(group=group) if name in (None, point.name))
