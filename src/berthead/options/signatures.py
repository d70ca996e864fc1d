"""Signatures and docs of functions and classes that take options as keywords, made from the options records."""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar, cast, get_type_hints

from berthead.options.base import Options
from berthead.options.python_words import speaks_python

F = TypeVar("F", bound=Callable[..., Any])
MARK = "{options}"
"""The line of a docstring's `Args:` that the options take the place of."""


def parameters_of(kind: type[Options], only: Sequence[str] = ()) -> list[inspect.Parameter]:
    """The fields of an options record as keyword parameters.

    Args:
        kind: the record.
        only: the fields to include, in the record's order; empty: all.

    Returns:
        One parameter a field, with the field's type and default.

    Example:
        >>> from berthead.options import FitOptions
        >>> [str(one) for one in parameters_of(FitOptions, ("batch", "lr"))]
        ['batch: int = 32', 'lr: float | None = None']
    """
    hints = get_type_hints(kind)
    return [
        inspect.Parameter(spec.name, inspect.Parameter.KEYWORD_ONLY, default=spec.default, annotation=hints[spec.name])
        for spec in fields(kind)
        if not only or spec.name in only
    ]


def help_of(kind: type[Options], only: Sequence[str] = ()) -> dict[str, str]:
    """The help of each field of an options record, with its allowed values.

    Args:
        kind: the record.
        only: the fields to include, in the record's order; empty: all.
    """
    found = {}
    for spec in fields(kind):
        if not only or spec.name in only:
            choices = spec.metadata["choices"]
            found[spec.name] = spec.metadata["help"] + (f" [{' | '.join(choices)}]" if choices else "")
    return found


def documented(doc: str | None, texts: Mapping[str, str]) -> str:
    """A docstring in which `{options}` is replaced by a line for each parameter.

    Args:
        doc: the docstring.
        texts: name to help.

    Example:
        >>> print(documented("Fit.\\n\\n    Args:\\n        {options}", {"batch": "Rows of one step."}))
        Fit.
        <BLANKLINE>
            Args:
                batch: Rows of one step.
    """
    lines = []
    for line in (doc or "").splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        if line.strip() != MARK:
            lines.append(line)
            continue
        for name, text in texts.items():
            lines += textwrap.wrap(
                f"{name}: {text}", 120, initial_indent=indent, subsequent_indent=f"{indent}    ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return "\n".join(lines)


def takes_options(kind: type[Options], only: Sequence[str] = ()) -> Callable[[F], F]:
    """Show the options that a function takes as keywords in its signature, its docs, and the messages of its errors.

    Args:
        kind: the options record.
        only: the fields that the function takes; empty: all.

    Returns:
        A decorator of functions whose last parameter is `**options`.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def speaking(*arguments: Any, **options: Any) -> Any:
            with speaks_python():
                return function(*arguments, **options)

        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        shown = signature.replace(parameters=[*own, *parameters_of(kind, only)])
        speaking.__signature__ = shown  # type: ignore[attr-defined]
        speaking.__doc__ = documented(function.__doc__, help_of(kind, only))
        return cast("F", speaking)

    return decorate
