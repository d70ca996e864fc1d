"""A number a row, or one for each of several targets: squared error in standard deviations of the targets."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from berthead.data.examples import CellError, TargetCells
from berthead.data.labels import is_blank, plain
from berthead.errors import DataError, counted, listed, shown
from berthead.records import FloatArray, Prediction
from berthead.tasks.base import Answer, Batch, LinearModel, Task
from berthead.tasks.linear import ridge
from berthead.tasks.scale import Scale
from berthead.text.windows import EncodedExample

if TYPE_CHECKING:
    from torch import Tensor

Numbers = dict[str, float | None]
"""A row's number for each of several targets; None: it is not known."""


@dataclass(frozen=True, slots=True)
class Regress(Task):
    """A number a row, in the user's unit, or a number for each of several targets.

    Args:
        scales: of each target.
        names: of several targets; empty: there is one.

    Example:
        >>> stars = Scale(mean=2.5, deviation=1.0, low=1.0, high=5.0)
        >>> Regress((stars,)).decode(np.array([[7.0]], dtype=np.float32))[0].answer
        5.0
        >>> Regress((stars, stars), ("food", "service")).decode(np.array([[7.0, 2.0]], dtype=np.float32))[0].answer
        {'food': 5.0, 'service': 2.0}
    """

    name: ClassVar[str] = "regress"
    problem_type: ClassVar[str] = "regression"
    metrics: ClassVar[Mapping[str, int]] = {"pearson": 1, "spearman": 1, "mae": -1, "rmse": -1, "loss": -1}
    measures_targets: ClassVar[bool] = True
    several_numbers: ClassVar[bool] = True
    decided: ClassVar[tuple[str, ...]] = ("mean", "deviation", "low", "high")
    linear: ClassVar[LinearModel | None] = ridge

    scales: tuple[Scale, ...]
    names: tuple[str, ...] = ()

    @classmethod
    def read(cls, value: Any) -> float | Numbers:
        """The cell as a finite number; the cells of several targets by their names, None where they are blank."""
        if not isinstance(value, TargetCells):
            return _number(value)
        numbers: Numbers = {}
        for name, cell in value.cells.items():
            try:
                numbers[name] = None if is_blank(plain(cell)) else _number(cell)
            except ValueError as error:
                raise CellError(name, str(error)) from None
        if all(one is None for one in numbers.values()):
            raise ValueError("is blank; expected a number for one target at least")
        return numbers

    @classmethod
    def from_targets(cls, targets: Sequence[float | Numbers], where: str) -> Self:
        """Mean, deviation and range of each target."""
        names = tuple(targets[0]) if targets and isinstance(targets[0], dict) else ()
        for row, one in enumerate(targets):
            if _names_of(one) != set(names):
                saw = f"holds {_in_words(one)}"
                raise DataError(where, saw, f"a number for each of {listed(names)}" if names else "a number").about(row)
        if not names:
            return cls((Scale.of(targets, where),))  # type: ignore[arg-type]  # numbers, as was checked
        columns = _matrix(targets, names).T
        kept = (column[~np.isnan(column)].tolist() for column in columns)
        return cls(tuple(Scale.of(one, where, name) for name, one in zip(names, kept, strict=True)), names)

    @classmethod
    def target_notes(cls, targets: Sequence[float | Numbers]) -> list[str]:
        """How many rows lack a number of a target."""
        rows = [one for one in targets if isinstance(one, dict)]
        lacking = {name: sum(row[name] is None for row in rows) for name in (rows[0] if rows else ())}
        return [
            f'target "{name}" is blank in {number:,} of {counted(len(rows), "row")}: they count for the others only'
            for name, number in lacking.items()
            if number
        ]

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """The task from its saved state."""
        if "targets" not in state:
            return cls((Scale.from_json(state),))
        names = [one["name"] for one in state["targets"]]
        if len(names) < 2 or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"targets are named {shown(names)[:60]}; expected two texts or more, each once")
        return cls(tuple(map(Scale.from_json, state["targets"])), tuple(names))

    def to_json(self) -> dict[str, Any]:
        """The mean, deviation and range of each target; of several ones as a list `targets`."""
        plain: dict[str, Any] = {"labels": [], "activation": "none"}
        if not self.names:
            return plain | self.scales[0].to_json()
        return plain | {"targets": [{"name": name} | scale.to_json() for name, scale in self._named()]}

    @property
    def format_version(self) -> int:
        """Older readers know one target."""
        return 6 if self.names else 1

    def undecided(self) -> dict[str, Any]:
        """The saved state without what each target's fitted rows decide."""
        state = Task.undecided(self)
        if self.names:
            kept = ({key: value for key, value in one.items() if key not in self.decided} for one in state["targets"])
            state["targets"] = list(kept)
        return state

    def in_unit_of(self, other: Self) -> Self:
        """The task in the standard deviations of another one's targets; those of standardised ones are equal."""
        pairs = zip(self.scales, other.scales, strict=True)
        return replace(self, scales=tuple(scale.in_unit_of(its) for scale, its in pairs))

    def merged(self, tasks: Sequence[Self]) -> Self:
        """The task with the ranges of all of these."""
        by_target = zip(*(one.scales for one in tasks), strict=True)
        return replace(
            self, scales=tuple(scale.merged(others) for scale, others in zip(self.scales, by_target, strict=True))
        )

    @property
    def outputs(self) -> int:
        """A number for each target."""
        return len(self.scales)

    @property
    def label_texts(self) -> list[str]:
        """The targets' names."""
        return list(self.names) or ["value"]

    def check(self, target: float | Numbers) -> None:
        """Every finite number is allowed, under the names of the fit."""
        if _names_of(target) != set(self.names):
            wanted = f"numbers for {listed(self.names)}" if self.names else "one number"
            raise ValueError(f"holds {_in_words(target)}; expected {wanted}, as at the fit")

    def targets(self, values: Sequence[float | Numbers], inputs: Sequence[EncodedExample] = ()) -> np.ndarray:
        """The numbers, or their distances from the mean in standard deviations, float32 [rows, targets].

        NaN: the row has no number of that target.
        """
        numbers = _matrix(values, self.names)
        return np.stack([scale.targets(numbers[:, place]) for place, scale in enumerate(self.scales)], axis=1)

    def prior(self, targets: np.ndarray) -> FloatArray:
        """The means, float32 [targets]."""
        return np.array([scale.affine[1] for scale in self.scales], dtype=np.float32)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None, sizes: Sequence[int] = ()) -> Tensor:
        """Squared error in standard deviations, the mean over a row's known targets, [rows]."""
        if not self.names:
            return (((logits - targets) / self.scales[0].affine[0]) ** 2).mean(1)
        from berthead.tasks.losses import squared_errors

        return squared_errors(logits, targets, [scale.affine[0] for scale in self.scales])

    def affine(self) -> tuple[Any, Any]:
        """The head learns standardised numbers; logits are in the user's unit, if float32 holds that."""
        if not self.names:
            return self.scales[0].affine
        factors, shifts = np.array([scale.affine for scale in self.scales]).T
        return factors, shifts

    @property
    def number_unit(self) -> float:
        """A standard deviation; the distance of several numbers is in standard deviations already."""
        return 1.0 if self.names else self.scales[0].deviation

    @property
    def logits_in_words(self) -> str:
        """How standardised logits become answers."""
        lines = [
            f"The answer{f' for {name}' if self.names else ''} is {scale.mean!r} + {scale.deviation!r} times the logit."
            for name, scale in self._named()
            if scale.standardised
        ]
        return " ".join(lines)

    def decode(self, logits: FloatArray, batch: Batch | None = None) -> list[Answer]:
        """The numbers, kept in the fitted range; those of several targets by their names."""
        columns = [scale.numbers(logits[:, place]).tolist() for place, scale in enumerate(self.scales)]
        if not self.names:
            return [Answer(number) for number in columns[0]]
        return [Answer(dict(zip(self.names, row, strict=True))) for row in zip(*columns, strict=True)]

    def window_scores(self, unit: FloatArray, windows: FloatArray) -> FloatArray:
        """How near each window's numbers are to the answer, in standard deviations, [windows]."""
        if not self.names:
            return Task.window_scores(self, unit, windows)
        near: FloatArray = -np.abs((windows[:, : self.outputs] - unit) / self.affine()[0]).sum(1)
        return near

    def columns(self, probabilities: bool = False) -> dict[str, type]:
        """The number, or one for each target."""
        return {f"prediction_{name}": float for name in self.names} or {"prediction": float}

    def cells(self, prediction: Prediction) -> dict[str, Any]:
        """The numbers, as float32 unless that does not hold them."""
        if not self.names:
            return {"prediction": self.scales[0].cell(prediction.answer)}
        return {f"prediction_{name}": scale.cell(prediction.answer[name]) for name, scale in self._named()}

    def identity(self, answer: Answer) -> Hashable:
        """The numbers in six digits, of standardised ones those behind the mean's."""
        if not self.names:
            return self.scales[0].key(answer.answer)
        return tuple((name, scale.key(answer.answer[name])) for name, scale in self._named())

    def distance(self, one: Answer, other: Answer) -> float | None:
        """The distance of two numbers in the user's unit; of several the largest, in standard deviations."""
        if not self.names:
            return Task.distance(self, one, other)
        sides = one.answer, other.answer
        if any(_names_of(side) != set(self.names) for side in sides):
            return None
        known = [(scale, name) for name, scale in self._named() if None not in (sides[0][name], sides[1][name])]
        return max((abs(sides[0][name] - sides[1][name]) / scale.deviation for scale, name in known), default=0.0)

    def facts(self) -> list[tuple[str, str]]:
        """The range of its answers."""
        if not self.names:
            return [("range", " to ".join(self.scales[0].range_texts))]
        ranges = (f"{name} {' to '.join(scale.range_texts)}" for name, scale in self._named())
        return [(f"{self.outputs} targets", listed(ranges, 20))]

    def answers_in_words(self) -> str:
        """The ranges, in a few words."""
        ranges = [f"from {' to '.join(scale.range_texts)}" for scale in self.scales]
        if not self.names:
            return f"numbers {ranges[0]}"
        return listed((f"{name} {one}" for name, one in zip(self.names, ranges, strict=True)), 8)

    def evaluate(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> dict[str, Any]:
        """Pearson's and Spearman's correlation, mean absolute and root mean squared error.

        Of several targets these are means, beside each target's own in `per_target`; the loss is in standard
        deviations.
        """
        table, notes = list[dict[str, Any]](), list[str]()
        errors = np.full(targets.shape, np.nan)
        for place, (name, scale) in enumerate(self._named()):
            known = ~np.isnan(targets[:, place])
            of = f'target "{name}": ' if self.names else ""
            if not known.any():
                notes.append(f"{of}no row has a number: it is not scored")
                continue
            scores, squares, varied = scale.scores(logits[known, place], targets[known, place])
            errors[known, place] = squares
            table.append({"target": name, "rows": int(known.sum()), **scores})
            if not varied:
                notes.append(f"{of}correlation is not defined: all answers or all targets are equal")
        means = {key: float(np.mean([row[key] for row in table])) for key in ("pearson", "spearman", "mae", "rmse")}
        if not self.names:
            return means | {"loss": float(errors.mean() / self.scales[0].affine[0] ** 2), "warnings": notes}
        loss = float(np.nanmean(errors / self.affine()[0] ** 2, axis=1).mean())
        return means | {"loss": loss, "per_target": table, "warnings": notes}

    def _named(self) -> list[tuple[str, Scale]]:
        return list(zip(self.label_texts, self.scales, strict=True))


def _number(value: Any) -> float:
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


def _matrix(values: Sequence[float | Numbers], names: Sequence[str]) -> np.ndarray:
    """The numbers of all rows, float64 [rows, targets]; NaN: not known."""
    if not names:
        return np.array(values, dtype=np.float64)[:, None]
    rows = [[row[name] for name in names] for row in values if isinstance(row, dict)]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(names))


def _names_of(target: float | Numbers) -> set[str]:
    return set(target) if isinstance(target, dict) else set()


def _in_words(target: float | Numbers) -> str:
    return f"numbers for {listed(target)}" if isinstance(target, dict) else "one number"
