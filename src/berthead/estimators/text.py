"""Estimators of one answer a text: labels and numbers."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d

from berthead.data.frames import collected, columns_of, is_frame
from berthead.data.labels import Labels, plain
from berthead.errors import DataError, shown
from berthead.estimators.base import TextEstimator, with_parameters
from berthead.estimators.inputs import in_memory, label_lists, matrix_of, refuse_missing
from berthead.records import FloatArray


@with_parameters("valid", "random_state", "verbose", "class_weight")
class TextClassifier(ClassifierMixin, TextEstimator):  # type: ignore[misc]
    """Predict(BERT(x)) for labels: one a text if y is a column, any number if y is a 0/1 matrix or lists of labels.

    Args:
        {options}

    Attributes:
        classes_: the labels, sorted.
        fitted_: the `Fitted` function.

    Example:
        >>> classifier = TextClassifier(adapt="frozen", valid=0)
        >>> classifier.fit(["good", "fine", "bad", "poor"], ["+", "+", "-", "-"]).predict(["great"]).tolist()
        ['+']
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on texts and labels.

        Args:
            X: texts [rows], or pairs as tuples or two columns; lists, arrays, pandas or polars.
            y: labels [rows]; for multi-label 0/1 [rows, labels], also sparse, or a list of labels for each row.

        Returns:
            The estimator.

        Raises:
            DataError: nothing can be learnt from the rows (it is a ValueError).
        """
        weight = self.class_weight or "none"
        targets, classes, dtype = _targets(y)
        task = "classify" if classes is None else "multilabel"
        self.fitted_ = self._fit(task, X, targets, lambda given: _targets(given)[0], weight)
        labels = self.fitted_.labels if classes is None else classes
        self.classes_ = np.array(labels, dtype=dtype)
        return self

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of rows whose labels are right; of lists of labels: whose labels are all right."""
        if (lists := label_lists(in_memory(y))) is not None:
            known = self.classes_.tolist()
            unknown = [label for row in lists for label in row if label not in known]
            if unknown:
                raise DataError("y", f"holds {shown(unknown[0])}", "labels of the fit")
            y = np.array([[label in row for label in known] for row in lists], dtype=int)
        return float(super().score(X, matrix_of(in_memory(y)), sample_weight))

    def predict_log_proba(self, X: Any) -> FloatArray:
        """The logarithm of `predict_proba`; -inf where that is 0."""
        with np.errstate(divide="ignore"):
            logarithms: FloatArray = np.log(self.predict_proba(X))
        return logarithms

    def predict_proba(self, X: Any) -> FloatArray:
        """Probabilities, float32 [rows, labels], columns in the order of `classes_`."""
        logits = self._logits(X)
        task = self.fitted_.artifact.task
        shares = np.zeros((len(logits), len(self.classes_)), dtype=np.float32)
        known = [self.classes_.tolist().index(label) for label in self.fitted_.labels]
        rows = [list((answer.probabilities or {}).values()) for answer in task.decode(logits)]
        shares[:, known] = np.array(rows, dtype=np.float32).reshape(len(rows), len(known))
        return shares

    def predict(self, X: Any) -> np.ndarray:
        """Labels [rows], or 0/1 [rows, labels] for multi-label."""
        logits = self._logits(X)
        answers = [answer.answer for answer in self.fitted_.artifact.task.decode(logits)]
        if self.fitted_.artifact.task.several_labels:
            labels = self.classes_.tolist()
            hot: np.ndarray = np.array([[label in given for label in labels] for given in answers], dtype=int)
            return hot.reshape(len(answers), len(labels))
        return np.array(answers, dtype=self.classes_.dtype)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


@with_parameters("valid", "random_state", "verbose")
class TextRegressor(RegressorMixin, TextEstimator):  # type: ignore[misc]
    """Predict(BERT(x)) for numbers: one a text if y is a column, several if y is a matrix.

    Args:
        {options}

    Attributes:
        fitted_: the `Fitted` function.

    Example:
        >>> regressor = TextRegressor(adapt="frozen", valid=0)
        >>> bool(regressor.fit(["good", "fine", "bad", "poor"], [5.0, 4.0, 1.0, 2.0]).predict(["great"])[0] > 4)
        True
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on texts and numbers.

        Args:
            X: texts [rows], or pairs as tuples or two columns.
            y: finite numbers [rows], or [rows, targets]; the columns of a table name its targets.

        Returns:
            The estimator.

        Raises:
            DataError: nothing can be learnt from the rows (it is a ValueError).
        """
        targets = _numbers(y)
        label = ",".join(targets[0]) if targets and isinstance(targets[0], dict) else None
        self.fitted_ = self._fit("regress", X, targets, _numbers, label=label)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Numbers, float64 [rows], or [rows, targets] if y was a matrix."""
        logits = self._logits(X)
        answers = [answer.numbers for answer in self.fitted_.artifact.task.decode(logits)]
        numbers = np.array(answers, dtype=np.float64).reshape(len(answers), self.fitted_.artifact.task.outputs)
        return numbers if numbers.shape[1] > 1 else numbers[:, 0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _targets(y: Any) -> tuple[list[Any], list[Any] | None, Any]:
    """The target of each row; the labels, if a row has several; and the dtype of labels."""
    y = in_memory(y)
    refuse_missing(y)
    if (lists := label_lists(y)) is not None:
        return lists, list(Labels.from_values(label for row in lists for label in row).names), None
    matrix = matrix_of(y)
    if matrix.ndim != 2 or matrix.shape[1] < 2:
        column = column_or_1d(matrix, warn=True)
        check_classification_targets(column)
        return column.tolist(), None, column.dtype
    # scikit-learn would take any two numbers, and every one but 0 for 1.
    if type_of_target(matrix, input_name="y") != "multilabel-indicator" or not np.isin(matrix, (0, 1)).all():
        raise DataError("y", f"is a matrix of shape {matrix.shape}", "0 and 1 for each label, or one column")
    labels = list(columns_of(y, "y").values()) if is_frame(y) else list(range(matrix.shape[1]))
    classes = np.array([plain(name) for name in labels])
    names = classes.tolist()
    return [[names[column] for column in np.flatnonzero(row)] for row in matrix], names, classes.dtype


def _numbers(y: Any) -> list[Any]:
    """Targets as finite numbers; of several a dict a row."""
    y = collected(y)
    names = list(columns_of(y, "y")) if is_frame(y) else None
    y = in_memory(y)
    refuse_missing(y)
    matrix = np.asarray(y)
    if matrix.ndim == 2 and matrix.shape[1] > 1:
        matrix = matrix_of(matrix, "a number for each target")
    else:
        matrix = column_or_1d(matrix, warn=True)
    targets = matrix.astype(float)
    if not np.isfinite(targets).all():
        raise DataError("y", "holds NaN or infinity", "finite numbers")
    numbers: list[Any] = targets.tolist()
    if targets.ndim == 1:
        return numbers
    names = names or [str(place) for place in range(targets.shape[1])]
    if odd := [name for name in names if "," in name or not name.strip()]:
        raise DataError("y", f"has the column {shown(odd[0])}", "columns whose names have no comma", "Rename it.")
    return [dict(zip(names, row, strict=True)) for row in numbers]
