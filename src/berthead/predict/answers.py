"""Logits to predictions, in the order of the examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from berthead.errors import DataError
from berthead.function.protocol import Function
from berthead.records import Example, FloatArray, Prediction
from berthead.tasks import Answer, Batch, Task
from berthead.text.layout import Layout
from berthead.text.windows import EncodedExample

DECODED_ROWS = 128


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
    sound = [(example, one) for example, one in zip(examples, inputs, strict=True) if one and not one.error]
    batch = Batch([example for example, _ in sound], [one for _, one in sound])
    answers = enumerate(decoded(function.task, computed.values, batch))
    for example, one in zip(examples, inputs, strict=True):
        error = example.error or (one.error if one else None)
        if error or one is None:
            yield Prediction(None, window=None, error=error, where=example.where)
        else:
            number, answer = next(answers)
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


def _prediction(example: Example, read: EncodedExample, answer: Answer, window: int | None) -> Prediction:
    return Prediction(
        answer.answer, answer.score, answer.probabilities, read.n_tokens, read.truncated, read.n_windows,
        window if answer.spans is None else None, answer.spans, answer.tags, where=example.where,
    )  # fmt: skip
