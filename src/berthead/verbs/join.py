"""Join fitted functions that share an encoder in one folder: shared layers are computed once a text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from berthead.data.forms import FORMS
from berthead.errors import BertheadError, UsageError
from berthead.fitted import Fitted, load
from berthead.function import joined_folder
from berthead.function.adapter import THETA
from berthead.function.joined import JoinedFunctions, form_of, is_name, read_as
from berthead.function.record import read_record
from berthead.options import FitOptions
from berthead.records import Prediction
from berthead.storage.folders import check_out
from berthead.tasks import find_task


def join(
    members: Sequence[Fitted | str | Path] | Mapping[str, Fitted | str | Path],
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
) -> Fitted[dict[str, Prediction]]:
    """Join several fitted functions that share an encoder.

    Args:
        members: functions or their folders, by name; for a sequence, folders keep their own names.
        out: the folder to write, or None.
        overwrite: replace a folder that exists.

    Returns:
        One function that shares equal layers and answers with a dict of predictions by name.

    Raises:
        UsageError: too few, or a name used twice.
        ModelError: they cannot be joined.
        OutputError: the folder cannot be written.

    Example:
        >>> both = join(["topic-model", "mood-model"], "both")  # doctest: +SKIP
    """
    if out is not None:
        check_out(Path(out), overwrite)
    named = dict(members) if isinstance(members, Mapping) else _named(members)
    members_of = {name: one if isinstance(one, Fitted) else load(one) for name, one in named.items()}
    joined = Fitted[dict[str, Prediction]](JoinedFunctions({name: one.artifact for name, one in members_of.items()}))
    if out is not None:
        joined.save(out, overwrite)
    return joined


def add(folder: str | Path, name: str, fitted: Fitted) -> None:
    """Add a function to a joined folder; the files of the others are not touched.

    Args:
        folder: the joined folder.
        name: the function's name.
        fitted: on the folder's own encoder, `folder/theta`.

    Raises:
        UsageError: the name is taken, or not a valid name.
        ModelError: the folder holds no joined functions, or they cannot be joined.
        OutputError: it cannot be written.
    """
    check_name(Path(folder), name)
    joined_folder.add(Path(folder), name, fitted.artifact)


def move(own: Path, folder: Path, name: str, fitted: Fitted) -> None:
    """Add a function from its own folder, and remove that folder on success.

    Args:
        own: the function's folder.
        folder: the joined folder.
        name: the function's name.
        fitted: the function.

    Raises:
        BertheadError: it cannot be added; it stays in its own folder.
    """
    try:
        add(folder, name, fitted)
    except BertheadError as error:
        fix = f"{error.fix} The function is kept in {own}.".strip()
        raise type(error)(error.where, error.saw, error.expected, fix) from error
    shutil.rmtree(own)


def check_name(folder: Path, name: str) -> None:
    """Check that a function of this name can be added to a joined folder, before any work is done.

    Args:
        folder: the joined folder.
        name: the function's name.

    Raises:
        UsageError: the name is taken, or not a valid name.
        ModelError: the folder holds no joined functions.
    """
    names = joined_folder.names_in(folder, read_record(folder))
    allowed = "another name, of letters, digits, `_`, `-` and `.`"
    if not is_name(name):
        raise UsageError(f"--name {name[:100]}", "is not a name for a function", allowed)
    if name in names:
        raise UsageError(f"--name {name}", f"{folder} already has a function of that name", allowed)
    if (folder / name).exists():
        saw = f"{folder} holds a folder of that name that is not one of its functions"
        raise UsageError(f"--name {name}", saw, allowed, f"If a fit was stopped there, remove {folder / name}.")
    check_out(folder / name, overwrite=False)


def _named(members: Sequence[Fitted | str | Path]) -> dict[str, Fitted | str | Path]:
    named: dict[str, Fitted | str | Path] = {}
    for one in members:
        if isinstance(one, Fitted):
            raise UsageError("join", "got a function without a name", '{"name": function, ...}, or folders')
        words, equals, rest = str(one).partition("=")
        # A folder as it is, where its name has a sign of equality; else NAME=FOLDER.
        is_folder = os.path.exists(one)  # noqa: PTH110 - pathlib raises where a name is too long
        name, place = (words, rest) if equals and not is_folder else (Path(one).resolve().name, str(one))
        if name in named:
            raise UsageError(
                "join", f'got two functions called "{name}"', "different names", "Rename one: NAME=FOLDER."
            )
        named[name] = place
    return named


def fitted_on(folder: str | Path, options: dict[str, Any], config: Path | None = None) -> dict[str, Any]:
    """The options of a fit whose function will be added to a joined folder.

    Args:
        folder: the joined folder.
        options: what the user wants.
        config: a YAML file with options, or None.

    Returns:
        The options with the folder's encoder, frozen unless the user wants otherwise.

    Raises:
        UsageError: another encoder is asked for, or an input form that the others do not read.
        ModelError: the folder holds no joined functions, or a broken one.
    """
    place = Path(folder)
    functions = joined_folder.read(place, read_record(place)).functions
    chosen = FitOptions.from_sources(options, config)
    if chosen.encoder != FitOptions().encoder:
        saw = f"the function is fitted on the encoder of {folder}"
        raise UsageError(f"--encoder {chosen.encoder}", saw, "", "Leave it out.")
    if chosen.overwrite:
        raise UsageError("--overwrite", "functions are added to a joined folder, never replaced", "another --name")
    first = next(iter(functions.values()))
    form = find_task(chosen.task).form
    wanted = read_as(form), bool(chosen.pair) or FORMS[form].needs_pair
    if wanted != form_of(first):
        words = "pairs" if form_of(first)[1] else "single texts"
        raise UsageError(
            f"--shared {folder}",
            f"its functions read {words} of the form {form_of(first)[0]}",
            "a task with the same input",
        )
    adapt = chosen.adapt if chosen.adapt != "full" else options.get("adapt") or "frozen"
    return options | {"encoder": str(place / THETA), "adapt": adapt}
