"""The work of a job, from rows to the bytes of a part; a part's rows are all that it needs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self

from berthead.data.examples import Columns, to_example
from berthead.formats.format import UnfitRow
from berthead.formats.json import JsonRows
from berthead.formats.output import Output
from berthead.function.protocol import widest
from berthead.jobs.counts import Counts
from berthead.options import PredictOptions
from berthead.predict.columns import added_names, added_types, added_values, input_columns
from berthead.predict.predictor import Applier
from berthead.predict.reading import ReadChunk
from berthead.records import Example, Prediction, Row

if TYPE_CHECKING:
    from berthead.predict.joined import JoinedPredictor

Write = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that are computed together, with their encoded examples."""

    rows: list[Row]
    read: ReadChunk


@dataclass(frozen=True, slots=True)
class Work:
    """Functions, the columns that they read, and those that they add.

    Args:
        predictor: the fitted function, or several.
        columns: the columns to read.
        names: for each function, our names of the added values to the columns' names.
        added: added columns to their types.
    """

    predictor: Applier | JoinedPredictor
    columns: Columns
    names: Mapping[str, Mapping[str, str]]
    added: Mapping[str, type]

    @classmethod
    def plan(
        cls, predictor: Applier | JoinedPredictor, options: PredictOptions, columns: Sequence[str], where: str
    ) -> Self:
        """The work on a table.

        Args:
            predictor: the fitted function, or several; of these each added column begins with the function's name.
            options: columns, if they have other names than at the fit, and what to add.
            columns: the table's.
            where: the table, for errors.

        Raises:
            DataError: a column is missing.
            UsageError: an option names a column that the function does not read.
        """
        read = input_columns(widest(predictor.functions), options, list(columns), where, label=False)
        names: dict[str, dict[str, str]] = {}
        added: dict[str, type] = {}
        for name, function in predictor.functions.items():
            prefix = f"{name}_" if name else ""
            names[name] = added_names(function, [*columns, *added], options.probabilities, prefix)
            added |= added_types(function, names[name])
        return cls(predictor, read, names, added)

    def renamed(self) -> list[str]:
        """A note on added columns that have another name, because the table has a column of theirs; or none."""
        taken = [(f"{name}_{ours}" if name else ours, column) for name, columns in self.names.items()
                 for ours, column in columns.items()]  # fmt: skip
        others = [f'the input has a column "{ours}": ours is "{column}"' for ours, column in taken if ours != column]
        return ["; ".join(others)] if others else []

    def read(self, rows: Iterable[Row]) -> Iterator[Chunk]:
        """Rows in tokenised chunks; the chunks depend only on the rows."""
        waiting: deque[Row] = deque()

        def examples() -> Iterator[Example]:
            for row in rows:
                waiting.append(row)
                yield to_example(row, self.columns, None)

        for read in self.predictor.read(examples()):
            yield Chunk([waiting.popleft() for _ in read[0]], read)

    def answer(self, chunks: Iterable[Chunk], write: Write, write_bad: Write, counts: Counts) -> None:
        """Predict chunks and write their rows with the added columns.

        Args:
            chunks: as `read` gives them.
            write: takes a good row; UnfitRow: the output cannot hold it, and it counts as a bad one.
            write_bad: takes `where`, `error` and `row` of a bad one.
            counts: the counts to add to.
        """
        for chunk in chunks:
            for row, predictions in zip(chunk.rows, self.predictor.answer(chunk.read), strict=True):
                counts.rows += 1
                values, error = self._values(row, predictions)
                if error is None:
                    try:
                        write(row.values | values)
                    except UnfitRow as unfit:
                        error = str(unfit)
                if error is not None:
                    counts.fail(f"{row.where}: {error}")
                    write_bad({"where": row.where, "error": error, "row": row.values})
                    continue
                counts.truncated += any(one.truncated for one in predictions.values())
                counts.windowed += any(one.n_windows > 1 for one in predictions.values())

    def _values(self, row: Row, predictions: Mapping[str, Prediction]) -> tuple[dict[str, Any], str | None]:
        """The values added to a row, or why there is no answer."""
        values: dict[str, Any] = {}
        for name, prediction in predictions.items():
            if prediction.error is not None:
                return {}, prediction.error
            added = added_values(self.predictor.functions[name].task, prediction, self.names[name])
            values |= {self.names[name][ours]: value for ours, value in added.items()}
        if taken := self.added.keys() & row.values.keys():
            # Names are chosen by the header; a row of JSON Lines may have more.
            return {}, f'has a value for "{min(taken)}", the name of an added column'
        return values, None


@dataclass(frozen=True, slots=True)
class PartBytes:
    """A part that was computed, as bytes.

    Args:
        number: which one.
        answers: its rows with their answers.
        errors: its bad rows, as JSON Lines.
        counts: what became of its rows.
    """

    number: int
    answers: bytes
    errors: bytes
    counts: Counts


class Pool(Protocol):
    """Computes parts elsewhere; a job enters it before it writes the manifest."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def compute(
        self, work: Work, output: Output, parts: Iterator[tuple[int, Iterator[Row]]], by: Mapping[str, Any]
    ) -> Generator[PartBytes]:
        """Compute parts, to the same bytes as `compute_part`.

        Args:
            work: the computation on the rows.
            output: the output's format and columns.
            parts: numbers and rows, read as needed.
            by: the versions and kernels required; others are refused.

        Yields:
            The parts, as they are done.
        """
        ...


def compute_part(work: Work, output: Output, chunks: Iterable[Chunk], answers: BinaryIO, errors: BinaryIO) -> Counts:
    """Compute one part: the same rows give the same bytes, whoever computes them.

    Args:
        work: the computation on the rows.
        output: the output's format and columns.
        chunks: the part's rows, `work.read(rows)`, or the same prefetched.
        answers: takes the bytes of the rows with their answers, as `output.part_format`.
        errors: takes the bytes of the bad rows, as JSON Lines.

    Returns:
        Counts of the rows.

    Raises:
        OSError: a stream cannot be written.
        OutputError: a value that the output cannot hold.

    Example:
        >>> counts = compute_part(work, output, work.read(rows), io.BytesIO(), io.BytesIO())  # doctest: +SKIP
    """
    rows, counts = output.part_rows(answers), Counts()
    try:
        work.answer(chunks, rows.write, JsonRows(errors).write, counts)
        rows.finish()
    except BaseException:
        rows.abandon()
        raise
    counts.left_out = list(rows.left_out)
    return counts
