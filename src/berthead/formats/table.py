"""Several files with one format and the same columns as one table, read in numbered parts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from berthead.errors import DataError, listed
from berthead.formats.readers import RowReader, View, count_rows, open_rows
from berthead.records import Row


class Table:
    """The rows of files, in constant memory.

    Args:
        paths: at least one; `-` is stdin.

    Attributes:
        paths: the files.
        name: the first one.
        format: of all of them.
        columns: of all of them, in the order of the first.
        schema: the `pyarrow.Schema` of the first Parquet file, or None.
        rows: rows that were read or skipped so far.
        view: makes other rows of those of each file, and a note, as `through` takes them; or None.

    Raises:
        DataError: one cannot be read, or has another format or other columns than the first.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        self._reader = open_rows(self.paths[0])
        first = self._reader
        self.name, self.format, self.columns, self.schema = first.name, first.format, first.columns, first.schema
        try:
            for path in self.paths[1:]:
                with open_rows(path) as other:
                    self._check_alike(other)
        except BaseException:
            self.close()
            raise
        self._waiting = iter(self.paths[1:])
        self._rows = iter(self._reader)
        self._notes: list[str] = []
        self.view: tuple[View, str] | None = None
        self.rows = 0

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        while (row := next(self._rows, None)) is None:
            self._open_next()
        self.rows += 1
        return row

    def skip(self, rows: int) -> int:
        """Skip the next rows; returns how many there were, fewer at the end."""
        skipped = self._reader.skip(rows)
        while skipped < rows:
            try:
                self._open_next()
            except StopIteration:
                break
            skipped += self._reader.skip(rows - skipped)
        self.rows += skipped
        return skipped

    def parts(self, rows: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Iterator[Row]]]:
        """The rows in parts of a fixed size; unwanted parts are skipped.

        Args:
            rows: the number of rows of each part except the last.
            wanted: whether a part is wanted, by its number from 0.

        Yields:
            The number of a part and its rows, which must be read before the next part.
        """
        for number in itertools.count():
            if wanted(number):
                first = next(self, None)
                if first is None:
                    return
                yield number, itertools.chain([first], itertools.islice(self, rows - 1))
            elif self.skip(rows) == 0:
                return

    def peek(self, most: int) -> list[Row]:
        """The first rows of the first file, which are still read afterwards."""
        return self._reader.peek(most)

    def through(self, view: View, note: str) -> None:
        """Read other rows, which are made from those of each file, as `RowReader.through`."""
        self.view, self.schema = (view, note), None
        self._reader.through(view, note)

    def count(self) -> int | None:
        """An estimate of the number of rows, as `count_rows`; None if unknown."""
        if self.view:
            return None
        known = [count for path in self.paths if (count := count_rows(path)) is not None]
        return sum(known) if len(known) == len(self.paths) else None

    @property
    def notes(self) -> list[str]:
        """Notes for the user about the rows read so far."""
        return self._notes + self._reader.notes

    def close(self) -> None:
        """Close the file that is open; the rows end here."""
        self._reader.close()

    def abandon(self) -> None:
        """Abandon the file without closing it: closing would wait for another thread's read."""
        self._reader.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_next(self) -> None:
        """Open the next file; StopIteration: there is none."""
        path = next(self._waiting)
        self._notes += self._reader.notes
        self._reader.close()
        self._reader = open_rows(path)
        if self.view:
            self._reader.through(*self.view)
        self._rows = iter(self._reader)

    def _check_alike(self, other: RowReader) -> None:
        if other.format != self.format:
            raise DataError(
                other.name, f"is {other.format}", f"{self.format}, as {self.name} is", "Predict it by itself."
            )
        fix = "Predict files with other columns by themselves."
        if set(other.columns) != set(self.columns):
            missing = [name for name in self.columns if name not in other.columns]
            more = [name for name in other.columns if name not in self.columns]
            said = [f"{what} {_quoted(names)}" for what, names in (("lacks", missing), ("has also", more)) if names]
            saw = f"has other columns than {self.name}: it {' and '.join(said)}"
            raise DataError(other.name, saw, f"the columns {_quoted(self.columns)}", fix)
        for name in self.columns if self.schema is not None else ():
            kinds = other.schema.field(name).type, self.schema.field(name).type
            if kinds[0] != kinds[1]:
                raise DataError(other.name, f'column "{name}" is {kinds[0]}', f"{kinds[1]}, as in {self.name}", fix)


def _quoted(names: Sequence[Any]) -> str:
    return listed(f'"{name}"' for name in names)
