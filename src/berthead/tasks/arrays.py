"""Functions of arrays and numbers that tasks share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from berthead.records import FloatArray


def number(state: Mapping[Any, Any], key: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from a saved state.

    Args:
        state: the JSON object.
        key: the number's name.
        low: it has to be at least this.
        high: it has to be at most this.

    Returns:
        The number.

    Raises:
        ValueError: it is something else.
        KeyError: it is not there.
    """
    value = state[key]
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not sound or not low <= value <= high:
        bound = f" from {low:g} to {high:g}" if high < math.inf else f", at least {low:g}" if low > -math.inf else ""
        raise ValueError(f"{key} is {value!r}; expected a finite number{bound}")
    return float(value)


def ragged(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of different lengths as one object array, [rows]."""
    one = np.empty(len(arrays), dtype=object)
    for place, array in enumerate(arrays):
        one[place] = array
    return one


def softmax(logits: np.ndarray) -> FloatArray:
    """Probabilities of each row, [rows, labels], without overflow."""
    raised = np.exp(logits - logits.max(1, keepdims=True))
    shares: FloatArray = raised / raised.sum(1, keepdims=True)
    return shares


def sigmoid(logits: FloatArray) -> FloatArray:
    """Probabilities, the shape of the logits, without overflow."""
    shares: FloatArray = (0.5 * (1 + np.tanh(0.5 * logits))).astype(np.float32)
    return shares
