"""A number a row: squared error in standard deviations of the target."""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from berthead.data.labels import is_blank, plain
from berthead.errors import DataError, shown
from berthead.records import FloatArray, Prediction
from berthead.tasks.arrays import number
from berthead.tasks.base import Answer, Batch, LinearModel, Task
from berthead.tasks.cells import number_text, short
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
        standardised: whether logits are standard deviations from the mean, because float32 does not hold the numbers
            themselves well enough, such as seconds since 1970; else they are in the user's unit.

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
    standardised: bool = False

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
            seen = f"holds only the number {number_text(values[0])}" if len(values) else "holds no labelled row"
            raise DataError(where, seen, "at least two different numbers", "Add rows with other targets.")
        low, high = float(values.min()), float(values.max())
        # Numbers near the largest float64 have no sums.
        size = max(abs(low), abs(high))
        mean, deviation = (float(measure(values / size)) * size for measure in (np.mean, np.std))
        deviation = deviation or high - low
        fits = size < _LARGEST and deviation > _SMALLEST and size * _ROUNDING < deviation * _NEAR
        if fits:
            mean, deviation = float(values.mean()), float(values.std())
        return cls(mean, deviation, low, high, not fits)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """The task from its saved state."""
        standardised = "standardised" in state
        scale = state["standardised"] if standardised else state
        mean, low, high = number(scale, "mean"), number(state, "low"), number(state, "high")
        if low > high:
            raise ValueError(f"low is {low:g}; expected at most high, {high:g}")
        return cls(mean, number(scale, "deviation", sys.float_info.min), low, high, standardised)

    def to_json(self) -> dict[str, Any]:
        """The target's mean, deviation and range."""
        scale: dict[str, Any] = {"mean": self.mean, "deviation": self.deviation}
        if (
            self.standardised
        ):  # the logits' unit, which functions that are averaged must share; older versions refuse it
            scale = {"standardised": scale}
        return {"labels": [], "activation": "none", **scale, "low": self.low, "high": self.high}

    def in_unit_of(self, other: Self) -> Self:
        """The task in the standard deviations of another one's targets; those of standardised ones are equal."""
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
        """The numbers, or their distances from the mean in standard deviations, float32 [rows, 1]."""
        numbers = np.array(values, dtype=np.float64)[:, None]
        return ((numbers - self.mean) / self.deviation if self.standardised else numbers).astype(np.float32)

    def prior(self, targets: np.ndarray) -> FloatArray:
        """The mean, float32 [1]."""
        return np.array([0.0 if self.standardised else self.mean], dtype=np.float32)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None, sizes: Sequence[int] = ()) -> Tensor:
        """Squared error in standard deviations, [rows]."""
        return (((logits - targets) / self.affine()[0]) ** 2).mean(1)

    def affine(self) -> tuple[float, float]:
        """The head learns standardised numbers; logits are in the user's unit, if float32 holds that."""
        return (1.0, 0.0) if self.standardised else (self.deviation, self.mean)

    @property
    def number_unit(self) -> float:
        """A standard deviation."""
        return self.deviation

    @property
    def logits_in_words(self) -> str:
        """How standardised logits become answers."""
        if not self.standardised:
            return ""
        return f"The answer is {self.mean!r} + {self.deviation!r} times the logit."

    def decode(self, logits: FloatArray, batch: Batch | None = None) -> list[Answer]:
        """The numbers, kept in the fitted range."""
        return [Answer(number) for number in self._rounded(self._numbers(logits)).tolist()]

    def columns(self, probabilities: bool = False) -> dict[str, type]:
        """The number."""
        return {"prediction": float}

    def cells(self, prediction: Prediction) -> dict[str, Any]:
        """The number, as float32 unless that does not hold it."""
        return {"prediction": prediction.answer if self.standardised else short(prediction.answer)}

    def identity(self, answer: Answer) -> Hashable:
        """The number in six digits, of standardised ones those behind the mean's."""
        return str(self._rounded(np.float64(answer.answer), 5)) if self.standardised else Task.identity(self, answer)

    def facts(self) -> list[tuple[str, str]]:
        """The range of its answers."""
        return [("range", f"{self._text(self.low)} to {self._text(self.high)}")]

    def answers_in_words(self) -> str:
        """The range, in a few words."""
        return f"numbers from {self._text(self.low)} to {self._text(self.high)}"

    def evaluate(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> dict[str, Any]:
        """Pearson's and Spearman's correlation, mean absolute and root mean squared error."""
        from scipy.stats import spearmanr

        # In the unit of the logits: of large numbers squares lose what tells them apart.
        scale, shift = (self.deviation, self.mean) if self.standardised else (1.0, 0.0)
        low, high = (self.low - shift) / scale, (self.high - shift) / scale
        answers, gold = np.clip(logits[:, 0].astype(np.float64), low, high), targets[:, 0].astype(np.float64)
        wrong = answers - gold
        # The standard deviation of equal numbers is not always 0.
        varied = gold.min() < gold.max() and answers.min() < answers.max()
        flat = [] if varied else ["correlation is not defined: all answers or all targets are equal"]
        return {
            "pearson": float(np.corrcoef(answers, gold)[0, 1]) if varied else 0.0,
            "spearman": float(spearmanr(answers, gold)[0]) if varied else 0.0,
            "mae": float(np.abs(wrong).mean()) * scale,
            "rmse": float(np.sqrt((wrong**2).mean())) * scale,
            "loss": float((wrong**2).mean() / self.affine()[0] ** 2),
            "warnings": flat,
        }

    def _numbers(self, logits: FloatArray) -> np.ndarray:
        """Logits as numbers in the user's unit and the fitted range, float64 [rows]."""
        numbers = logits[:, 0].astype(np.float64)
        return np.clip(numbers * self.deviation + self.mean if self.standardised else numbers, self.low, self.high)

    def _text(self, number: float) -> str:
        return f"{number:.15g}" if self.standardised else f"{number:g}"

    def _rounded(self, numbers: Any, digits: int = 7) -> Any:
        """Standardised numbers to so many digits of a standard deviation: float32 holds no more."""
        if not self.standardised:
            return numbers
        decimals = digits - math.floor(math.log10(self.deviation))
        return np.clip(np.round(numbers, decimals), self.low, self.high) if abs(decimals) < 300 else numbers


# Half the step between two float32 numbers, relative to them; and how far from the truth a target may be, in standard
# deviations.
_ROUNDING, _NEAR = 2.0**-24, 1e-4
# What can be squared and summed in float32.
_LARGEST, _SMALLEST = 1e30, 1e-30
