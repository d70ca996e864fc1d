"""One label a row: softmax and cross-entropy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from berthead.data.label_notes import label_notes
from berthead.data.labels import MOST_LABELS, Labels, is_blank, plain
from berthead.errors import DataError, shown
from berthead.records import Example, FloatArray, IntArray, Label
from berthead.tasks.arrays import softmax
from berthead.tasks.base import Answer, Batch, LinearModel, Task
from berthead.tasks.cells import is_label, typed
from berthead.tasks.label_scores import (
    best_temperature,
    calibration_error,
    never_predicted,
    nll,
    per_label,
    temperature_in,
)
from berthead.tasks.linear import softmax_regression
from berthead.text.windows import EncodedExample

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Classify(Task):
    """One of the labels a row.

    Args:
        labels: the possible answers.
        temperature: divides the logits before the softmax; fitted on held-out rows (Guo et al. 2017, "On Calibration
            of Modern Neural Networks").

    Example:
        >>> task = Classify(Labels(["no", "yes"]))
        >>> task.decode(np.array([[0.0, 0.0]], dtype=np.float32))[0].probabilities
        {'no': 0.5, 'yes': 0.5}
    """

    name: ClassVar[str] = "classify"
    problem_type: ClassVar[str] = "single_label_classification"
    can_be_described: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, int]] = {"accuracy": 1, "macro_f1": 1, "micro_f1": 1, "loss": -1}
    decided: ClassVar[tuple[str, ...]] = ("temperature",)
    linear: ClassVar[LinearModel | None] = softmax_regression

    labels: Labels
    temperature: float = 1.0

    @classmethod
    def read(cls, value: Any) -> Label:
        """The cell as a label, with its type."""
        value = plain(value)
        if is_blank(value):
            raise ValueError("is blank; expected a label")
        if not isinstance(value, str | int | float | bool):
            raise ValueError(f"is {shown(value)}; expected a text or a number")
        return value

    @classmethod
    def from_targets(cls, targets: Sequence[Label], where: str) -> Self:
        """The task with the labels of the targets."""
        labels = Labels.from_values(targets)
        if len(labels) < 2:
            seen = f"holds only the class {shown(labels.names[0])}" if len(labels) else "holds no labelled row"
            raise DataError(where, seen, f"2 to {MOST_LABELS:,} classes", "Add rows of another class.")
        if len(labels) > MOST_LABELS:
            fix = "Is this the right column? To predict numbers, use --task regress."
            raise DataError(where, f"holds {len(labels):,} classes", f"2 to {MOST_LABELS:,} classes", fix)
        return cls(labels)

    @classmethod
    def target_notes(cls, targets: Sequence[Label]) -> list[str]:
        """Labels that differ in spelling or type only, and numbers."""
        return label_notes(targets)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """The task from its saved state."""
        return cls(Labels.from_json(state["labels"]), temperature_in(state))

    def to_json(self) -> dict[str, Any]:
        """Labels and temperature."""
        return {"labels": list(self.labels.names), "activation": "softmax", "temperature": self.temperature}

    @property
    def outputs(self) -> int:
        """The number of labels."""
        return len(self.labels)

    @property
    def label_texts(self) -> list[str]:
        """Each label as a text."""
        return self.labels.texts()

    def check(self, target: Label) -> None:
        """Check that the label is known."""
        try:
            self.labels.number(target)
        except KeyError:
            raise ValueError("; ".join(self.labels.unknown(target))) from None

    def targets(self, values: Sequence[Label], inputs: Sequence[EncodedExample] = ()) -> np.ndarray:
        """Label numbers, int64 [rows]."""
        return np.array([self.labels.number(value) for value in values], dtype=np.int64)

    def support(self, targets: np.ndarray) -> IntArray:
        """Rows of each label, int64 [labels]."""
        return np.bincount(targets, minlength=self.outputs)

    def weights(self, targets: np.ndarray) -> FloatArray | None:
        """Rows / (labels * rows of the label), float32 [labels]."""
        counts = self.support(targets)
        return (len(targets) / (self.outputs * np.maximum(counts, 1))).astype(np.float32)

    def prior(self, targets: np.ndarray) -> FloatArray:
        """The log of each label's share, one row added to each, float32 [labels]."""
        counts = self.support(targets) + 1
        shares: FloatArray = np.log(counts / counts.sum()).astype(np.float32)
        return shares

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None, sizes: Sequence[int] = ()) -> Tensor:
        """Cross-entropy of each row, [rows]."""
        from berthead.tasks.losses import cross_entropy

        return cross_entropy(logits, targets, weights)

    def tuned(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> Self:
        """The task with the temperature of the highest likelihood on held-out rows."""
        found = best_temperature(lambda temperature: nll(logits, targets, temperature), len(targets))
        return self if found is None else replace(self, temperature=found)

    def decode(self, logits: FloatArray, batch: Batch | None = None) -> list[Answer]:
        """The likeliest label of each row, and every label's probability."""
        names, keys = self.labels.names, self.labels.keys()
        answers = []
        for row in softmax(logits / self.temperature):
            best = int(row.argmax())
            shares = row.tolist()
            answers.append(Answer(names[best], shares[best], dict(zip(keys, shares, strict=True))))
        return answers

    def evaluate(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> dict[str, Any]:
        """Accuracy, F1 averages, calibration, and a table of the labels."""
        predicted = logits.argmax(1)
        table = per_label(self.labels.names, targets, predicted)
        present = [row["f1"] for row, n in zip(table, np.bincount(predicted, minlength=self.outputs), strict=True)
                   if row["support"] or n]  # fmt: skip
        counts = [np.bincount(numbers, minlength=self.outputs) for numbers in (targets, predicted)]
        accuracy = float((predicted == targets).mean())
        return {
            "accuracy": accuracy,
            "macro_f1": float(np.mean(present)),
            "micro_f1": accuracy,
            "loss": nll(logits, targets, self.temperature),
            "calibration_error": calibration_error(logits / self.temperature, targets),
            "per_label": table,
            "warnings": never_predicted(self.labels.names, *counts),
        }

    def identity(self, answer: Answer) -> Hashable:
        """The label, with its type."""
        return typed(answer.answer)

    def is_right(self, answer: Answer, example: Example, read: EncodedExample) -> bool:
        """Whether the label is the row's; a label of another type is the one that reads the same."""
        return is_label(self.labels, answer.answer, example.target)
