"""Any number of labels a row: a sigmoid a label and binary cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from berthead.data.label_notes import label_notes, separator_note
from berthead.data.labels import MOST_LABELS, Labels, is_blank, plain
from berthead.data.lists import labels_in
from berthead.errors import DataError, counted, shown
from berthead.records import Example, FloatArray, IntArray, Label
from berthead.tasks.arrays import number, sigmoid
from berthead.tasks.base import Answer, Batch, LinearModel, Task
from berthead.tasks.cells import typed
from berthead.tasks.label_scores import never_predicted, per_label
from berthead.tasks.linear import logistic_regressions
from berthead.text.windows import EncodedExample

if TYPE_CHECKING:
    from torch import Tensor

# A label's own best threshold counts as much as the one that is best for all labels together where it has so many rows:
# of few rows the best threshold is often one that gives the label to nearly every text.
ROWS_FOR_THRESHOLD = 20
# The log-odds of 0 and of 1 are infinite.
LEAST = 1e-7


@dataclass(frozen=True, slots=True)
class Multilabel(Task):
    """None, one or several of the labels a row.

    Args:
        labels: the possible answers.
        thresholds: the probability from which each label is answered.

    Example:
        >>> task = Multilabel(Labels(["red", "round"]), (0.5, 0.5))
        >>> task.decode(np.array([[2.0, -2.0]], dtype=np.float32))[0].answer
        ['red']
    """

    name: ClassVar[str] = "multilabel"
    problem_type: ClassVar[str] = "multi_label_classification"
    metrics: ClassVar[Mapping[str, int]] = {
        "average_precision": 1, "micro_f1": 1, "macro_f1": 1, "exact_match": 1, "loss": -1,
    }  # fmt: skip
    decided: ClassVar[tuple[str, ...]] = ("thresholds",)
    linear: ClassVar[LinearModel | None] = logistic_regressions
    several_labels: ClassVar[bool] = True

    labels: Labels
    thresholds: tuple[float, ...]

    @classmethod
    def read(cls, value: Any) -> list[Label]:
        """The cell as a list of labels: a list, also as JSON, Python or numpy write it, or `a|b`; blank is no label."""
        value = plain(value)
        if isinstance(value, str):
            value = labels_in(value)
        elif isinstance(value, set | frozenset | tuple | np.ndarray):
            value = list(value)
        elif is_blank(value):
            value = []
        labels: list[Any] = [plain(one) for one in value] if isinstance(value, list) else [None]
        if any(is_blank(one) or not isinstance(one, str | int | float | bool) for one in labels):
            raise ValueError(f'is {shown(value)}; expected labels as a JSON list or "a|b"')
        return labels

    @classmethod
    def from_targets(cls, targets: Sequence[list[Label]], where: str) -> Self:
        """The task with the labels of the targets."""
        if _is_multihot(targets):
            saw = f"holds rows such as {shown(targets[0])}, which look like 0 or 1 for each label"
            fix = "Or name a 0/1 column for each label: --label late,angry,refund."
            raise DataError(where, saw, 'the names of the labels in each row, such as "late|angry"', fix)
        labels = Labels.from_values(label for target in targets for label in target)
        if not 1 <= len(labels) <= MOST_LABELS:
            raise DataError(
                where, f"holds {counted(len(labels), 'label')}", f"1 to {MOST_LABELS:,} labels", 'Write them as "a|b".'
            )
        return cls(labels, (0.5,) * len(labels))

    @classmethod
    def target_notes(cls, targets: Sequence[list[Label]]) -> list[str]:
        """Labels that differ in spelling or type only, numbers, and other separators."""
        return separator_note(targets) or label_notes(label for target in targets for label in target)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """The task from its saved state."""
        labels, thresholds = Labels.from_json(state["labels"]), dict(enumerate(state["thresholds"]))
        if len(thresholds) != len(labels):
            raise ValueError(
                f"holds {counted(len(thresholds), 'threshold')}; expected {len(labels)}, one for each label"
            )
        return cls(labels, tuple(number(thresholds, place, 0, 1) for place in thresholds))

    def to_json(self) -> dict[str, Any]:
        """Labels and thresholds."""
        return {"labels": list(self.labels.names), "activation": "sigmoid", "thresholds": list(self.thresholds)}

    @property
    def outputs(self) -> int:
        """The number of labels."""
        return len(self.labels)

    @property
    def label_texts(self) -> list[str]:
        """Each label as a text."""
        return self.labels.texts()

    def check(self, target: list[Label]) -> None:
        """Check that every label is known."""
        for label in target:
            try:
                self.labels.number(label)
            except KeyError:
                raise ValueError("; ".join(self.labels.unknown(label))) from None

    def targets(self, values: Sequence[list[Label]], inputs: Sequence[EncodedExample] = ()) -> np.ndarray:
        """0 or 1 for each label, float32 [rows, labels]."""
        hot = np.zeros((len(values), self.outputs), dtype=np.float32)
        for row, value in enumerate(values):
            for label in value:
                hot[row, self.labels.number(label)] = 1
        return hot

    def support(self, targets: np.ndarray) -> IntArray:
        """Rows of each label, int64 [labels]."""
        having: IntArray = targets.sum(0).astype(np.int64)
        return having

    def weights(self, targets: np.ndarray) -> FloatArray | None:
        """Rows without the label / rows with it, at most 100, float32 [labels]."""
        having = targets.sum(0)
        weights: FloatArray = np.clip((len(targets) - having) / np.maximum(having, 1), 1, 100).astype(np.float32)
        return weights

    def prior(self, targets: np.ndarray) -> FloatArray:
        """The log odds of each label, one row added to both sides, float32 [labels]."""
        having = targets.sum(0)
        odds: FloatArray = np.log((having + 1) / (len(targets) - having + 1)).astype(np.float32)
        return odds

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None, sizes: Sequence[int] = ()) -> Tensor:
        """Binary cross-entropy, mean over the labels, [rows]."""
        from berthead.tasks.losses import binary_cross_entropy

        return binary_cross_entropy(logits, targets, weights)

    @property
    def needs_held_out(self) -> bool:
        """Yes: at a threshold of 0.5 rare labels are seldom answered."""
        return True

    def tuned(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> Self:
        """The task with each label's threshold of the best F1 on held-out rows, of a rare one nearer to that of all."""
        shares = sigmoid(logits)
        if not targets.any():
            return self
        common = best_threshold(shares.ravel(), targets.ravel())
        found = [
            between(best_threshold(shares[:, n], targets[:, n]), common, targets[:, n].sum() / ROWS_FOR_THRESHOLD)
            if targets[:, n].any()
            else common
            for n in range(self.outputs)
        ]
        return replace(self, thresholds=tuple(found))

    def decode(self, logits: FloatArray, batch: Batch | None = None) -> list[Answer]:
        """The labels above their thresholds, surest first, and every label's probability."""
        names, keys, thresholds = self.labels.names, self.labels.keys(), np.array(self.thresholds)
        answers = []
        for row in sigmoid(logits):
            given = [number for number in np.argsort(-row, kind="stable") if row[number] >= thresholds[number]]
            probabilities = dict(zip(keys, row.tolist(), strict=True))
            answers.append(Answer([names[number] for number in given], float(row.max()), probabilities))
        return answers

    def evaluate(self, logits: FloatArray, targets: np.ndarray, batch: Batch | None = None) -> dict[str, Any]:
        """F1 averages, average precision over all cells, exact matches, and a table of the labels."""
        from sklearn.metrics import average_precision_score, f1_score

        predicted = (sigmoid(logits) >= np.array(self.thresholds)).astype(int)
        gold = targets.astype(int)
        # For one label scikit-learn wants vectors of the positive class.
        flat = (gold.ravel(), predicted.ravel())
        every = np.logaddexp(0, -np.where(gold == 1, logits, -logits).astype(np.float64))
        table = (
            per_label(self.labels.names, gold, predicted) if self.outputs > 1 else _only(self.labels.names[0], *flat)
        )
        return {
            "average_precision": float(average_precision_score(gold.ravel(), logits.ravel())) if gold.any() else 0.0,
            "micro_f1": float(f1_score(*flat, zero_division=0)),
            "macro_f1": float(np.mean([row["f1"] for row in table])),
            "exact_match": float((predicted == gold).all(1).mean()),
            "loss": float(every.mean()),
            "per_label": table,
            "warnings": never_predicted(self.labels.names, gold.sum(0), predicted.sum(0)),
        }

    def columns(self, probabilities: bool = False) -> dict[str, type]:
        """The labels, and the probability of the surest one."""
        return {"prediction": list, "score": float}

    def identity(self, answer: Answer) -> Hashable:
        """The set of labels, with their types."""
        return frozenset(map(typed, answer.answer))

    def is_right(self, answer: Answer, example: Example, read: EncodedExample) -> bool:
        """Whether all labels are the row's."""
        try:
            return {self.labels.number(label) for label in example.target} == set(
                map(self.labels.number, answer.answer)
            )
        except KeyError:  # a label that is not known is never right
            return False


def best_threshold(shares: FloatArray, gold: np.ndarray) -> float:
    """The probability at which F1 is highest.

    Args:
        shares: probabilities [cells].
        gold: 0 or 1 [cells], at least one 1.

    Returns:
        Half-way between the last cell above it and the first below it.
    """
    order = np.argsort(-shares, kind="stable")
    hits = np.cumsum(gold[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + gold.sum())
    # Cells of one probability are given together.
    last_of_equals = np.append(shares[order][1:] != shares[order][:-1], True)
    best = int(np.argmax(np.where(last_of_equals, f1, -1)))
    # In float64: between neighbouring float32 there is no half-way.
    below = float(shares[order[best + 1]]) if best + 1 < len(order) else 0.0
    return (float(shares[order[best]]) + below) / 2


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))


def between(own: float, common: float, weight: float) -> float:
    """The mean of two thresholds in log-odds; `weight`: how many times `own` counts where `common` counts once.

    Example:
        >>> round(between(0.5, 0.1, 1.0), 6)
        0.25
    """
    if own == common:
        return own
    odds = [_log_odds(min(max(one, LEAST), 1 - LEAST)) for one in (own, common)]
    return float(1 / (1 + math.exp(-(weight * odds[0] + odds[1]) / (weight + 1))))


def _only(label: Label, gold: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    row = per_label([False, True], gold, predicted)[1]
    return [row | {"label": label}]


def _is_multihot(targets: Sequence[list[Label]]) -> bool:
    """Whether these are rows of a 0/1 matrix, and no lists of labels: equally long, of nothing else."""
    lengths = {len(target) for target in targets}
    cells = {str(label).lower() for target in targets for label in target}
    return len(lengths) == 1 and lengths.pop() > 1 and cells <= {"0", "1", "0.0", "1.0", "true", "false"}
