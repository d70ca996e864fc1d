"""One output of many parts, the same bytes however the parts came about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from berthead.formats.encoders import GROUP_ROWS, ParquetRows
from berthead.formats.output import Output
from berthead.formats.parquet_types import LearntTypes, added_types
from berthead.formats.readers import format_of
from berthead.jobs.parts import Part
from berthead.storage.files import Aside, sync_folder, target_of

_COPIED = 1 << 20  # bytes at once
# The hidden files have names of their own: one that was left by a killed process is replaced by the next.
_MARK = "whole"


def put_together(output: Output, parts: Sequence[Part], target: str) -> str | None:
    """Write the output and the file of its bad rows from parts.

    Args:
        output: what is written.
        parts: all of them, in their order.
        target: where to; what stands there is replaced when the new file is on the disk.

    Returns:
        The file of bad rows; None: there are none.

    Raises:
        OSError: it cannot be written; nothing is left, and the parts stay.
        OutputError: as OSError, or a value that does not fit.
    """
    bad = [part.errors for part in parts if part.errors]
    errors_file = f"{target}.errors.jsonl"
    place, asides = target_of(errors_file), list[Aside]()
    try:
        if bad:
            asides.append(Aside(place, mark=_MARK))
            _copy(bad, asides[0].stream)
        asides.append(Aside(target_of(target), format_of(target)[1], _MARK))
        _fill(output, [part.answers for part in parts], asides[-1].stream)
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


def _fill(output: Output, parts: Sequence[Path], stream: BinaryIO) -> None:
    if output.format != "parquet":
        output.part_rows(stream, header=True).finish()
        _copy(parts, stream)
        return
    rows = ParquetRows(stream, output.schema if output.schema is not None else _learnt(output, parts))
    try:
        for group in _groups(parts) if output.schema is not None else ():
            rows.add_group(group)
        for values in _json_rows(parts) if output.schema is None else ():
            rows.write(values)
        rows.finish()
    except BaseException:
        rows.abandon()
        raise


def _copy(parts: Sequence[Path], stream: BinaryIO) -> None:
    for part in parts:
        with open(part, "rb") as file:
            shutil.copyfileobj(file, stream, _COPIED)


def _groups(parts: Sequence[Path]) -> Iterator[Any]:
    """The row groups of Parquet files."""
    import pyarrow.parquet as pq

    for part in parts:
        with pq.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)


def _json_rows(parts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        with open(part, "rb") as file:
            yield from map(json.loads, file)


def _learnt(output: Output, parts: Sequence[Path]) -> Any:
    """The schema that holds all rows."""
    types = LearntTypes(output.columns, added_types(output.added))
    batch: list[dict[str, Any]] = []
    for values in _json_rows(parts):
        batch.append(values)
        if len(batch) == GROUP_ROWS:
            types.learn(batch)
            batch = []
    types.learn(batch)
    return types.schema
