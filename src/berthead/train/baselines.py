"""Baselines of a fit: the majority answer, and TF-IDF with a linear model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from berthead.records import Example
from berthead.tasks import Task

# TF-IDF baselines need no more rows than this to be fair, and stay a matter of seconds.
MOST_ROWS = 20_000


def can_be_based(task: Task) -> bool:
    """Whether the task has a linear baseline."""
    return type(task).linear is not None


def baselines(
    task: Task, train: Sequence[Example], targets: np.ndarray, valid: Sequence[Example], gold: np.ndarray, metric: str
) -> dict[str, float]:
    """The metric of the two baselines on the held-out rows.

    Args:
        task: what is predicted; it has a linear model.
        train: training rows; at most the first 20,000 are used.
        targets: their targets, [rows, ...].
        valid: held-out rows.
        gold: their targets.
        metric: which metric.

    Returns:
        `majority` and `tfidf`: the metric of each.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [_joined(example) for example in train[:MOST_ROWS]]
    targets = targets[:MOST_ROWS]
    vectoriser = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    try:
        features = vectoriser.fit_transform(texts)
        unseen = vectoriser.transform([_joined(example) for example in valid])
    except ValueError:  # no word in any text
        features = unseen = None
    majority = np.repeat(task.prior(targets)[None], len(valid), axis=0)

    def score(logits: np.ndarray) -> float:
        # Each baseline gets its own thresholds and temperature, like the fitted function.
        return float(task.tuned(logits, gold).evaluate(logits, gold)[metric])

    found = {"majority": score(majority)}
    linear = type(task).linear
    if features is not None and linear is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unconverged baseline is still a baseline
            found["tfidf"] = score(linear(features, targets, unseen, task.outputs))
    return found


def _joined(example: Example) -> str:
    return f"{example.text}\n{example.pair}" if example.pair else example.text
