"""Flags that commands share, and flags generated from an options record."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, get_args, get_type_hints

import typer

from berthead.options import ROW_OPTIONS
from berthead.options.base import Options, flag

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
ModelFolder = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder made by berthead fit.")]


def of_rows(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a command that say how labelled rows are read."""
    return {name: given[name] for name in ROW_OPTIONS}


def with_options(
    *kinds: type[Options], only: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of an options record; it gets them as one dict, `None` if not given.

    Args:
        kinds: the options records.
        only: the fields to include; empty: all.

    Returns:
        A decorator for a command with a parameter `given`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = [parameter for name, parameter in signature.parameters.items() if name != "given"]
        names = []
        for kind in kinds:
            hints = get_type_hints(kind)
            for spec in fields(kind):
                if only and spec.name not in only:
                    continue
                names.append(spec.name)
                parameters.append(_parameter(spec.name, hints[spec.name], spec.default, spec.metadata))

        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            command(**values, given=given)

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(name: str, hint: Any, default: Any, rule: Any) -> inspect.Parameter:
    kind = next(one for one in (*get_args(hint), hint) if one is not type(None))
    read_as = bool if kind is bool else str
    help_text = rule["help"]
    if rule["choices"]:
        help_text += f" [{' | '.join(rule['choices'])}]"
    if default is not None and kind is not bool:
        help_text += f" [default: {default}]"
    # Numbers, choices and bounds are checked by the options record, with the same words for flags, files and Python.
    described = typer.Option(flag(name), help=help_text, show_default=False, metavar=_METAVARS.get(kind))
    annotation: Any = Annotated[read_as | None, described]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


_METAVARS: dict[type, str] = {str: "TEXT", int: "N", float: "X"}
