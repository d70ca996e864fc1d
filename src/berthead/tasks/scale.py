"""The scale of one number that is learnt: its unit, its range, and its scores."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from berthead.errors import DataError
from berthead.records import FloatArray
from berthead.tasks.arrays import number
from berthead.tasks.cells import number_text, short


@dataclass(frozen=True, slots=True)
class Scale:
    """Where the numbers of one target lie, and in what unit its logits are.

    Args:
        mean: of the fitted rows' target.
        deviation: standard deviation of the fitted rows' target, above 0.
        low: smallest target fitted; no answer is below it.
        high: largest target fitted; no answer is above it.
        standardised: whether logits are standard deviations from the mean, because float32 does not hold the numbers
            themselves well enough, such as seconds since 1970; else they are in the user's unit.

    Example:
        >>> Scale(mean=2.5, deviation=1.0, low=1.0, high=5.0).numbers(np.array([7.0], dtype=np.float32))
        array([5.])
    """

    mean: float
    deviation: float
    low: float
    high: float
    standardised: bool = False

    @classmethod
    def of(cls, numbers: Sequence[float], where: str, target: str = "") -> Self:
        """Mean, deviation and range of numbers.

        Args:
            numbers: those of the fitted rows.
            where: the data, for errors.
            target: which of several targets, for errors.

        Returns:
            The scale.

        Raises:
            DataError: there are no two different numbers.
        """
        values = np.array(numbers, dtype=np.float64)
        if len(values) < 2 or values.min() == values.max():
            seen = f"holds only the number {number_text(values[0])}" if len(values) else "holds no labelled row"
            if target:
                seen = f'target "{target}" {seen}'
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
        """The scale from its saved state."""
        standardised = "standardised" in state
        unit = state["standardised"] if standardised else state
        mean, low, high = number(unit, "mean"), number(state, "low"), number(state, "high")
        if low > high:
            raise ValueError(f"low is {low:g}; expected at most high, {high:g}")
        return cls(mean, number(unit, "deviation", sys.float_info.min), low, high, standardised)

    def to_json(self) -> dict[str, Any]:
        """Mean, deviation and range."""
        unit: dict[str, Any] = {"mean": self.mean, "deviation": self.deviation}
        # The logits' unit, which functions that are averaged must share; older versions refuse it.
        return ({"standardised": unit} if self.standardised else unit) | {"low": self.low, "high": self.high}

    def in_unit_of(self, other: Scale) -> Self:
        """The scale in another one's standard deviations; those of standardised ones are equal."""
        return replace(self, mean=other.mean, deviation=other.deviation)

    def merged(self, others: Sequence[Scale]) -> Self:
        """The scale with the range of all of these."""
        return replace(self, low=min(one.low for one in others), high=max(one.high for one in others))

    @property
    def affine(self) -> tuple[float, float]:
        """What turns standard deviations from the mean into logits: a factor, and what is added."""
        return (1.0, 0.0) if self.standardised else (self.deviation, self.mean)

    def targets(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers in the unit of the logits, float32."""
        return ((numbers - self.mean) / self.deviation if self.standardised else numbers).astype(np.float32)

    def numbers(self, logits: FloatArray) -> np.ndarray:
        """Logits as answers: in the user's unit and the fitted range, float64 [rows]."""
        values = logits.astype(np.float64)
        if self.standardised:
            values = values * self.deviation + self.mean
        kept: np.ndarray = self._rounded(np.clip(values, self.low, self.high))
        return kept

    def cell(self, answer: float) -> float:
        """An answer for a table, as float32 unless that does not hold it."""
        return answer if self.standardised else float(short(answer))

    def key(self, answer: float) -> str:
        """A key that is equal for equal answers: six digits, of standardised ones those behind the mean's."""
        return str(self._rounded(np.float64(answer), 5)) if self.standardised else f"{answer:.6g}"

    @property
    def range_texts(self) -> tuple[str, str]:
        """The smallest and the largest answer in words."""
        low, high = (f"{one:.15g}" if self.standardised else f"{one:g}" for one in (self.low, self.high))
        return low, high

    def scores(self, logits: FloatArray, gold: np.ndarray) -> tuple[dict[str, float], np.ndarray, bool]:
        """How well logits [rows] answer.

        Args:
            logits: float32 [rows].
            gold: the result of `targets`, [rows].

        Returns:
            Pearson's and Spearman's correlation, mean absolute and root mean squared error; the squared error of each
            row in standard deviations [rows]; whether there is a correlation, which equal numbers do not have.
        """
        from scipy.stats import spearmanr

        # In the unit of the logits: of large numbers squares lose what tells them apart.
        unit, shift = (self.deviation, self.mean) if self.standardised else (1.0, 0.0)
        low, high = (self.low - shift) / unit, (self.high - shift) / unit
        answers, gold = np.clip(logits.astype(np.float64), low, high), gold.astype(np.float64)
        wrong = answers - gold
        # The standard deviation of equal numbers is not always 0.
        varied = bool(gold.min() < gold.max() and answers.min() < answers.max())
        found = {
            "pearson": float(np.corrcoef(answers, gold)[0, 1]) if varied else 0.0,
            "spearman": float(spearmanr(answers, gold)[0]) if varied else 0.0,
            "mae": float(np.abs(wrong).mean()) * unit,
            "rmse": float(np.sqrt((wrong**2).mean())) * unit,
        }
        return found, wrong**2, varied

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
