"""Examples to predictions in input order; eval, files and Python all use it."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Full, Queue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from berthead.data.counts import long_notes
from berthead.errors import DataError
from berthead.function import Function
from berthead.model.units import Combine, unit_logits
from berthead.records import Example, FloatArray, Pack, Prediction
from berthead.tasks import Answer, Batch, Task
from berthead.text.layout import Layout
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import Input, Reading

if TYPE_CHECKING:
    import torch

    from berthead.artifact import Artifact
    from berthead.infer.cuda import Engines
    from berthead.infer.engine import Engine

T = TypeVar("T")

# Rows of one length are found among this many; memory stays bounded by characters where texts are long.
CHUNK_ROWS = 4096
CHUNK_CHARACTERS = 4_000_000
DECODED_ROWS = 128
TOKEN_BUDGET = 2048
GPU_TOKEN_BUDGET = 16_384  # a GPU has many more processors to keep at work
READER_THREAD = "berthead-reader"

# Examples, and of each function what it reads of each of them; None where the example has an error.
ReadChunk = tuple[list[Example], list[list[Input | None]]]


@dataclass(frozen=True, slots=True)
class Computed:
    """What the model says of inputs.

    Args:
        values: logits of their units, float32 [units, outputs].
        rows: logits of their rows, float32 [rows, ...], where several rows make one unit; else None.
        layout: which units belong to which input.
    """

    values: FloatArray
    rows: FloatArray | None
    layout: Layout


class Computes(Protocol):
    """What gives logits: an engine.

    Attributes:
        precision: `fp32`, `bf16` or `int8`.
        workers: packs that are computed at once.
    """

    precision: str
    workers: int

    def logits(self, pack: Pack) -> FloatArray:
        """Logits of the pack's rows or tokens, float32 [rows or tokens, ...]."""
        ...

    def computed_by(self) -> dict[str, Any]:
        """What decides the last bit of a number, as JSON: versions, kernels and threads."""
        ...


class Applier:
    """A fitted function and what computes it; safe to call from many threads.

    Args:
        function: how inputs are read, and what logits mean.
        engine: what computes.
        combine: how the windows of a long text become one answer; None: the mean of their logits.
        token_budget: tokens computed at once.
    """

    def __init__(
        self, function: Function, engine: Computes, combine: Combine | None, token_budget: int = TOKEN_BUDGET
    ) -> None:
        self.function, self.engine, self.combine, self.token_budget = function, engine, combine, token_budget

    def computed_by(self) -> dict[str, Any]:
        """What decides the last bit of an answer, as JSON: versions, kernels and threads."""
        return self.engine.computed_by()

    def predict(self, examples: Iterable[Example]) -> Iterator[Prediction]:
        """Answers in input order, streaming: memory does not grow with the rows.

        Args:
            examples: what the task reads; one with an error gets a prediction with that error.

        Yields:
            One prediction an example.
        """
        read = self.read(examples)
        # One text is answered before another thread would have begun to read it.
        alone = isinstance(examples, Sequence) and len(examples) == 1
        for chunk in read if alone else prefetched(read):
            yield from self._answered(chunk)

    @property
    def functions(self) -> dict[str, Function]:
        """What answers, by name: one function, which needs none."""
        return {"": self.function}

    def answers(self, examples: Iterable[Example]) -> Iterator[dict[str, Prediction]]:
        """The same as `predict`, by the names of `functions`."""
        return ({"": prediction} for prediction in self.predict(examples))

    def read(self, examples: Iterable[Example]) -> Iterator[ReadChunk]:
        """What is computed together: chunks of examples, and what was read of them; other threads may read ahead."""
        function = self.function
        for chunk in chunks(examples):
            sound = [example for example in chunk if not example.error]
            inputs = iter(function.task.inputs(function.tokenizer, sound, function.reading))
            yield chunk, [[None if example.error else next(inputs) for example in chunk]]

    def answer(self, chunk: ReadChunk) -> Iterator[dict[str, Prediction]]:
        """The answers to a chunk that was read, by the names of `functions`."""
        return ({"": prediction} for prediction in self._answered(chunk))

    def _answered(self, chunk: ReadChunk) -> Iterator[Prediction]:
        examples, (inputs,) = chunk
        computed = self.compute([one for one in inputs if one and not one.error])
        return answered(self.function, examples, inputs, computed)

    def logits(self, examples: Sequence[Example]) -> FloatArray:
        """Logits of examples without errors, float32 [units, outputs]: a unit is a row, a choice, a word or a token."""
        parts = [self.compute(readable(chunk, inputs)).values for chunk, (inputs,) in prefetched(self.read(examples))]
        return np.concatenate(parts) if parts else np.empty((0, self.function.task.outputs), dtype=np.float32)

    def evaluate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Metrics over examples with targets.

        Args:
            examples: without errors, every target known.

        Returns:
            The task's metrics, `rows`, and `warnings`.

        Raises:
            DataError: an example cannot be read, and the function was fitted so that this is an error.
        """
        task = self.function.task
        values, inputs = self.computed(examples)
        targets = task.targets([example.target for example in examples], inputs)
        scores = task.evaluate(values, targets, Batch(examples, inputs))
        misfits = [f"out of place: {line}" for line in task.misfits(examples, inputs)]
        scores["warnings"] += misfits + length_notes(inputs, self.function.reading)
        return {"rows": len(examples)} | scores

    def computed(self, examples: Sequence[Example]) -> tuple[FloatArray, list[Input]]:
        """Logits of examples, and what was read of each, for who scores them.

        Args:
            examples: without errors.

        Returns:
            float32 [units, outputs], and an input an example, without its tokens.

        Raises:
            DataError: an example cannot be read, and the function was fitted so that this is an error.
        """
        values, inputs = [np.empty((0, self.function.task.outputs), dtype=np.float32)], list[Input]()
        for chunk, (read,) in prefetched(self.read(examples)):
            sound = readable(chunk, read)
            values.append(self.compute(sound).values)
            inputs += [one.without_rows() for one in sound]
        return np.concatenate(values), inputs

    def compute(self, inputs: Sequence[Input]) -> Computed:
        """Logits of what was read, in its order."""
        layout, engine, outputs = Layout(inputs), self.engine, self.function.task.outputs
        found = unit_logits(layout, engine.logits, self.combine, outputs, self.token_budget, engine.workers)
        return Computed(*found, layout)


class Predictor(Applier):
    """A fitted function prepared to be applied by torch or our kernels; safe to call from many threads.

    Args:
        artifact: the fitted function.
        precision: `fp32` (exact), `bf16` or `int8`.
        token_budget: tokens computed at once; None: what suits the device.
        device: `cpu`, or `cuda` for all GPUs; None: `cpu`.
    """

    engine: Engine | Engines  # type: ignore[assignment]

    def __init__(
        self, artifact: Artifact, precision: str = "fp32", token_budget: int | None = None,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        from berthead.infer import engine
        from berthead.model.heads import over_arrays

        self.device = device or engine.CPU
        made: Any = engine.applied(artifact.model, precision, self.device)
        super().__init__(artifact, made, over_arrays(artifact.model.head), token_budget or budget_of(self.device))

    def computed_by(self) -> dict[str, Any]:
        """What decides the last bit of an answer: versions, kernels and threads."""
        from berthead.infer.engine import computed_by

        return computed_by(self.engine.kernels, self.device)

    def __reduce__(self) -> tuple[Any, ...]:
        # The prepared weights lie as this processor wants them: they are made again where it is unpickled.
        return type(self), (self.function, self.engine.precision, self.token_budget, self.device)


def budget_of(device: torch.device) -> int:
    """Tokens that a device computes at once, by default."""
    return TOKEN_BUDGET if device.type == "cpu" else GPU_TOKEN_BUDGET


def answered(
    function: Function, examples: Sequence[Example], inputs: Sequence[Input | None], computed: Computed
) -> Iterator[Prediction]:
    """What a function answers to examples.

    Args:
        function: the function.
        examples: also those with an error.
        inputs: what was read of each.
        computed: of the inputs without an error.

    Yields:
        One prediction an example.
    """
    sound = [(example, one) for example, one in zip(examples, inputs, strict=True) if one and not one.error]
    answers = _answers(function.task, [example for example, _ in sound], [one for _, one in sound], computed)
    for example, one in zip(examples, inputs, strict=True):
        error = example.error or (one.error if one else None)
        if error or one is None:
            yield Prediction(None, window=None, error=error, where=example.where)
        else:
            yield _prediction(example, one, *next(answers))


def decoded(task: Task, values: FloatArray, batch: Batch) -> Iterator[Answer]:
    """Answers of many examples, decoded a few at a time: a row of 1,000 labels is a large dict.

    Args:
        task: whose logits they are.
        values: float32 [units, outputs].
        batch: the examples, and what was read of each.

    Yields:
        An answer an example.
    """
    edges = np.cumsum([0, *(one.n_units for one in batch.inputs)])
    for start in range(0, len(batch.inputs), DECODED_ROWS):
        end = min(start + DECODED_ROWS, len(batch.inputs))
        some = Batch(batch.examples[start:end], batch.inputs[start:end])
        yield from task.decode(values[edges[start] : edges[end]], some)


def split_readable(
    task: Task, tokenizer: Tokenizer, examples: Sequence[Example], reading: Reading
) -> tuple[list[Example], list[str]]:
    """Examples that can be read, and a line for each of the others.

    Args:
        task: how they are read.
        tokenizer: the encoder's.
        examples: without errors.
        reading: how long ones are read; with `window` and `truncate` all can be read.

    Returns:
        The sound examples, and `file:line: what is wrong`.
    """
    if reading.on_long != "error":
        return list(examples), []
    sound, bad = [], []
    for chunk in chunks(examples):
        for example, one in zip(chunk, task.inputs(tokenizer, chunk, reading), strict=True):
            if one.error:
                bad.append(f"{example.where}: {one.error}")
            else:
                sound.append(example)
    return sound, bad


def readable(examples: Sequence[Example], inputs: Sequence[Input | None]) -> list[Input]:
    """What was read of the examples.

    Raises:
        DataError: one of them cannot be read.
    """
    sound = []
    for example, one in zip(examples, inputs, strict=True):
        error = example.error or (one.error if one else None)
        if error or one is None:
            raise DataError(example.where, str(error), "", "Correct the row, or fit with --on-long window.")
        sound.append(one)
    return sound


def chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Examples in lists bounded by rows and by characters."""
    chunk: list[Example] = []
    characters = 0
    for example in examples:
        chunk.append(example)
        characters += len(example.text) + len(example.pair or "") + sum(map(len, example.choices or ()))
        if len(chunk) >= CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def prefetched(items: Iterator[T]) -> Generator[T]:
    """The same items, the next one made in another thread while the caller works on this one.

    An error of the maker is raised here, in its place.
    """
    ready: Queue[tuple[T | None, BaseException | None]] = Queue(1)
    stopped = threading.Event()

    def hand_over(item: T | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(Full):
                ready.put((item, error), timeout=0.1)
                return

    def make() -> None:
        try:
            for item in items:
                hand_over(item, None)
                if stopped.is_set():
                    return
            hand_over(None, None)
        except BaseException as error:
            hand_over(None, error)

    # A daemon: Ctrl-C must not wait for input that may never come.
    threading.Thread(target=make, daemon=True, name=READER_THREAD).start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()


def length_notes(inputs: Sequence[Input], reading: Reading) -> list[str]:
    """How many rows were longer than the model reads at once, as lines; nothing where none were."""
    cut, windowed = sum(one.truncated for one in inputs), sum(one.n_windows > 1 for one in inputs)
    return long_notes(cut, windowed, len(inputs), reading.max_tokens)


def _answers(
    task: Task, examples: list[Example], inputs: list[Input], computed: Computed
) -> Iterator[tuple[Answer, int | None]]:
    layout = computed.layout
    # A few rows at a time: a row of 1,000 labels is a large dict.
    for start in range(0, len(inputs), DECODED_ROWS):
        some = np.arange(start, min(start + DECODED_ROWS, len(inputs)))
        values = computed.values[layout.unit_starts[some[0]] : layout.unit_starts[some[-1] + 1]]
        batch = Batch(examples[start : start + len(some)], inputs[start : start + len(some)])
        for number, answer in zip(some, task.decode(values, batch), strict=True):
            yield answer, _deciding_window(computed, int(number))


def _deciding_window(computed: Computed, number: int) -> int | None:
    """The window whose own logit is largest for the answer; of numbers, the one nearest to the answer."""
    layout = computed.layout
    if layout.by_token:
        return None
    if computed.rows is None:
        return 0
    values = computed.values[layout.unit_starts[number] : layout.unit_starts[number + 1]]
    unit, column = np.unravel_index(int(values.argmax()), values.shape)
    rows = np.arange(layout.row_starts[number], layout.row_starts[number + 1])
    rows = rows[layout.unit_of_row[rows] == layout.unit_starts[number] + unit]
    own = computed.rows[rows]
    outputs = values.shape[1]
    if own.shape[1] > outputs:  # windows attend: the last column is what each weighs
        return int(own[:, outputs].argmax())
    if values.size == 1:
        return int(np.abs(own[:, 0] - values[0, 0]).argmin())
    return int(own[:, column].argmax())


def _prediction(example: Example, read: Input, answer: Answer, window: int | None) -> Prediction:
    return Prediction(
        answer.answer, answer.score, answer.probabilities, read.n_tokens, read.truncated, read.n_windows,
        window if answer.spans is None else None, answer.spans, answer.tags, where=example.where,
    )  # fmt: skip
