"""A number a row: squared error in standard deviations of the target."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from berthead.data.labels import is_blank, plain
from berthead.errors import DataError, shown
from berthead.records import FloatArray, Prediction
from berthead.tasks.arrays import number
from berthead.tasks.base import Answer, Batch, LinearModel, Task
from berthead.tasks.cells import short
from berthead.tasks.linear import ridge
from berthead.text.windows import EncodedExample

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Regress(Task):
    """A number a row, in the user's unit.

    Args:
        mean: of the fitted rows' target.
        deviation: standard deviation of the fitted rows' target, above 0.
        low: smallest target fitted; no answer is below it.
        high: largest target fitted; no answer is above it.

    Example:
        >>> Regress(mean=2.5, deviation=1.0, low=1.0, high=5.0).decode(np.array([[7.0]], dtype=np.float32))[0].answer
        5.0
    """

    name: ClassVar[str] = "regress"
    problem_type: ClassVar[str] = "regression"
    metrics: ClassVar[Mapping[str, int]] = {"pearson": 1, "spearman": 1, "mae": -1, "rmse": -1, "loss": -1}
    measures_targets: ClassVar[bool] = True
    decided: ClassVar[tuple[str, ...]] = ("mean", "deviation", "low", "high")
    linear: ClassVar[LinearModel | None] = ridge

    mean: float
    deviation: float
    low: float
    high: float

    @classmethod
    def read(cls, value: Any) -> float:
        """The cell as a finite number."""
        value = plain(value)
        if is_blank(value):
            raise ValueError("is blank; expected a number")
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if isinstance(value, bool) or not math.isfinite(number):
            raise ValueError(f"is {shown(value)}; expected a finite number such as 3.5, for --task regress")
        return number

    @classmethod
    def from_targets(cls, targets: Sequence[float], where: str) -> Self:
        """Mean, deviation and range of the targets."""
        values = np.array(targets, dtype=np.float64)
        if len(values) < 2 or values.min() == values.max():
            seen = f"holds only the number {values[0]:g}" if len(values) else "holds no labelled row"
            raise DataError(where, seen, "at least two different numbers", "Add rows with other targets.")
        return cls(float(values.mean()), float(values.std()), float(values.min()), float(values.max()))

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """The task from its saved state."""
        mean, low, high = (number(state, key) for key in ("mean", "low", "high"))
        if low > high:
            raise ValueError(f"low is {low:g}; expected at most high, {high:g}")
        return cls(mean, number(state, "deviation", sys.float_info.min), low, high)

    def to_json(self) -> dict[str, Any]:
        """The target's mean, deviation and range."""
        scale = {"mean": self.mean, "deviation": self.deviation, "low": self.low, "high": self.high}
        return {"labels": [], "activation": "none", **scale}

    def in_unit_of(self, other: Self) -> Self:
        """The task in the standard deviations of another one's targets."""
        return replace(self, mean=other.mean, deviation=other.deviation)

    def merged(self, tasks: Sequence[Self]) -> Self:
        """The task with the range of all of these."""
        return replace(self, low=min(one.low for one in tasks), high=max(one.high for one in tasks))

    @property
    def outputs(self) -> int:
        """One number."""
        return 1

    @property
    def label_texts(self) -> list[str]:
        """The one output's name."""
        return ["value"]

    def check(self, target: float) -> None:
        """Every finite number is allowed."""

    def targets(self, values: Sequence[float], inputs: Sequence[EncodedExample] = ()) -> np.ndarray:
        """The numbers, float32 [rows, 1]."""
        return np.array(values, dtype=np.float32)[:, None]

    def prior(self, targets: np.ndarray) -> FloatArray:
        """The mean, float32 [1]."""
        return np.array([self.mean], dtype=np.float32)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None, sizes: Sequence[int] = ()) -> Tensor:
        """Squared error in standard deviations, [rows]."""
        return (((logits - targets) / self.deviation) ** 2).mean(1)

    def affine(self) -> tuple[float, float]:
        """The head learns standardised numbers; answers are in the user's unit."""
        return self.deviation, self.mean

    def decode(self, logits: FloatArray, batch: Batch | None = None) -> list[Answer]:
        """The numbers, kept in the fitted range."""
        return [Answer(number) for number in self._numbers(logits).tolist()]

    def columns(self, probabilities: bool = False) -> dict[str, type]:
        """The number."""
        return {"prediction": float}

    def cells(self, prediction: Prediction) -> dict[str, Any]:
        """The number, as float32."""
        return {"prediction": short(prediction.answer)}

    def facts(self) -> list[tuple[str, str]]:
        """The range of its answers."""
        return [("range", f"{self.low:g} to {self.high:g}")]

    def answers_in_words(self) -> str:
        """The range, in a few words."""
        return f"numbers from {self.low:g} to {self.high:g}"

    def evaluate(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> dict[str, Any]:
        """Pearson's and Spearman's correlation, mean absolute and root mean squared error."""
        from scipy.stats import spearmanr

        answers, gold = self._numbers(logits), targets[:, 0].astype(np.float64)
        wrong = answers - gold
        # The standard deviation of equal numbers is not always 0.
        varied = gold.min() < gold.max() and answers.min() < answers.max()
        flat = [] if varied else ["correlation is not defined: all answers or all targets are equal"]
        return {
            "pearson": float(np.corrcoef(answers, gold)[0, 1]) if varied else 0.0,
            "spearman": float(spearmanr(answers, gold)[0]) if varied else 0.0,
            "mae": float(np.abs(wrong).mean()),
            "rmse": float(np.sqrt((wrong**2).mean())),
            "loss": float((wrong**2).mean() / self.deviation**2),
            "warnings": flat,
        }

    def _numbers(self, logits: FloatArray) -> np.ndarray:
        return np.clip(logits[:, 0].astype(np.float64), self.low, self.high)
