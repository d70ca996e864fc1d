"""Parquet to rows, one batch of a row group at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from berthead.data.lines import CHUNK, check_unique, empty
from berthead.errors import DataError
from berthead.records import Row

_BATCH = 1024  # rows decoded at once


def parquet_rows(name: str, binary: io.BufferedReader, stack: ExitStack) -> tuple[Any, Iterator[Row]]:
    """The `pyarrow.Schema` and the rows; the file is closed by the stack."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not binary.peek(1):
        empty(name)
    try:
        # A buffer, so that a row group is not held in memory whole.
        file = stack.enter_context(pq.ParquetFile(binary, buffer_size=CHUNK))
        schema = file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        fix = "Write the file again, or name it after its format."
        raise DataError(name, f"is not a sound Parquet file ({reason})", fix=fix) from error
    check_unique(name, schema.names)
    return schema, _rows(name, file, schema.names)


def _rows(name: str, file: Any, columns: list[str]) -> Iterator[Row]:
    import pyarrow as pa

    done = 0
    try:
        for batch in file.iter_batches(batch_size=_BATCH):
            for values in zip(*map(_plain_values, batch.columns), strict=True):
                done += 1
                yield Row(dict(zip(columns, values, strict=True)), f"{name}:row {done}")
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise DataError(f"{name}:row {done + 1}", f"cannot be read ({reason})", fix="Write the file again.") from error


def _plain_values(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        return [_plain_value(scalar) for scalar in column]


def _plain_value(scalar: Any) -> Any:
    """A Python value; or nanoseconds as ISO text, and a year past 9999 as a number of the column's unit."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        if not hasattr(scalar, "value"):
            raise
        return str(scalar.cast("string")) if str(scalar.type).startswith("timestamp[ns") else scalar.value
