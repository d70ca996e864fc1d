"""Ordered labels, such as one to five stars: a head and a task for berthead.

P(y > k) = sigmoid(w·h - b_k) with one direction w and thresholds b_1 < b_2 < ...: the proportional odds model
(McCullagh 1980, "Regression Models for Ordinal Data"), fitted with one binary cross-entropy a threshold (Niu et al.
2016, "Ordinal Regression with Multiple Output CNN for Age Estimation").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from berthead.data.labels import is_blank, plain
from berthead.errors import DataError, listed, shown
from berthead.model.heads import row_means
from berthead.model.tensors import TensorPack
from berthead.records import FloatArray
from berthead.tasks import Answer, Batch, Task
from berthead.tasks.label_scores import per_label
from berthead.text.windows import EncodedExample

MOST_LABELS = 100


class OrdinalHead(nn.Module):
    """One direction and ordered thresholds on the mean of a row's vectors."""

    level: ClassVar[str] = "row"
    is_linear: ClassVar[bool] = True

    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.direction = nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.direction.weight, std=0.02)
        # The first threshold, and the gaps to the others: softplus keeps them in order; at first they are 1 apart.
        self.first = nn.Parameter(torch.full((1,), (1 - outputs) / 2))
        self.gaps = nn.Parameter(torch.full((outputs - 1,), math.log(math.e - 1)))

    def forward(self, hidden: Tensor, pack: TensorPack) -> Tensor:
        """The encoder's vectors [tokens, width] to logits, float32 [rows, outputs]."""
        return self.classify(self.pool(hidden, pack))

    def pool(self, hidden: Tensor, pack: TensorPack) -> Tensor:
        """The part without parameters, computed once for a frozen encoder. float32 [rows, width]."""
        return row_means(hidden, pack)

    def classify(self, pooled: Tensor) -> Tensor:
        """The part that is trained: [rows, width] -> [rows, outputs]."""
        thresholds = torch.cat([self.first, self.first + F.softplus(self.gaps).cumsum(0)])
        logits: Tensor = self.direction(self.dropout(pooled)) - thresholds
        return logits

    @torch.no_grad()
    def fold_input(self, mean: Tensor, deviation: Tensor) -> None:
        """Fitted on (x - mean) / deviation, from now on read x. Both are [width]."""
        self.direction.weight.div_(deviation)
        self.first.add_(self.direction.weight @ mean)


@dataclass(frozen=True, slots=True)
class Ordinal(Task):
    """One of several numbers in order; the labels are the numbers in the data, in ascending order."""

    name: ClassVar[str] = "ordinal"
    problem_type: ClassVar[str] = "multi_label_classification"
    metrics: ClassVar[Mapping[str, int]] = {"qwk": 1, "accuracy": 1, "mae": -1, "loss": -1}

    labels: tuple[int | float, ...]

    @classmethod
    def read(cls, value: Any) -> int | float:
        """The cell as a number; 4, 4.0 and "4" are one label."""
        value = plain(value)
        if is_blank(value):
            raise ValueError("is blank; every row needs a number")
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if isinstance(value, bool) or not math.isfinite(number):
            raise ValueError(f"is {shown(value)}; --task ordinal needs numbers such as 4")
        return int(number) if number.is_integer() else number

    @classmethod
    def from_targets(cls, targets: Sequence[int | float], where: str) -> Self:
        """The numbers of the targets, in order."""
        labels = sorted(set(targets))
        if not 2 <= len(labels) <= MOST_LABELS:
            fix = "Numbers without steps need --task regress." if len(labels) > 2 else "Add rows with other labels."
            raise DataError(where, f"holds {len(labels)} different labels", f"2 to {MOST_LABELS} numbers", fix)
        return cls(tuple(labels))

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """The task from its written state."""
        labels = state["labels"]
        if len(labels) < 2 or not all(type(label) in (int, float) for label in labels):
            raise ValueError(f"labels are {shown(labels)}")
        if not all(low < high for low, high in pairwise(labels)):
            raise ValueError(f"labels are not in order: {shown(labels)}")
        return cls(tuple(labels))

    def to_json(self) -> dict[str, Any]:
        """The labels; every task writes `labels`, empty where it has none."""
        return {"labels": list(self.labels), "activation": "cumulative sigmoid"}

    @property
    def outputs(self) -> int:
        """A logit for each step between two labels."""
        return len(self.labels) - 1

    @property
    def label_texts(self) -> list[str]:
        """A text for each logit."""
        return [f"above {label}" for label in self.labels[:-1]]

    def check(self, target: int | float) -> None:
        """Raise ValueError for a label that the fit did not see."""
        if target not in self.labels:
            raise ValueError(f"is {shown(target)}; this model knows {listed(self.labels, 20)}")

    def targets(self, values: Sequence[int | float], inputs: Sequence[EncodedExample] = ()) -> np.ndarray:
        """The rank of each label, int64 [rows]."""
        return np.array([self.labels.index(value) for value in values], dtype=np.int64)

    def weights(self, targets: np.ndarray) -> FloatArray | None:
        """Rows / (labels * rows of the label), float32 [labels]; `loss` reads them."""
        counts = np.bincount(targets, minlength=len(self.labels))
        return (len(targets) / (len(self.labels) * np.maximum(counts, 1))).astype(np.float32)

    def prior(self, targets: np.ndarray) -> FloatArray:
        """The log odds of each step without reading the text, float32 [outputs]."""
        above = (targets[:, None] > np.arange(self.outputs)).sum(0) + 0.5
        odds: FloatArray = np.log(above / (len(targets) + 1 - above)).astype(np.float32)
        return odds

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None, sizes: Sequence[int] = ()) -> Tensor:
        """The sum of each row's binary cross-entropies, [rows]."""
        above = targets[:, None] > torch.arange(self.outputs, device=logits.device)
        each = F.binary_cross_entropy_with_logits(logits, above.to(logits.dtype), reduction="none").sum(1)
        return each if weights is None else each * weights[targets]

    def affine(self) -> tuple[float, float]:
        """Logits have no unit."""
        return 1.0, 0.0

    def tuned(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> Self:
        """Nothing is tuned after the fit."""
        return self

    def decode(self, logits: FloatArray, batch: Batch | None = None) -> list[Answer]:
        """The likeliest label of each row, and every label's probability."""
        rows = self._shares(logits).tolist()
        return [
            Answer(self.labels[row.index(max(row))], max(row), dict(zip(self.labels, row, strict=True))) for row in rows
        ]

    def evaluate(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> dict[str, Any]:
        """Kappa with quadratic weights, accuracy, mean absolute error in the labels' unit, a table of the labels."""
        from sklearn.metrics import cohen_kappa_score

        predicted, values = self._shares(logits).argmax(1), np.array(self.labels, dtype=np.float64)
        places = range(len(self.labels))  # includes labels that do not occur
        varied = len({*predicted.tolist(), *targets.tolist()}) > 1  # else kappa is 0 / 0
        kappa = cohen_kappa_score(targets, predicted, labels=places, weights="quadratic") if varied else 0.0
        return {
            "qwk": float(kappa),
            "accuracy": float((predicted == targets).mean()),
            "mae": float(np.abs(values[predicted] - values[targets]).mean()),
            "loss": float(self.loss(torch.tensor(logits), torch.tensor(targets), None).mean()),
            "per_label": per_label(self.labels, targets, predicted),
            "warnings": [],
        }

    def _shares(self, logits: FloatArray) -> np.ndarray:
        """Probabilities, [rows, labels]: P(above the previous label) - P(above this label)."""
        above = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -500, 500)))
        above = np.minimum.accumulate(above, axis=1)  # heads other than OrdinalHead may break the order
        ends = np.ones((len(above), 1))
        return -np.diff(np.concatenate([ends, above, 0 * ends], axis=1))
