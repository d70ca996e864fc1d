"""Logits to predictions, in the order of the examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from berthead.errors import DataError
from berthead.function.protocol import Function
from berthead.records import Example, FloatArray, IntArray, Prediction
from berthead.tasks import Answer, Batch, Task
from berthead.text.layout import Layout
from berthead.text.windows import EncodedExample

DECODED_ROWS = 128
NOT_FINITE = (
    "the model's numbers for it are not finite; expected finite logits: its weights are damaged or too large "
    "(berthead verify MODEL), or they overflow in this precision (--precision fp32)"
)


@dataclass(frozen=True, slots=True)
class Computed:
    """The model's logits for inputs.

    Args:
        values: logits of their units, float32 [units, outputs].
        rows: logits of their rows, float32 [rows, ...], if several rows make one unit; else None.
        layout: which units belong to which input.
    """

    values: FloatArray
    rows: FloatArray | None
    layout: Layout

    @property
    def faulty(self) -> NDArray[np.bool_]:
        """Whether any logit of an input is NaN or infinite, [inputs]."""
        faulty = _not_finite(self.values, self.layout.unit_starts)
        return faulty if self.rows is None else faulty | _not_finite(self.rows, self.layout.row_starts)


def _not_finite(values: FloatArray, starts: IntArray) -> NDArray[np.bool_]:
    counts = np.concatenate([[0], np.cumsum(~np.isfinite(values).all(1))])
    return np.diff(counts[starts]) > 0


def answered(
    function: Function, examples: Sequence[Example], inputs: Sequence[EncodedExample | None], computed: Computed
) -> Iterator[Prediction]:
    """The predictions of a function for examples.

    Args:
        function: the function.
        examples: with or without an error.
        inputs: the encoded examples.
        computed: the logits of the inputs without an error.

    Yields:
        One prediction an example.
    """
    read = [(example, one) for example, one in zip(examples, inputs, strict=True) if one and not one.error]
    faulty = computed.faulty
    sound = np.flatnonzero(~faulty)
    values = computed.values[computed.layout.units_of(sound)] if faulty.any() else computed.values
    batch = Batch([read[number][0] for number in sound], [read[number][1] for number in sound])
    answers, numbers = decoded(function.task, values, batch), iter(range(len(read)))
    for example, one in zip(examples, inputs, strict=True):
        error = example.error or (one.error if one else None)
        if error or one is None:
            yield Prediction(None, window=None, error=error, where=example.where)
            continue
        number = next(numbers)
        answer = None if faulty[number] else next(answers)
        if answer is None or not _is_finite(answer):
            yield Prediction(None, window=None, error=NOT_FINITE, where=example.where)
        else:
            yield _prediction(example, one, answer, _deciding_window(function.task, computed, number))


def probabilities_of(predictions: Iterable[Prediction], labels: int) -> FloatArray:
    """Probabilities of predictions, as an array.

    Args:
        predictions: each with a probability for every label.
        labels: the number of labels.

    Returns:
        float32 [predictions, labels].

    Raises:
        DataError: a prediction without an answer.
    """
    rows: list[list[float]] = []
    for prediction in predictions:
        if prediction.probabilities is None:
            raise DataError(prediction.where, str(prediction.error))
        rows.append(list(prediction.probabilities.values()))
    return np.array(rows, dtype=np.float32).reshape(len(rows), labels)


def decoded(task: Task, values: FloatArray, batch: Batch) -> Iterator[Answer]:
    """Answers of many examples, decoded a few at a time: a row of 1,000 labels is a large dict.

    Args:
        task: the task of the logits.
        values: float32 [units, outputs].
        batch: the examples and encoded examples.

    Yields:
        An answer an example.
    """
    edges = np.cumsum([0, *(one.n_units for one in batch.inputs)])
    for start in range(0, len(batch.inputs), DECODED_ROWS):
        end = min(start + DECODED_ROWS, len(batch.inputs))
        some = Batch(batch.examples[start:end], batch.inputs[start:end])
        yield from task.decode(values[edges[start] : edges[end]], some)


def _deciding_window(task: Task, computed: Computed, number: int) -> int | None:
    """The window with the highest score for the answer, by the task or the head's attention."""
    layout = computed.layout
    if layout.by_token:
        return None
    if computed.rows is None:
        return 0
    values = computed.values[layout.unit_starts[number] : layout.unit_starts[number + 1]]
    unit = int(values.argmax()) // values.shape[1]
    rows = np.arange(layout.row_starts[number], layout.row_starts[number + 1])
    rows = rows[layout.unit_of_row[rows] == layout.unit_starts[number] + unit]
    own = computed.rows[rows]
    outputs = values.shape[1]
    if own.shape[1] > outputs:  # window attention: the last column is each window's weight
        return int(own[:, outputs].argmax())
    return int(task.window_scores(values[unit], own).argmax())


def _is_finite(answer: Answer) -> bool:
    """Whether an answer's numbers are: large logits may overflow when they are decoded."""
    numbers = answer.numbers if answer.score is None else [answer.score, *answer.numbers]
    return all(map(math.isfinite, numbers))


def _prediction(example: Example, read: EncodedExample, answer: Answer, window: int | None) -> Prediction:
    return Prediction(
        answer.answer, answer.score, answer.probabilities, read.n_tokens, read.truncated, read.n_windows,
        window if answer.spans is None else None, answer.spans, answer.tags, where=example.where,
    )  # fmt: skip
