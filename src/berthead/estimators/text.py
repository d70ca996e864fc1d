"""Estimators of one answer a text: labels and numbers."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d

from berthead.data.labels import plain
from berthead.errors import DataError
from berthead.estimators.base import TextEstimator
from berthead.estimators.inputs import refuse_missing
from berthead.records import FloatArray


class TextClassifier(ClassifierMixin, TextEstimator):  # type: ignore[misc]
    """Predict(BERT(x)) for labels: one a text where y is a column, any number where y is a 0/1 matrix.

    Args:
        encoder: `minilm`, a local folder, or a name that was pulled.
        adapt: what learns: `full`, `frozen`, `top:K`, `lora:R[,alpha=A][,targets=a+b]` or `bitfit`.
        head: `auto`, or the name of an installed package's head.
        pooling: `auto`, `cls`, `mean` or `pooler`.
        epochs: passes over the data; None: as `adapt` needs, from 3 (full) to 40 (frozen).
        batch: rows of one step.
        lr: peak learning rate; None: as `adapt` needs, as `berthead fit --help` says.
        head_lr: peak learning rate of the head; None: `lr`, in full fits without `lr` 10 times the encoder's.
        layer_decay: each block learns at so many times the rate of the one above, embeddings lowest.
        unfreeze: first the head learns, then with each epoch more blocks.
        weight_decay: decoupled weight decay.
        warmup: share of the steps in which the rate rises.
        clip: largest norm of the gradient.
        metric: what chooses the best epoch; None: the task's own.
        valid: share of the rows held out for that, and for the temperature or the thresholds; 0: none.
        max_tokens: longest row or window in tokens; None: the encoder's.
        on_long: `window`, `truncate` or `error`: what happens to longer texts.
        stride: tokens that windows share; None: none, or a quarter of a window for tokens.
        windows: `mean`, `max` or `attention`: how windows become one answer.
        precision: `auto`, `fp32` or `bf16`, of training.
        cache: folder that keeps what a frozen part says of the rows, for later fits; None: for this fit alone.
        threads: processor threads; None: what this process may use.
        random_state: a seed; None or a `numpy.random.RandomState`: another one each time.
        verbose: show progress on stderr.
        class_weight: None or `balanced`.

    Attributes:
        classes_: the labels, sorted.
        fitted_: the `Fitted` function.

    Example:
        >>> classifier = TextClassifier(adapt="frozen", valid=0)
        >>> classifier.fit(["good", "fine", "bad", "poor"], ["+", "+", "-", "-"]).predict(["great"]).tolist()
        ['+']
    """

    def __init__(
        self,
        *,
        encoder: str = "minilm",
        adapt: str = "full",
        head: str = "auto",
        pooling: str = "auto",
        epochs: int | None = None,
        batch: int = 32,
        lr: float | None = None,
        head_lr: float | None = None,
        layer_decay: float = 1.0,
        unfreeze: bool = False,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        clip: float = 1.0,
        metric: str | None = None,
        valid: float = 0.1,
        max_tokens: int | None = None,
        on_long: str = "window",
        stride: int | None = None,
        windows: str = "mean",
        precision: str = "auto",
        cache: str | None = None,
        threads: int | None = None,
        random_state: Any = 0,
        verbose: bool = False,
        class_weight: str | None = None,
    ) -> None:
        super().__init__(
            encoder=encoder, adapt=adapt, head=head, pooling=pooling, epochs=epochs, batch=batch, lr=lr,
            head_lr=head_lr, layer_decay=layer_decay, unfreeze=unfreeze, weight_decay=weight_decay, warmup=warmup,
            clip=clip, metric=metric, valid=valid, max_tokens=max_tokens, on_long=on_long, stride=stride,
            windows=windows, precision=precision, cache=cache, threads=threads,
            random_state=random_state, verbose=verbose,
        )  # fmt: skip
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on texts and labels.

        Args:
            X: texts [rows], or pairs as tuples or two columns; lists, arrays, pandas or polars.
            y: labels [rows], or 0/1 [rows, labels] for multi-label.

        Returns:
            The estimator.

        Raises:
            DataError: nothing can be learnt from the rows (it is a ValueError).
        """
        refuse_missing(y)
        columns = getattr(y, "columns", None)
        matrix = np.asarray(y)
        weight = self.class_weight or "none"
        if matrix.ndim == 2 and matrix.shape[1] > 1:
            # scikit-learn would take any two numbers, and every one but 0 for 1.
            if type_of_target(matrix, input_name="y") != "multilabel-indicator" or not np.isin(matrix, (0, 1)).all():
                raise DataError("y", f"is a matrix of shape {matrix.shape}", "0 and 1 for each label, or one column")
            names = list(columns) if columns is not None else list(range(matrix.shape[1]))
            self.classes_ = np.array([plain(name) for name in names])
            labels = self.classes_.tolist()
            targets = [[labels[column] for column in np.flatnonzero(row)] for row in matrix]
            self.fitted_ = self._fit("multilabel", X, targets, weight)
        else:
            y = column_or_1d(matrix, warn=True)
            check_classification_targets(y)
            self.fitted_ = self._fit("classify", X, y.tolist(), weight)
            self.classes_ = np.array(self.fitted_.labels, dtype=y.dtype)
        return self

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


class TextRegressor(RegressorMixin, TextEstimator):  # type: ignore[misc]
    """Predict(BERT(x)) for numbers; the parameters are those of `TextClassifier`.

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
            y: finite numbers [rows].

        Returns:
            The estimator.

        Raises:
            DataError: nothing can be learnt from the rows (it is a ValueError).
        """
        refuse_missing(y)
        targets = column_or_1d(np.asarray(y), warn=True).astype(float)
        if not np.isfinite(targets).all():
            raise DataError("y", "holds NaN or infinity", "finite numbers")
        self.fitted_ = self._fit("regress", X, targets.tolist())
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Numbers, float64 [rows]."""
        logits = self._logits(X)
        return np.array([answer.answer for answer in self.fitted_.artifact.task.decode(logits)], dtype=np.float64)
