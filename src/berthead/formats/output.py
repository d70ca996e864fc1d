"""What a file of answers looks like: its format, its columns and their types."""

from __future__ import annotations

import base64
import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from berthead.formats.encoders import CsvRows, JsonRows, ParquetRows, RowFormat, SpooledParquet
from berthead.formats.parquet_types import added_types, parquet_schema

_TYPED = ("csv", "tsv", "parquet")  # sources whose columns have one type each, known beforehand


@dataclass(frozen=True, slots=True)
class Output:
    """A file of rows to be written, whole or in parts.

    Args:
        format: "csv", "tsv", "jsonl" or "parquet".
        columns: all of them, in their order.
        added: those that are not the input's, with their types: str, float, int, bool or list (of str).
        schema: the `pyarrow.Schema` of a Parquet file; None for other formats, and where it is learnt from the rows.
    """

    format: str
    columns: list[str]
    added: dict[str, type]
    schema: Any = None

    @classmethod
    def of(
        cls, format: str, source_format: str, columns: list[str], schema: Any, added: Mapping[str, type]
    ) -> Self:  # fmt: skip
        """The output for rows that have the input's columns and some more.

        Args:
            format: of the output.
            source_format: of the input.
            columns: the input's.
            schema: of a Parquet input, else None.
            added: new column to its type.
        """
        names = [*columns, *(name for name in added if name not in columns)]
        typed = format == "parquet" and source_format in _TYPED
        return cls(
            format, names, dict(added), parquet_schema(names, schema, added_types(dict(added))) if typed else None
        )

    @property
    def part_format(self) -> str:
        """The format of parts: JSON Lines where the types are known when all of them are there."""
        return "jsonl" if self.format == "parquet" and self.schema is None else self.format

    def rows(self, stream: BinaryIO, folder: Path) -> RowFormat:
        """What writes the whole file.

        Args:
            stream: where to.
            folder: where rows may wait.
        """
        if self.format == "parquet" and self.schema is None:
            return SpooledParquet(stream, self.columns, added_types(self.added), folder)
        return self.part_rows(stream, header=True)

    def part_rows(self, stream: BinaryIO, *, header: bool = False) -> RowFormat:
        """What writes one part; parts one after the other, behind a header, are the whole of a text file."""
        if self.part_format == "jsonl":
            return JsonRows(stream)
        if self.part_format == "parquet":
            return ParquetRows(stream, self.schema)
        return CsvRows(stream, self.columns, "\t" if self.format == "tsv" else ",", header)

    def to_json(self) -> dict[str, Any]:
        """The record, for a manifest."""
        schema = None if self.schema is None else base64.b64encode(self.schema.serialize()).decode()
        added = {name: kind.__name__ for name, kind in self.added.items()}
        return {"format": self.format, "columns": self.columns, "added": added, "schema": schema}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Self:
        """What `to_json` wrote; ValueError, KeyError, TypeError or AttributeError where it is something else."""
        schema = written["schema"]
        if schema is not None:
            import pyarrow as pa

            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema)))
        added = {name: _KINDS[kind] for name, kind in written["added"].items()}
        return cls(written["format"], list(written["columns"]), added, schema)


_KINDS: dict[str, builtins.type] = {kind.__name__: kind for kind in (str, float, int, bool, list)}
