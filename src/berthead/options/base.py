"""The base of options: made from flags, environment and a YAML file, and checked."""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, get_args, get_type_hints

from berthead import plugins
from berthead.errors import UsageError, did_you_mean, listed
from berthead.options.config_file import read_config


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    more: str | None = None,
    form: tuple[str, str] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    several: bool = False,
) -> Any:
    """A dataclass field with its help text and its allowed values.

    `more`: entry points that add allowed values; `form`: a regular expression, and what it allows in words; `several`:
    names with commas between them, or in a list.
    """
    bounds = {
        "help": help, "choices": choices, "more": more, "form": form, "low": low, "high": high, "above": above,
        "several": several,
    }  # fmt: skip
    return field(default=default, metadata=bounds)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of the options records: made from loose values, checked, and saved."""

    places: ClassVar[tuple[str, ...]] = ()
    """Keys of a configuration that are no options: where a command reads and writes."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            checked = _checked(type(self), spec.name, getattr(self, spec.name), flag(spec.name))
            object.__setattr__(self, spec.name, checked)

    @classmethod
    def from_sources(cls, flags: Mapping[str, Any], config: Path | None = None, only: Sequence[str] = ()) -> Self:
        """Options from flags, then environment, then a YAML file, then defaults.

        Args:
            flags: what was given explicitly; None means not given.
            config: a YAML file with the same names as keys, or None.
            only: the options that `flags` may contain; empty: all.

        Returns:
            The checked options.

        Raises:
            UsageError: an unknown key, or a value that is not allowed.
        """
        names = [spec.name for spec in fields(cls)]
        # Each value with its place, for errors.
        values: dict[str, tuple[Any, str]] = {}
        if config is not None:
            read = read_config(config, [*names, *cls.places])
            values |= {name: (value, f"{config}: {name}") for name, value in read.items() if name in names}
        for name in names:
            variable = f"BERTHEAD_{name.upper()}"
            if variable in os.environ:
                values[name] = os.environ[variable], variable
        for name, value in flags.items():
            if name not in (known := only or names):
                raise UsageError(name, "is not an option", f"one of {listed(known, 50)}", did_you_mean(name, known))
            if value is not None:
                values[name] = value, flag(name)
        return cls(**{name: _checked(cls, name, value, where) for name, (value, where) in values.items()})

    @classmethod
    def places_in(cls, config: Path) -> dict[str, str]:
        """Where a command reads and writes, as a configuration says.

        Args:
            config: a YAML file.

        Returns:
            Some of `places`, with their values.

        Raises:
            UsageError: it cannot be read, has an unknown key, or a place that is no text.
        """
        read = read_config(config, [*(spec.name for spec in fields(cls)), *cls.places])
        found = {name: value for name, value in read.items() if name in cls.places}
        for name, value in found.items():
            if not isinstance(value, str) or not value.strip():
                raise UsageError(f"{config}: {name}", f"is {value!r}", "a path")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The options as a JSON-serialisable dict."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}


def flag(name: str) -> str:
    """The command-line flag of an option: `max_tokens` -> `--max-tokens`."""
    return "--" + name.replace("_", "-")


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)  # which evaluates all of them anew each time


def _checked(cls: type[Options], name: str, value: Any, where: str) -> Any:
    """The value with the field's type, or a UsageError that says what is allowed."""
    spec = next(spec for spec in fields(cls) if spec.name == name)
    hint = _hints(cls)[name]  # type: ignore[arg-type]  # classes are hashable
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    if value is None:
        if type(None) in get_args(hint):
            return None
        raise UsageError(where, "is empty", f"a value such as {spec.default}")
    rule = spec.metadata
    if rule["several"] and isinstance(value, list | tuple):
        value = _joined(where, value)
    value = _converted(kinds[0], where, value)
    if rule["choices"] and value not in rule["choices"]:
        known = (*rule["choices"], *(plugins.names(rule["more"]) if rule["more"] else ()))
        if value not in known:
            near = did_you_mean(str(value)[:80], known)
            raise UsageError(where, f'is "{str(value)[:80]}"', f"one of {listed(known)}", near)
    if rule["form"] and not re.fullmatch(rule["form"][0], value):
        raise UsageError(where, f'is "{str(value)[:80]}"', rule["form"][1])
    for key, words, broken in (
        ("low", "at least", operator.lt),
        ("high", "at most", operator.gt),
        ("above", "a number above", operator.le),
    ):
        if rule[key] is not None and broken(value, rule[key]):
            raise UsageError(where, f"is {value}", f"{words} {rule[key]}")
    return value


def _joined(where: str, names: Sequence[Any]) -> str:
    for name in names:
        if not isinstance(name, str) or "," in name:
            raise UsageError(where, f"holds {name!r}", "names of columns, without commas")
    return ",".join(names)


def _converted(kind: type, where: str, value: Any) -> Any:
    if kind is bool:
        words = {
            "true": True,
            "1": True,
            "yes": True,
            "on": True,
            "false": False,
            "0": False,
            "no": False,
            "off": False,
        }
        if isinstance(value, bool):
            return value
        if str(value).lower() in words:
            return words[str(value).lower()]
        raise UsageError(where, f'is "{str(value)[:80]}"', "true or false")
    if kind is str:
        if isinstance(value, dict | list | tuple | set):
            raise UsageError(where, f"is {str(value)[:80]}", "one text")
        return str(value)
    try:
        number = kind(value)
        sound = math.isfinite(number) and (kind is not int or isinstance(value, str) or number == value)
    except (TypeError, ValueError, OverflowError):
        sound = False
    if isinstance(value, bool) or not sound:
        raise UsageError(where, f'is "{str(value)[:80]}"', "a whole number" if kind is int else "a number")
    return number
