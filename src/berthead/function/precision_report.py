"""The precision report: how lower precisions agree with float32, and whether they pass; stored in berthead.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from berthead.errors import counted

# The least share of rows that a lower precision answers as float32 does, and the most points of 100 that it loses.
LEAST_AGREEMENT = 0.995
MOST_LOST_POINTS = 0.3
# Of fewer rows none says whether a precision passes.
LEAST_ROWS = 10


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the answers of a lower precision compare with those of float32, on the same rows.

    Args:
        agreement: share of the rows with the same answer, from 0 to 1; numbers: within a tenth of a standard deviation.
        largest_drift: the largest difference of a probability; of a number, in standard deviations of the targets.
        mean_drift: the mean over rows of each row's largest.
        points: change of the task's metric in points of 100, negative if worse; None: no targets.
        by: what computed it: `kernels` (ours), `torch` (which rounds to bfloat16 more often), or `cuda` (a GPU).

    Example:
        >>> Verdict(0.998, 0.03, 0.002, -0.2).passed, Verdict(0.998, 0.03, 0.002, -0.4).passed
        (True, False)
    """

    agreement: float
    largest_drift: float
    mean_drift: float
    points: float | None = None
    by: str = "kernels"

    @property
    def passed(self) -> bool:
        """Whether this precision may replace float32."""
        lost = 0.0 if self.points is None else -self.points
        return self.agreement >= LEAST_AGREEMENT and lost <= MOST_LOST_POINTS + 1e-9

    def to_json(self) -> dict[str, Any]:
        """The figures, and whether they pass."""
        return asdict(self) | {"passed": self.passed}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Self:
        """The record from what `to_json` wrote; ValueError, KeyError or TypeError for anything else."""
        points = written["points"]
        agreement, largest, mean = (_number(written[name]) for name in ("agreement", "largest_drift", "mean_drift"))
        if written["by"] not in ("kernels", "torch", "cuda"):
            raise ValueError(f"by is {written['by']!r}; expected kernels, torch or cuda")
        return cls(agreement, largest, mean, None if points is None else _number(points), written["by"])


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """Measured agreement of lower precisions with float32.

    Args:
        rows: the number of rows.
        of: which rows: `held-out`, `given` or `golden`.
        metric: the task's main metric; None: no targets.
        exact: its value in float32; None: no targets.
        verdicts: by precision, `bf16` and `int8` if the machine supports them.
    """

    rows: int
    of: str
    metric: str | None
    exact: float | None
    verdicts: dict[str, Verdict]

    def says(self, precision: str) -> str:
        """The verdict on a precision, in words.

        Example:
            >>> verdicts = {"int8": Verdict(0.995, 0.04, 0.01, -0.5)}
            >>> PrecisionReport(200, "held-out", "accuracy", 0.9, verdicts).says("int8")
            '99.50 % of 200 held-out rows answered as in fp32, accuracy -0.50 points'
        """
        one = self.verdicts[precision]
        metric = "" if one.points is None else f", {self.metric} {one.points:+.2f} points"
        rows = counted(self.rows, f"{self.of} row")
        return f"{100 * one.agreement:.2f} % of {rows} answered as in fp32{metric}"

    def passes(self, precision: str) -> bool | None:
        """Whether a precision may replace float32; None: the rows are too few to say."""
        return self.verdicts[precision].passed if self.rows >= LEAST_ROWS else None

    def verdict(self, precision: str) -> str:
        """Whether a precision may replace float32, in words, with the figures.

        Example:
            >>> PrecisionReport(1, "held-out", "accuracy", 1.0, {"int8": Verdict(1.0, 0.0, 0.0)}).verdict("int8")
            'is not decided, for which 10 rows are needed: 100.00 % of 1 held-out row answered as in fp32'
        """
        undecided = f"is not decided, for which {LEAST_ROWS} rows are needed"
        words = {True: "passes", False: "is refused", None: undecided}[self.passes(precision)]
        return f"{words}: {self.says(precision)}"

    def to_json(self) -> dict[str, Any]:
        """The report as `run.gate` in berthead.json."""
        verdicts = {name: one.to_json() | {"passed": bool(self.passes(name))} for name, one in self.verdicts.items()}
        return {"rows": self.rows, "of": self.of, "metric": self.metric, "fp32": self.exact, "precisions": verdicts}

    @classmethod
    def from_json(cls, written: Any) -> Self:
        """The report from what `to_json` wrote; ValueError, KeyError, TypeError or AttributeError for anything else."""
        rows, of, metric, exact = (written[name] for name in ("rows", "of", "metric", "fp32"))
        if type(rows) is not int or not isinstance(of, str) or not isinstance(metric, str | None):
            raise ValueError("gate does not say what was measured; expected rows, of and metric")
        verdicts = {str(name): Verdict.from_json(one) for name, one in written["precisions"].items()}
        return cls(rows, of, metric, None if exact is None else _number(exact), verdicts)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number; expected a finite number")
    return float(value)
