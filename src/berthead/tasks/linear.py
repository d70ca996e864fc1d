"""Baselines: linear models on text features that give a task's logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from berthead.records import FloatArray

# The logit of what no fitted row says.
NEVER = -20.0


def ridge(features: Any, targets: np.ndarray, unseen: Any, outputs: int) -> FloatArray:
    """Numbers by ridge regression.

    Args:
        features: of fitted texts, [rows, features], also sparse.
        targets: their numbers, float32 [rows, outputs]; NaN: not known.
        unseen: features of other texts.
        outputs: of the task.

    Returns:
        float32 [other rows, outputs].
    """
    from sklearn.linear_model import Ridge

    predicted = np.zeros((unseen.shape[0], outputs), dtype=np.float32)
    for number in range(outputs):
        known = ~np.isnan(targets[:, number])
        if known.any():
            predicted[:, number] = Ridge().fit(features[known], targets[known, number]).predict(unseen)
    return predicted


def softmax_regression(features: Any, targets: np.ndarray, unseen: Any, outputs: int) -> FloatArray:
    """One of the labels by logistic regression; `targets`: label numbers [rows]; else as `ridge`."""
    from sklearn.linear_model import LogisticRegression

    logits = np.full((unseen.shape[0], outputs), NEVER, dtype=np.float32)
    model = LogisticRegression(C=10, max_iter=300).fit(features, targets)
    logits[:, model.classes_] = model.predict_log_proba(unseen)
    return logits


def logistic_regressions(features: Any, targets: np.ndarray, unseen: Any, outputs: int) -> FloatArray:
    """Each label by its own logistic regression; `targets`: 0 or 1, [rows, labels]; else as `ridge`."""
    from sklearn.linear_model import LogisticRegression

    logits = np.full((unseen.shape[0], outputs), NEVER, dtype=np.float32)
    for number in range(outputs):
        having = targets[:, number]
        if 0 < having.sum() < len(having):
            logits[:, number] = LogisticRegression(C=10, max_iter=300).fit(features, having).decision_function(unseen)
    return logits
