"""Measures of labels, and the temperature of their probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from berthead.errors import listed, shown
from berthead.records import FloatArray, Label
from berthead.tasks.arrays import number, softmax

# Below this many held-out rows a temperature is noise.
ROWS_FOR_TEMPERATURE = 50
# Far beyond what a fit finds. Divided by less, logits overflow; divided by more, all labels get the same probability.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-4, 1e4


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


def never_predicted(labels: Sequence[Label], gold: np.ndarray, predicted: np.ndarray) -> list[str]:
    """A note on labels that rows have and no answer holds; of a label without rows there is nothing to say.

    Args:
        labels: the labels, in output order.
        gold: rows that have each label, [labels].
        predicted: answers that hold it, [labels].

    Returns:
        A line, or none.
    """
    never = [label for label, rows, answers in zip(labels, gold, predicted, strict=True) if rows and not answers]
    return [f"never predicted: {listed(map(shown, never))}"] if never else []


def temperature_in(state: Mapping[str, Any]) -> float:
    """The temperature in a task's saved state.

    Raises:
        ValueError: it is not a number that a fit could have found.
        KeyError: it is not there.
    """
    return number(state, "temperature", LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE)


def nll(logits: FloatArray, targets: np.ndarray, temperature: float) -> float:
    """Mean negative log-likelihood in nats."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(1, keepdims=True)
    log_shares = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
    return float(-log_shares[np.arange(len(targets)), targets].mean())


def best_temperature(loss: Callable[[float], float], rows: int) -> float | None:
    """The temperature of the highest likelihood on held-out rows (Guo et al. 2017).

    Args:
        loss: the mean negative log-likelihood at a temperature.
        rows: held-out rows.

    Returns:
        From e^-3 to e^3; 1 if none is better; None if there are too few rows.
    """
    from scipy.optimize import minimize_scalar

    if rows < ROWS_FOR_TEMPERATURE:
        return None
    found = minimize_scalar(lambda t: loss(float(np.exp(t))), bounds=(-3, 3), method="bounded")
    temperature = float(np.exp(found.x))
    return temperature if loss(temperature) < loss(1.0) else 1.0


def calibration_error(logits: FloatArray, targets: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean gap between the answer's probability and its accuracy, over equal bins.

    Args:
        logits: scaled by the temperature, [rows, labels].
        targets: label numbers [rows].
        bins: bins of equal width.

    Returns:
        From 0 (calibrated) to 1.
    """
    shares = softmax(logits)
    sure, right = shares.max(1), shares.argmax(1) == targets
    bin_of = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = [abs(right[bin_of == b].mean() - sure[bin_of == b].mean()) * (bin_of == b).mean() for b in np.unique(bin_of)]
    return float(np.sum(gaps))
