"""Baselines of a fit: the majority answer, and TF-IDF with a linear model."""

from __future__ import annotations

import warnings

import numpy as np

from berthead.records import Example, FloatArray
from berthead.tasks import Task
from berthead.train.fold import Fold

# TF-IDF baselines need no more rows than this to be fair, and stay a matter of seconds.
MOST_ROWS = 20_000


def can_be_based(task: Task) -> bool:
    """Whether the task has a linear baseline."""
    return type(task).linear is not None


def baseline_logits(task: Task, fitted: Fold, rows: Fold) -> dict[str, FloatArray]:
    """The answers of the two baselines.

    Args:
        task: what is predicted; it has a linear model.
        fitted: the rows that they are fitted on; at most the first 20,000 are used.
        rows: the rows that they answer.

    Returns:
        `majority` and, if any text has a word, `tfidf`: the logits of each, float32 [rows, outputs].
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [_joined(example) for example in fitted.examples[:MOST_ROWS]]
    targets = fitted.targets[:MOST_ROWS]
    found = {"majority": np.repeat(task.prior(targets)[None], len(rows.examples), axis=0)}
    vectoriser = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    linear = type(task).linear
    assert linear is not None
    try:
        features = vectoriser.fit_transform(texts)
    except ValueError:  # no word in any text
        return found
    unseen = vectoriser.transform([_joined(example) for example in rows.examples])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unconverged baseline is still a baseline
        return found | {"tfidf": linear(features, targets, unseen, task.outputs)}


def _joined(example: Example) -> str:
    return f"{example.text}\n{example.pair}" if example.pair else example.text
