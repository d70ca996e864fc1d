"""Errors and notes in the words of Python: `skip_bad_rows=True` where the command line says `--skip-bad-rows`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from functools import cache
from typing import Any

from berthead.errors import BertheadError
from berthead.options import FitOptions, PredictOptions

# A flag, and a value behind it: a placeholder, a number, a text in quotes, or a word, which may be one of the sentence.
_FLAG = re.compile(
    r"(?<![\w/-])--([a-z][a-z-]*)(?:[ ]([A-Z]{2,}(?:,[A-Z]+)*\b|\d[\w.]*\b|\"[^\"]*\"|\w+(?:[:+=-]\w+)*))?"
)
# Commands of a shell stay as they are.
_COMMAND = re.compile(r"(?:berthead [a-z]+|python [\w/.]+|pip install)[^.;)]*")
_FLAGS = ContextVar("flags", default=False)


def in_python(message: str) -> str:
    """A message with the arguments of Python functions in place of flags.

    Args:
        message: with flags.

    Returns:
        The message; commands of a shell, and flags that are no options, are left as they are.

    Example:
        >>> in_python("Correct them, or leave them out with --skip-bad-rows. Name one: --label COLUMN.")
        'Correct them, or leave them out with skip_bad_rows=True. Name one: label=COLUMN.'
        >>> in_python("--valid: is 1.5. Lower --max-tokens, or give --task regress.")
        'valid: is 1.5. Lower max_tokens, or give task="regress".'
    """
    parts, end = [], 0
    for command in _COMMAND.finditer(message):
        parts += [_FLAG.sub(_argument, message[end : command.start()]), command[0]]
        end = command.end()
    return "".join([*parts, _FLAG.sub(_argument, message[end:])])


@contextmanager
def speaks_python() -> Iterator[None]:
    """Errors that leave this block speak of arguments, not of flags; `BertheadError.message` still does."""
    try:
        yield
    except BertheadError as error:
        error.args = (in_python(error.message),)
        raise


@contextmanager
def speaks_flags() -> Iterator[None]:
    """Notes that are made in this block speak of flags: it is the command line that shows them."""
    before = _FLAGS.set(True)
    try:
        yield
    finally:
        _FLAGS.reset(before)


def notes_in_python(notes: Iterable[str]) -> list[str]:
    """Notes for the user with arguments in place of flags, except in a block that `speaks_flags`.

    Args:
        notes: with flags.

    Example:
        >>> notes_in_python(["no scores; --valid 0.1 holds out a tenth"])
        ['no scores; valid=0.1 holds out a tenth']
    """
    return list(notes) if _FLAGS.get() else list(map(in_python, notes))


def _argument(match: re.Match[str]) -> str:
    name, value = match[1].replace("-", "_"), match[2]
    if name not in _known():
        return match[0]
    behind = f" {value}" if value else ""
    follows = match.string[match.end() :]
    if _known()[name]["is_switch"]:
        return f"{name}{behind}" if not value and follows.startswith(":") else f"{name}=True{behind}"
    if not value:
        return name
    if re.fullmatch(r"[A-Z,]{2,}|\d[\d.e-]*|\".*\"", value):
        return f"{name}={value}"
    is_value = value in _known()[name]["values"] or ":" in value or follows.startswith(":") or not follows
    return f'{name}="{value}"' if is_value else f"{name}{behind}"


@cache
def _known() -> dict[str, dict[str, Any]]:
    """Arguments of the Python functions: whether each is true or false, and words that it may be."""
    known: dict[str, dict[str, Any]] = {
        name: {"is_switch": name == "uniform", "values": ()} for name in ("out", "uniform")
    }
    for record in (FitOptions, PredictOptions):
        for spec in fields(record):
            before = known.get(spec.name, {"values": ()})["values"]
            values = (*before, *(spec.metadata["choices"] or ()), *_WORDS.get(spec.name, ()))
            known[spec.name] = {"is_switch": isinstance(spec.default, bool), "values": values}
    return known


_WORDS = {"adapt": ("full", "frozen", "bitfit")}
