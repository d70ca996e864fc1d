"""The frozen records that cross borders between modules: numpy and plain Python, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Label = str | int | float | bool
"""A label keeps the type it had in the user's data: "0" and 0 are two labels."""

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file as it stands there.

    Args:
        values: column name to value; text formats give `str`, JSON Lines and Parquet keep their types.
        where: `file:line` (or `file:row N` for Parquet).
        error: why the row cannot be read, or None.
    """

    values: dict[str, Any]
    where: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One input of the function, and its target where there is one.

    Args:
        text: the first text; the question; the tokens joined by spaces.
        pair: the second text of a pair, the context of a question, or None.
        target: the answer wanted, in the user's own terms, or None.
        where: `file:line` or `row N`.
        error: why this row has no answer, or None.
        words: the tokens of the text where the user gave tokens, or None.
        choices: the choices of a question, or None.
        note: what was mended in this row, or None.
    """

    text: str
    pair: str | None = None
    target: Any = None
    where: str = ""
    error: str | None = None
    words: tuple[str, ...] | None = None
    choices: tuple[str, ...] | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows laid end to end, without padding.

    Args:
        ids: token numbers, int64 [tokens].
        segments: token types, int64 [tokens].
        positions: place in the row from 0, int64 [tokens].
        starts: where each row starts, and the end of the last, int64 [rows + 1].
        row: which row of the caller's input each row is, int64 [rows].
    """

    ids: IntArray
    segments: IntArray
    positions: IntArray
    starts: IntArray
    row: IntArray

    @property
    def lengths(self) -> IntArray:
        """Tokens in each row, int64 [rows]."""
        return np.diff(self.starts)


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the user's own text: `text[start:end]` of the input is `text`.

    Args:
        start: its first character, from 0.
        end: the character after its last.
        text: the characters.
        label: what it is, or None: an answer to a question.
        score: its probability.
        window: the window that decided, from 0.
    """

    start: int
    end: int
    text: str
    label: Label | None = None
    score: float | None = None
    window: int = 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """The function's answer for one input, in plain Python types.

    Args:
        answer: a label, a list of labels, a number, a list of spans (tag), a text (span; empty: the context holds no
            answer), or a choice; None where there is an error.
        score: probability of the answer (of the surest label for multilabel); None for regress and tag.
        probabilities: label or number of the choice to probability; None where there are no labels.
        n_tokens: tokens of the whole input, special tokens included.
        truncated: whether tokens were cut off.
        n_windows: windows the input was read in.
        window: the window that decided, from 0; None where each span has its own.
        spans: the entities (tag, joint) or the best answers, best first (span); None for other tasks.
        tags: one for each token where tokens were given (tag, joint), else None.
        error: why there is no answer, or None.
        where: the input's `file:line` or `row N`.
    """

    answer: Any
    score: float | None = None
    probabilities: dict[Label, float] | None = None
    n_tokens: int = 0
    truncated: bool = False
    n_windows: int = 1
    window: int | None = 0
    spans: list[Span] | None = None
    tags: list[str] | None = None
    error: str | None = None
    where: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON-serialisable dict; probabilities as a list, since JSON's keys know text only."""
        record = asdict(self)
        if self.probabilities is not None:
            pairs = self.probabilities.items()
            record["probabilities"] = [{"label": label, "probability": share} for label, share in pairs]
        return record


# The least share of rows that a lower precision answers as float32 does, and the most points of 100 that it loses.
LEAST_AGREEMENT = 0.995
MOST_LOST_POINTS = 0.3


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the answers of a lower precision lie to those of float32, on the same rows.

    Args:
        agreement: share of the rows with the same answer, from 0 to 1; numbers: within a tenth of a standard deviation.
        largest_drift: the largest difference of a probability; of a number, in standard deviations of the targets.
        mean_drift: the mean over rows of each row's largest.
        points: change of the task's metric in points of 100, below 0 where it is worse; None: no targets.

    Example:
        >>> Verdict(0.998, 0.03, 0.002, -0.2).passed, Verdict(0.998, 0.03, 0.002, -0.4).passed
        (True, False)
    """

    agreement: float
    largest_drift: float
    mean_drift: float
    points: float | None = None

    @property
    def passed(self) -> bool:
        """Whether this precision may be taken for float32."""
        lost = 0.0 if self.points is None else -self.points
        return self.agreement >= LEAST_AGREEMENT and lost <= MOST_LOST_POINTS + 1e-9

    def to_json(self) -> dict[str, Any]:
        """The figures, and whether they pass."""
        return asdict(self) | {"passed": self.passed}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Self:
        """What `to_json` wrote; ValueError, KeyError or TypeError where it is something else."""
        points = written["points"]
        agreement, largest, mean = (_number(written[name]) for name in ("agreement", "largest_drift", "mean_drift"))
        return cls(agreement, largest, mean, None if points is None else _number(points))


@dataclass(frozen=True, slots=True)
class Receipt:
    """What lower precisions were measured to answer, beside float32.

    Args:
        rows: that were answered.
        of: which rows: `held-out`, `fitted`, `given` or `golden`.
        metric: the task's main metric; None: no targets.
        exact: its value in float32; None: no targets.
        verdicts: by precision, `bf16` and `int8` as far as the machine computes them.
    """

    rows: int
    of: str
    metric: str | None
    exact: float | None
    verdicts: dict[str, Verdict]

    def says(self, precision: str) -> str:
        """What was measured of a precision, in words.

        Example:
            >>> Receipt(200, "held-out", "accuracy", 0.9, {"int8": Verdict(0.995, 0.04, 0.01, -0.5)}).says("int8")
            '99.50 % of 200 held-out rows answered as in fp32, accuracy -0.50 points'
        """
        one = self.verdicts[precision]
        metric = "" if one.points is None else f", {self.metric} {one.points:+.2f} points"
        return f"{100 * one.agreement:.2f} % of {self.rows:,} {self.of} rows answered as in fp32{metric}"

    def to_json(self) -> dict[str, Any]:
        """The receipt as `run.gate` in berthead.json."""
        verdicts = {name: one.to_json() for name, one in self.verdicts.items()}
        return {"rows": self.rows, "of": self.of, "metric": self.metric, "fp32": self.exact, "precisions": verdicts}

    @classmethod
    def from_json(cls, written: Any) -> Self:
        """What `to_json` wrote; ValueError, KeyError, TypeError or AttributeError where it is something else."""
        rows, of, metric, exact = (written[name] for name in ("rows", "of", "metric", "fp32"))
        if type(rows) is not int or not isinstance(of, str) or not isinstance(metric, str | None):
            raise ValueError("gate does not say what was measured")
        verdicts = {str(name): Verdict.from_json(one) for name, one in written["precisions"].items()}
        return cls(rows, of, metric, None if exact is None else _number(exact), verdicts)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)
