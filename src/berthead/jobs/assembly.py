"""Joining parts into one output, with the same bytes whoever computed the parts."""

from __future__ import annotations

from collections.abc import Sequence

from berthead.errors import OutputError
from berthead.formats.lines import copy_files
from berthead.formats.output import Output
from berthead.formats.registry import format_of
from berthead.jobs.parts import Part
from berthead.storage.files import Aside, sync_folder, target_of

# The hidden files have names of their own: one that was left by a killed process is replaced by the next.
_MARK = "whole"
_BEGIN = b'{"where":'  # of every file of bad rows


def errors_file_of(target: str) -> str:
    """The file of an output's bad rows.

    Raises:
        OutputError: there is a file of that name which berthead did not write.
    """
    name = f"{target}.errors.jsonl"
    place = target_of(name)
    if place.is_file():
        with place.open("rb") as file:
            begin = file.read(len(_BEGIN))
        if begin and begin != _BEGIN:
            saw = "is there already, and no file of bad rows that berthead wrote"
            raise OutputError(name, saw, "none, or one of an earlier run", "Move it away, or give another --out.")
    return name


def put_together(output: Output, parts: Sequence[Part], target: str) -> str | None:
    """Write the output and the file of its bad rows from parts.

    Args:
        output: what is written.
        parts: all of them, in their order.
        target: the output; an existing file is replaced when the new one is on disk.

    Returns:
        The file of bad rows, or None.

    Raises:
        OSError: it cannot be written; nothing is left, and the parts stay.
        OutputError: as OSError, a value that does not fit, or a file of others where bad rows would go.
    """
    bad = [part.errors for part in parts if part.errors]
    errors_file = errors_file_of(target)
    place, asides = target_of(errors_file), list[Aside]()
    try:
        if bad:
            asides.append(Aside(place, mark=_MARK))
            copy_files(asides[0].stream, bad)
        asides.append(Aside(target_of(target), format_of(target)[1], _MARK))
        output.join([part.answers for part in parts], asides[-1].stream)
        for aside in asides:
            aside.seal()
        if not bad:
            place.unlink(missing_ok=True)  # errors of an earlier run would look like errors of this one
        for aside in asides:
            aside.rename()
            sync_folder(aside.target.parent)
    except BaseException:
        for aside in asides:
            aside.discard()
        raise
    return errors_file if bad else None
