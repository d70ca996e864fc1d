"""The output of a job: its format, its columns and their types."""

from __future__ import annotations

import base64
import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from berthead.errors import OutputError, shown
from berthead.formats.format import Header, RowEncoder, Writing
from berthead.formats.json import JsonRows
from berthead.formats.registry import PLAIN, find_format
from berthead.formats.waiting import WaitingRows, join_json_lines


@dataclass(frozen=True, slots=True)
class Output:
    """A file of rows to be written, whole or in parts.

    Args:
        format: the format's name.
        header: its columns.
    """

    format: str
    header: Header

    @classmethod
    def of(
        cls, format: str, source_format: str, columns: list[str], schema: Any, added: Mapping[str, type]
    ) -> Self:  # fmt: skip
        """The output for rows with the input's columns and added ones.

        Args:
            format: of the output.
            source_format: of the input.
            columns: the input's.
            schema: of a Parquet input, else None.
            added: new column to its type.

        Raises:
            OutputError: columns that the format cannot hold.
        """
        if check_added := _writing(format).check_added:
            check_added(added)
        names = [*columns, *(name for name in added if name not in columns)]
        if _writing(format).schema:
            _check_names(names)
        typed = _writing(format).schema if find_format(source_format).typed else None
        return cls(format, Header(names, dict(added), typed(names, schema, added) if typed else None))

    @property
    def part_format(self) -> str:
        """The format of parts: JSON Lines if the final format needs all rows before it can write one."""
        return PLAIN.name if self._waits else self.format

    @property
    def _waits(self) -> bool:
        return _writing(self.format).learn is not None and self.header.schema is None

    @property
    def most_rows(self) -> int | None:
        """The most rows that a file of the format can hold; None: any number."""
        return _writing(self.format).most_rows

    def rows(self, stream: BinaryIO, folder: Path) -> RowEncoder:
        """The writer of the whole file.

        Args:
            stream: the output.
            folder: where rows may be stored meanwhile.
        """
        writing = _writing(self.format)
        return WaitingRows(stream, self.header, writing, folder) if self._waits else self.part_rows(stream, header=True)

    def part_rows(self, stream: BinaryIO, *, header: bool = False) -> RowEncoder:
        """The writer of one part; for text formats, a header and all parts in order are the whole file."""
        if self._waits:
            return JsonRows(stream, _writing(self.format).check)
        return _writing(self.format).encode(stream, self.header, header)

    def join(self, parts: Sequence[Path], stream: BinaryIO) -> None:
        """Write the whole file.

        Args:
            parts: files of parts, in their order.
            stream: the output.

        Raises:
            OSError: it cannot be written.
            OutputError: a value that the format cannot hold.
        """
        writing = _writing(self.format)
        if writing.join is None or self._waits:
            join_json_lines(stream, self.header, writing, parts)
        else:
            writing.join(stream, self.header, parts)

    def to_json(self) -> dict[str, Any]:
        """The record, for a manifest."""
        header = self.header
        schema = None if header.schema is None else base64.b64encode(header.schema.serialize()).decode()
        added = {name: kind.__name__ for name, kind in header.added.items()}
        return {"format": self.format, "columns": header.columns, "added": added, "schema": schema}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Self:
        """The record from what `to_json` wrote; ValueError, KeyError, TypeError or AttributeError for anything else."""
        schema = written["schema"]
        if schema is not None:
            import pyarrow as pa

            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema)))
        added = {name: _KINDS[kind] for name, kind in written["added"].items()}
        return cls(written["format"], Header(list(written["columns"]), added, schema))


def _check_names(names: Sequence[str]) -> None:
    """Refuse names that a format with a schema cannot hold: half a surrogate pair is valid in JSON alone."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            saw = f"has a name that is no text (half a surrogate pair at position {error.start})"
            raise OutputError(f"column {shown(name)}", saw, "", "Rename it, or write a .jsonl file.") from error


def _writing(format: str) -> Writing:
    """How the output's format is written."""
    writing = find_format(format).writing
    if writing is None:
        raise ValueError(f"{format} can only be read; expected a format that can be written")
    return writing


_KINDS: dict[str, builtins.type] = {kind.__name__: kind for kind in (str, float, int, bool, list)}
