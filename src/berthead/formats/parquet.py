"""Parquet to rows, one batch of a row group at a time."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import accumulate, islice
from typing import Any

from berthead.errors import DataError
from berthead.formats.lines import CHUNK, check_unique, empty
from berthead.records import Row

_BATCH = 1024  # rows decoded at once


class ParquetRows:
    """The rows of a Parquet file from the top on; what is skipped is not decoded, and whole row groups are not read.

    Args:
        name: the file, for errors.
        binary: the open file.
        stack: closes what is opened here.

    Attributes:
        schema: the `pyarrow.Schema`.

    Raises:
        DataError: it is not sound, or names a column twice.
    """

    def __init__(self, name: str, binary: io.BufferedReader, stack: ExitStack) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not binary.peek(1):
            empty(name)
        try:
            # A buffer, so that a row group is not held in memory whole.
            self._file = stack.enter_context(pq.ParquetFile(binary, buffer_size=CHUNK))
            self.schema = self._file.schema_arrow
            metadata = self._file.metadata
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        except (pa.ArrowException, OSError) as error:
            reason = str(error).split("\n")[0].rstrip(".")
            fix = "Write the file again, or name it after its format."
            raise DataError(name, f"is not a sound Parquet file ({reason})", fix=fix) from error
        check_unique(name, self.schema.names)
        self._name, self._columns = name, list(self.schema.names)
        self._edges = [0, *accumulate(sizes)]  # the first row of each group, and the end
        self._done = self._read = 0  # rows handed out or skipped; rows of the batches that were taken
        self._batch: Iterator[tuple[Any, ...]] = iter(())
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        values = next(self._batch, None)
        if values is None:
            self._take(self._done)
            values = next(self._batch)
        self._done += 1
        return Row(dict(zip(self._columns, values, strict=True)), f"{self._name}:row {self._done}")

    def skip(self, rows: int) -> int:
        """Leave out the next rows; returns how many there were."""
        begun, self._done = self._done, min(self._done + rows, self._edges[-1])
        if self._done <= self._read:
            deque(islice(self._batch, self._done - begun), maxlen=0)
            return self._done - begun
        self._batch = iter(())
        group = bisect_right(self._edges, self._done) - 1
        if self._edges[group] > self._read:
            self._batches, self._read = self._from_group(group), self._edges[group]
        return self._done - begun

    def _take(self, row: int) -> None:
        """The batch with this row, from it on; none where the file ends."""
        import pyarrow as pa

        if self._batches is None:
            self._batches = self._from_group(0)
        try:
            for batch in self._batches:
                self._read += len(batch)
                if self._read > row:
                    kept = batch.slice(len(batch) - (self._read - row))
                    self._batch = zip(*map(_plain_values, kept.columns), strict=True)
                    return
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).split("\n")[0].rstrip(".")
            where = f"{self._name}:row {row + 1}"
            raise DataError(where, f"cannot be read ({reason})", fix="Write the file again.") from error

    def _from_group(self, group: int) -> Iterator[Any]:
        groups = list(range(group, len(self._edges) - 1))
        batches: Iterator[Any] = self._file.iter_batches(batch_size=_BATCH, row_groups=groups)
        return batches


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
