"""Estimators of tags, answers in a context, and choices."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from berthead.data.examples import Columns, sound_examples, to_example
from berthead.data.forms import FORMS
from berthead.errors import DataError
from berthead.estimators.base import TextEstimator, with_parameters
from berthead.estimators.inputs import refuse_empty, rows_of, values_of
from berthead.predict.rows import mended
from berthead.records import Example, Prediction, Row, Span
from berthead.tasks import choose_metric, find_task


class _StructuredEstimator(TextEstimator):
    """Base of the estimators of tags, answers and choices, whose rows are not plain texts."""

    _task: ClassVar[str]

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on rows and targets.

        Args:
            X: rows, as the class says.
            y: their targets, of the same length.

        Returns:
            The estimator.

        Raises:
            DataError: rows that cannot be used (it is a ValueError).
        """
        if y is None:
            raise DataError("y", "requires y to be passed, but the target y is None", "a target for every row")
        examples = self._examples(X, y)
        for line in mended(examples):
            warnings.warn(line, UserWarning, stacklevel=2)
        self.fitted_ = self._fit_examples(
            self._task, examples, FORMS[find_task(self._task).form].usual(), self._examples
        )
        return self

    def _predictions(self, X: Any) -> list[Prediction]:
        check_is_fitted(self, "fitted_")
        found = list(self.fitted_.applier.predict(self._examples(X, None)))
        for one in found:
            if one.error:
                raise DataError(one.where, one.error)
        return found

    def score(self, X: Any, y: Any) -> float:
        """The task's metric on rows with targets, from 0 to 1: F1 of entities or of answers, or accuracy."""
        check_is_fitted(self, "fitted_")
        examples = self._examples(X, y)
        for example in examples:
            try:
                self.fitted_.artifact.task.check(example.target)
            except ValueError as error:
                raise DataError(example.where, f"the target {error}", fix="Fit on rows that have it.") from None
        return float(self.fitted_.applier.evaluate(examples)[choose_metric(find_task(self._task), None)])

    def _examples(self, X: Any, y: Any) -> list[Example]:
        rows = rows_of(X)
        refuse_empty(rows)
        if y is not None:
            check_consistent_length(rows, y)
        task = find_task(self._task)
        form = FORMS[task.form]
        columns = Columns("text", "pair" if form.needs_pair else None, "label" if y is not None else None,
                          ("choices",) if form.choices else (), form=task.form)  # fmt: skip
        targets = [None] * len(rows) if y is None else list(y)
        read = (
            to_example(Row(values_of(row, form) | {"label": target}, f"X[{number}]"), columns, task.read, task.settled)
            for number, (row, target) in enumerate(zip(rows, targets, strict=True))
        )
        return sound_examples(read, skip_bad_rows=False)[0]


@with_parameters("valid", "random_state", "verbose")
class SequenceLabeler(_StructuredEstimator):
    """Predict(BERT(x)) for a tag a word: X holds lists of tokens and y lists of tags, or X texts and y lists of spans.

    `head="crf"` decodes with a conditional random field.

    Args:
        {options}

    Attributes:
        fitted_: the `Fitted` function.

    Example:
        >>> X, y = [["Ann", "left"], ["Bob", "came"]] * 2, [["B-PER", "O"], ["B-PER", "O"]] * 2
        >>> SequenceLabeler(adapt="frozen", valid=0).fit(X, y).predict([["Eve", "went"]])
        [['B-PER', 'O']]
    """

    _task: ClassVar[str] = "tag"

    def predict(self, X: Any) -> list[Any]:
        """A list for each row: tags if the row is tokens, `Span` records if it is a text."""
        return [one.spans if one.tags is None else one.tags for one in self._predictions(X)]


@with_parameters("valid", "random_state", "verbose")
class SpanExtractor(_StructuredEstimator):
    """Predict(BERT(x)) for the answer in a context: X holds (question, context), y answers as texts or as in SQuAD.

    An answer in y is a text that occurs once in its context, "" for no answer, or [{"text": ...,
    "answer_start": ...}].

    Args:
        {options}

    Attributes:
        fitted_: the `Fitted` function.

    Example:
        >>> X = [("Who came?", "Yesterday Ann came."), ("Who left?", "Then Bob left.")]
        >>> answer = SpanExtractor(epochs=1, valid=0).fit(X, ["Ann", "Bob"]).predict([("Who sat?", "Eve sat.")])[0]
        >>> answer in "Eve sat."
        True
    """

    _task: ClassVar[str] = "span"

    def predict(self, X: Any) -> list[str]:
        """The answer to each question, a part of its context; empty: no answer."""
        return [one.answer for one in self._predictions(X)]

    def predict_spans(self, X: Any) -> list[list[Span]]:
        """The best few answers to each question, best first, with their positions and probabilities."""
        return [one.spans or [] for one in self._predictions(X)]

    def _examples(self, X: Any, y: Any) -> list[Example]:
        # An empty text is no answer; a blank cell of a file may be a mistake.
        return super()._examples(
            X, None if y is None else [[] if isinstance(one, str) and not one else one for one in y]
        )


@with_parameters("valid", "random_state", "verbose")
class MultipleChoice(_StructuredEstimator):
    """Predict(BERT(x)) for one of a question's choices: X holds (question, [choice, ...]), y numbers, letters or texts.

    Args:
        {options}

    Attributes:
        fitted_: the `Fitted` function.

    Example:
        >>> X = [("Grass is", ["green", "red"]), ("Blood is", ["green", "red"])]
        >>> chooser = MultipleChoice(epochs=1, valid=0).fit(X, [0, 1])
        >>> chooser.predict_proba([("Snow is", ["white", "red", "hot"])])[0].shape
        (3,)
    """

    _task: ClassVar[str] = "choose"

    def predict(self, X: Any) -> list[Any]:
        """The choice for each question, named as in y: its number, its letter, or its text."""
        return [one.answer for one in self._predictions(X)]

    def predict_proba(self, X: Any) -> list[np.ndarray]:
        """The probability of each choice, an array [choices] for each question."""
        return [np.array(list((one.probabilities or {}).values())) for one in self._predictions(X)]
