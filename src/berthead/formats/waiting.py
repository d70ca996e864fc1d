"""Rows stored as JSON Lines until the last one, for formats that need all rows before they can write one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from berthead.formats.format import Header, Writing
from berthead.formats.json import JsonRows

_Rows = Callable[[], Iterable[dict[str, Any]]]


class WaitingRows:
    """Rows stored in a temporary file, and written at the end.

    Args:
        stream: the final output.
        header: what is known of them in advance.
        writing: how they are written.
        folder: the folder of the temporary file.
    """

    left_out = ()

    def __init__(self, stream: BinaryIO, header: Header, writing: Writing, folder: Path) -> None:
        self._stream, self._header, self._writing = stream, header, writing
        self._spool: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._lines = JsonRows(self._spool, writing.check)

    def write(self, values: dict[str, Any]) -> None:
        """Add one row."""
        self._lines.write(values)

    def finish(self) -> None:
        """Write the remaining rows; the stream stays open."""
        _write_all(self._stream, self._header, self._writing, self._again)
        self._spool.close()

    def abandon(self) -> None:
        """Close without finishing; the output will be discarded."""
        with suppress(OSError):
            self._spool.close()

    def _again(self) -> Iterator[dict[str, Any]]:
        self._spool.seek(0)
        return map(json.loads, self._spool)


def join_json_lines(stream: BinaryIO, header: Header, writing: Writing, parts: Sequence[Path]) -> None:
    """Write the rows of JSON Lines files in the final format.

    Args:
        stream: the output.
        header: what is known of them in advance.
        writing: how they are written.
        parts: the files, in their order.
    """
    _write_all(stream, header, writing, lambda: _rows_of(parts))


def _write_all(stream: BinaryIO, header: Header, writing: Writing, rows: _Rows) -> None:
    """Write rows that can be iterated twice."""
    known = writing.learn(header, rows()) if writing.learn else header
    encoder = writing.encode(stream, known, True)
    try:
        for values in rows():
            encoder.write(values)
        encoder.finish()
    except BaseException:
        encoder.abandon()
        raise


def _rows_of(parts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        with open(part, "rb") as file:
            yield from map(json.loads, file)
