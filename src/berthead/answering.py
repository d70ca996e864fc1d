"""What the user of a fitted function asks of it, whatever computes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, overload

import numpy as np

from berthead.data.examples import FORMS, Columns, Form, to_example
from berthead.data.labels import is_blank
from berthead.errors import DataError, UsageError
from berthead.function.function import Function
from berthead.predict.predictor import Applier
from berthead.predict.rows import labelled_rows
from berthead.records import Example, FloatArray, Label, Prediction, Row

Text = str | tuple[str, Any] | dict[str, Any]
"""One input: a text; a tuple of two texts; question and context; question and choices; {"tokens": [...]}."""


class Answering(ABC):
    """A function that answers and is scored."""

    @property
    @abstractmethod
    def function(self) -> Function:
        """How inputs are read, and what logits mean."""

    @property
    @abstractmethod
    def predictor(self) -> Applier:
        """The function with what computes it."""

    @property
    def labels(self) -> list[Label]:
        """The labels it can answer, in the order of `predict_proba`; none for regress, span and choose."""
        return self.function.task.answer_labels

    @overload
    def predict(self, texts: Text) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: Iterable[Text]) -> list[Prediction]: ...

    def predict(self, texts: Text | Iterable[Text]) -> Prediction | list[Prediction]:
        """Answers for one text or for many.

        Args:
            texts: an input or an iterable of them. An input is a text; for pairs a tuple of two texts; for span
                (question, context); for choose (question, [choice, ...]); for tag and joint a text, or
                {"tokens": [...]}. Each may also be a dict with the columns that the function was fitted on.

        Returns:
            One prediction for one text, a list in the same order for many. A text without an answer gets a
            prediction with `error` set.

        Raises:
            DataError: something that is neither a text nor a pair.
        """
        one = self._is_one(texts)
        inputs: Iterable[Any] = [texts] if one else texts
        examples = self._examples(inputs)
        predictions = list(self.predictor.predict(list(examples) if one else examples))
        return predictions[0] if one else predictions

    def predict_proba(self, texts: Iterable[Text]) -> FloatArray:
        """Probabilities, float32 [rows, labels].

        Args:
            texts: texts, or tuples of two for pairs.

        Returns:
            One row a text, columns in the order of `labels`.

        Raises:
            DataError: a text without an answer.
            UsageError: the function answers numbers.
        """
        if not self.function.task.has_probabilities:
            saw = f"--task {self.function.task.name} has no probabilities of labels a row"
            raise UsageError("predict_proba", saw, "", "Use predict.")
        if self._is_one(texts):
            raise DataError("predict_proba", "got one text", "a list of texts", "Pass [text].")
        rows: list[list[float]] = []
        for prediction in self.predictor.predict(self._examples(texts)):
            if prediction.probabilities is None:
                raise DataError(prediction.where, str(prediction.error))
            rows.append(list(prediction.probabilities.values()))
        return np.array(rows, dtype=np.float32).reshape(len(rows), len(self.labels))

    def evaluate(
        self,
        data: Any,
        *,
        text: str | None = None,
        pair: str | None = None,
        label: str | None = None,
        choices: str | None = None,
        intent: str | None = None,
        skip_bad_rows: bool | None = None,
    ) -> dict[str, Any]:
        """Metrics on labelled data.

        Args:
            data: a file, a data frame, or a list of dicts.
            text: column of the text; None: as fitted.
            pair: column of the second text; None: as fitted.
            label: column of the target; None: as fitted.
            choices: column of the choices, or one for each, as a,b,c; None: as fitted.
            intent: column of the label beside tags; None: as fitted.
            skip_bad_rows: leave out rows that cannot be used; they are counted as `skipped`.

        Returns:
            The task's metrics, `rows`, and `warnings`.

        Raises:
            DataError: rows that cannot be used, or labels that the function does not know.
        """
        read = labelled_rows(
            data, [self.function],
            text=text, pair=pair, label=label, choices=choices, intent=intent, skip_bad_rows=skip_bad_rows,
        )  # fmt: skip
        scores = self.predictor.evaluate(read.examples)
        notes = read.notes + scores["warnings"] + read.left_out
        return scores | {"skipped": len(read.bad), "warnings": notes}

    def _is_one(self, texts: Any) -> bool:
        """Whether this is one input; in a tuple two texts are a pair, in a list they are a batch of two."""
        if isinstance(texts, str) or (isinstance(texts, dict) and not self._form.is_plain):
            return True
        if not isinstance(texts, tuple) or len(texts) != 2 or not isinstance(texts[0], str):
            return False
        return isinstance(texts[1], str) or (bool(self._form.choices) and isinstance(texts[1], list | tuple))

    @property
    def _form(self) -> Form:
        return FORMS[self.function.task.form]

    def _examples(self, texts: Iterable[Any]) -> Iterator[Example]:
        # Iterating these gives bytes, keys and column names: no texts to be answered.
        if isinstance(texts, bytes | dict) or hasattr(texts, "columns") or not isinstance(texts, Iterable):
            allowed, fix = "a list of texts, or of tuples of two for pairs", "Of a table give its column of texts."
            raise DataError("predict", f"is given {type(texts).__name__}", allowed, fix)
        wants_pair = bool(self.function.columns["pair"])
        columns = Columns("text", "pair" if wants_pair else None, form=self.function.task.form)
        if self._form.choices:
            columns = replace(columns, choices=("choices",))
        for number, value in enumerate(texts, start=1):
            where = f"input {number}"
            yield to_example(Row(self._values(value, where), where), columns, None)

    def _values(self, value: Any, where: str) -> dict[str, Any]:
        """One input as text, pair and choices."""
        names, form = self.function.columns, self._form
        second = form.second or ("pair" if names["pair"] else None)
        if not form.is_plain and isinstance(value, dict):
            wanted: dict[str, Any] = {role: names[role] for role in ("text", "pair") if names[role] in value}
            wanted["choices"] = [name for name in names.get("choices", []) if name in value]
            own = Columns.find(self.function.task.form, wanted, list(value), where, label=False)
            choices = [value[name] for name in own.choices]
            while len(choices) > 1 and is_blank(choices[-1]):
                choices.pop()  # as in a file: rows may have fewer choices than columns
            found = {"text": value[own.text], "pair": value.get(own.pair or "")}
            return found | {"choices": choices if len(own.choices) > 1 else choices[0] if choices else None}
        if second is None and isinstance(value, dict):
            raise DataError(where, f"is {type(value).__name__}", "a single text, as this model was fitted on")
        if second is None and isinstance(value, tuple | list) and not form.reads_words:
            raise DataError(where, f"is {type(value).__name__}", "a single text, as this model was fitted on")
        if second is None:
            return {"text": value}
        if not (isinstance(value, tuple | list) and len(value) == 2):
            allowed = f"this model reads {form.two_texts}: a tuple of two"
            raise DataError(where, f"is {type(value).__name__}", f"{allowed} texts" if form.is_plain else allowed)
        return {"text": value[0], second: value[1]}
