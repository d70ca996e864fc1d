"""What a task is: how its target is read, the loss, the decoding, the metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from torch import Tensor

from berthead.errors import UsageError, did_you_mean, listed
from berthead.records import FloatArray, Label


@dataclass(frozen=True, slots=True)
class Answer:
    """A decoded row of logits: the parts of a Prediction that the task decides."""

    answer: Any
    score: float | None = None
    probabilities: dict[Label, float] | None = None


class Task(Protocol):
    """The meaning of the logits. A task is a small immutable record; its state is what `to_json` writes."""

    name: ClassVar[str]
    problem_type: ClassVar[str]
    """transformers' word for it, in config.json."""
    metrics: ClassVar[Mapping[str, int]]
    """The metrics that can choose the best epoch; 1: higher is better, -1: lower. The first is the default."""

    @classmethod
    def read(cls, value: Any) -> Any:
        """A cell as a target.

        Raises:
            ValueError: it is none; the message says what was seen and what is allowed.
        """
        ...

    @classmethod
    def from_targets(cls, targets: Sequence[Any], where: str) -> Self:
        """The task that these targets call for.

        Raises:
            DataError: nothing can be learnt from them.
        """
        ...

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """The task from its written state."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The state that decoding needs, as JSON."""
        ...

    @property
    def outputs(self) -> int:
        """Numbers wanted a row."""
        ...

    @property
    def label_texts(self) -> list[str]:
        """A text for each output."""
        ...

    def check(self, target: Any) -> None:
        """Whether the function can know this target.

        Raises:
            ValueError: a label that was not there at fit.
        """
        ...

    def targets(self, values: Sequence[Any]) -> np.ndarray:
        """Targets as the loss reads them: int64 [rows] or float32 [rows, outputs]."""
        ...

    def weights(self, targets: np.ndarray) -> FloatArray | None:
        """Weights for `class_weight=balanced`, float32 [outputs]."""
        ...

    def prior(self, targets: np.ndarray) -> FloatArray:
        """The logits of who knows the targets' shares and reads no text, float32 [outputs]."""
        ...

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """The loss of each row, [rows]."""
        ...

    def affine(self) -> tuple[float, float]:
        """The scale and shift that turn a head's raw outputs into the user's unit."""
        ...

    def tuned(self, logits: FloatArray, targets: np.ndarray) -> Self:
        """The task with its decision fitted on held-out rows: temperature, thresholds."""
        ...

    def decode(self, logits: FloatArray) -> list[Answer]:
        """Logits [rows, outputs] as answers."""
        ...

    def evaluate(self, logits: FloatArray, targets: np.ndarray) -> dict[str, Any]:
        """The metrics of held-out rows; numbers under the names in `metrics`, and tables."""
        ...


def number(state: Mapping[Any, Any], key: Any, above: float = -math.inf) -> float:
    """A finite number of a written state.

    Args:
        state: what `from_json` reads.
        key: the number's name.
        above: it has to be above this.

    Returns:
        The number.

    Raises:
        ValueError: it is something else.
        KeyError: it is not there.
    """
    value = state[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < float(value) < math.inf:
        raise ValueError(f"{key} is {value!r}")
    return float(value)


def choose_metric(task: type[Task], wanted: str | None) -> str:
    """The metric that chooses the best epoch.

    Args:
        task: the task.
        wanted: its name; None: the task's own.

    Returns:
        The name.

    Raises:
        UsageError: the task has no such metric.
    """
    if wanted is None:
        return next(iter(task.metrics))
    if wanted not in task.metrics:
        known = f"metrics of {task.name}: {listed(task.metrics)}"
        raise UsageError("--metric", f'is "{wanted}"', known, did_you_mean(wanted, task.metrics))
    return wanted


def per_label(labels: Sequence[Label], gold: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each label.

    Args:
        labels: the labels, in output order.
        gold: label numbers [rows], or 0/1 [rows, labels].
        predicted: the same shape.

    Returns:
        One dict a label.
    """
    from sklearn.metrics import precision_recall_fscore_support

    numbers = list(range(len(labels)))
    parts = precision_recall_fscore_support(gold, predicted, labels=numbers, zero_division=0)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for label, p, r, f, n in zip(labels, *parts, strict=True)
    ]
