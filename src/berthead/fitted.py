"""The fitted function: answers, metrics, parameters, and its folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from torch import Tensor

from berthead import artifact as artifacts
from berthead import folder as folders
from berthead.artifact import Artifact
from berthead.data.examples import Columns, to_example
from berthead.data.labels import is_blank
from berthead.errors import DataError, UsageError
from berthead.infer.engine import find_device
from berthead.infer.gate import Choice, choose
from berthead.infer.predict import Predictor
from berthead.model.parameters import Parameters
from berthead.options import PredictOptions
from berthead.records import Example, FloatArray, Label, Prediction, Row
from berthead.rows import labelled_rows

Text = str | tuple[str, Any] | dict[str, Any]
"""One input: a text; a tuple of two texts; question and context; question and choices; {"tokens": [...]}."""


class Fitted:
    """A fitted function Predict(BERT(x)), ready to be applied; safe to call from many threads.

    Args:
        artifact: the function's parts.
        options: precision, device and token budget.

    Example:
        >>> model = load("tickets-model")  # doctest: +SKIP
        >>> model.predict("My parcel never came").answer  # doctest: +SKIP
        'delivery'
    """

    def __init__(self, artifact: Artifact, options: PredictOptions | None = None) -> None:
        self.artifact = artifact
        self.options = options or PredictOptions()
        self.warnings: list[str] = []

    @cached_property
    def choice(self) -> Choice | None:
        """The precision that `auto` took, and why; None: the options name one."""
        if self.options.precision != "auto":
            return None
        return choose({"": self.artifact}, find_device(self.options.device))

    @cached_property
    def predictor(self) -> Predictor:
        """The function with its weights laid out for this processor, or on the GPUs."""
        precision = self.choice.precision if self.choice else self.options.precision
        device = find_device(self.options.device, precision)
        return Predictor(self.artifact, precision, self.options.token_budget, device)

    def __getstate__(self) -> dict[str, Any]:
        # The prepared weights lie as this processor wants them: they are made again where it is unpickled.
        engine = {name: getattr(self.options, name) for name in ("precision", "device", "token_budget")}
        return {"artifact": self.artifact, "warnings": self.warnings, "engine": engine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["artifact"], PredictOptions(**state["engine"]))  # type: ignore[misc]
        self.warnings = state["warnings"]

    @property
    def labels(self) -> list[Label]:
        """The labels it can answer, in the order of `predict_proba`; none for regress, span and choose."""
        return list(self.artifact.task.to_json()["labels"])

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
        if not self.labels or self.artifact.task.name == "tag":
            saw = f"--task {self.artifact.task.name} has no probabilities of labels a row"
            raise UsageError("predict_proba", saw, "", "Use predict.")
        if self._is_one(texts):
            raise DataError("predict_proba", "is given one input", "a list of texts or of pairs", "Put it in a list.")
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
            data, [self.artifact],
            text=text, pair=pair, label=label, choices=choices, intent=intent, skip_bad_rows=skip_bad_rows,
        )  # fmt: skip
        scores = self.predictor.evaluate(read.examples)
        notes = read.notes + scores["warnings"] + read.left_out
        return scores | {"skipped": len(read.bad), "warnings": notes}

    def verify(self) -> float:
        """Replay the golden examples, in float32 unless the options name another precision.

        Returns:
            The largest relative difference of a logit.

        Raises:
            GateError: the answers are not the ones that were saved.
        """
        # What `auto` takes answers alike, but its logits are others.
        exact = self.options.precision == "auto"
        predictor = Predictor(self.artifact, device=find_device(self.options.device)) if exact else self.predictor
        return artifacts.replay(self.artifact, predictor.logits)

    @property
    def theta(self) -> Parameters:
        """The encoder's parameters, under the names of its checkpoint."""
        return Parameters(self.artifact.theta())

    @property
    def omega(self) -> Parameters:
        """The head's parameters, under the names of model.safetensors."""
        return Parameters(self.artifact.omega())

    def with_parameters(
        self, theta: Mapping[str, Tensor] | None = None, omega: Mapping[str, Tensor] | None = None
    ) -> Fitted:
        """The same architecture with other parameters: another function.

        Temperature, thresholds and the range of numbers stay as they were fitted, for other parameters or not. Golden
        examples and hashes are those of the new function; the scores of the old one are left out of its record.

        Args:
            theta: of the encoder, such as another function's `theta`; None: as they are.
            omega: of the head; None: as they are.

        Returns:
            The function; this one stays as it is.

        Raises:
            ModelError: a tensor is missing, left over, misshapen or not finite.

        Example:
            >>> mean = Parameters.mean([model.theta, other.theta])  # doctest: +SKIP
            >>> model.with_parameters(theta=mean).save("between")  # doctest: +SKIP
        """
        given = [None if one is None else one if isinstance(one, Parameters) else Parameters(one)
                 for one in (theta, omega)]  # fmt: skip
        return Fitted(artifacts.with_parameters(self.artifact, *given), self.options)

    def info(self) -> dict[str, Any]:
        """The formula as fitted: task, encoder, head, hashes of theta and omega, labels, metrics, versions."""
        return self.artifact.describe()

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the model folder; it is whole or absent.

        Args:
            folder: where to.
            overwrite: replace a model folder that exists.

        Raises:
            OutputError: it cannot be written.
        """
        folders.save(self.artifact, Path(folder), overwrite)

    def merged(self) -> Fitted:
        """The same function as one that needs no other folder: LoRA's change is part of the encoder.

        Returns:
            The function; `save` writes a model folder of its own.

        Raises:
            UsageError: it is one already.
        """
        if self.artifact.adapter is None:
            raise UsageError("merge", "the model holds an encoder of its own", "a folder that a LoRA fit made")
        return Fitted(replace(self.artifact, adapter=None), self.options)

    def _is_one(self, texts: Any) -> bool:
        """Whether this is one input; in a tuple two texts are a pair, in a list they are a batch of two."""
        if isinstance(texts, str) or (isinstance(texts, dict) and self._form != "text"):
            return True
        if not isinstance(texts, tuple) or len(texts) != 2 or not isinstance(texts[0], str):
            return False
        return isinstance(texts[1], str) or (self._form == "choices" and isinstance(texts[1], list | tuple))

    @property
    def _form(self) -> str:
        return self.artifact.task.form

    def _examples(self, texts: Iterable[Any]) -> Iterator[Example]:
        # Iterating these gives bytes, keys and column names: no texts to be answered.
        if isinstance(texts, bytes | dict) or hasattr(texts, "columns") or not isinstance(texts, Iterable):
            allowed, fix = "a list of texts, or of tuples of two for pairs", "Of a table give its column of texts."
            raise DataError("predict", f"is given {type(texts).__name__}", allowed, fix)
        wants_pair = bool(self.artifact.columns["pair"])
        columns = Columns("text", "pair" if wants_pair else None, form=self._form)
        if self._form == "choices":
            columns = replace(columns, choices=("choices",))
        for number, value in enumerate(texts, start=1):
            where = f"input {number}"
            yield to_example(Row(self._values(value, where), where), columns, None)

    def _values(self, value: Any, where: str) -> dict[str, Any]:
        """One input as text, pair and choices."""
        names, form = self.artifact.columns, self._form
        second = "choices" if form == "choices" else "pair" if names["pair"] else None
        if form != "text" and isinstance(value, dict):
            wanted: dict[str, Any] = {role: names[role] for role in ("text", "pair") if names[role] in value}
            wanted["choices"] = [name for name in names.get("choices", []) if name in value]
            own = Columns.find(form, wanted, list(value), where, label=False)
            choices = [value[name] for name in own.choices]
            while len(choices) > 1 and is_blank(choices[-1]):
                choices.pop()  # as in a file: rows may have fewer choices than columns
            found = {"text": value[own.text], "pair": value.get(own.pair or "")}
            return found | {"choices": choices if len(own.choices) > 1 else choices[0] if choices else None}
        if second is None and isinstance(value, dict):
            raise DataError(where, f"is {type(value).__name__}", "this model reads single texts")
        if second is None and isinstance(value, tuple | list) and not form.startswith("words"):
            raise DataError(where, f"is {type(value).__name__}", "this model reads single texts")
        if second is None:
            return {"text": value}
        if not (isinstance(value, tuple | list) and len(value) == 2):
            wanted = {"choices": "a question and its choices", "question": "a question and its context"}
            allowed = f"this model reads {wanted.get(form, 'pairs')}: a tuple of two"
            raise DataError(where, f"is {type(value).__name__}", f"{allowed} texts" if form == "text" else allowed)
        return {"text": value[0], second: value[1]}
