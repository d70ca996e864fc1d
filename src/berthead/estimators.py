"""scikit-learn estimators: the same fit and the same function behind fit, predict and score."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from berthead.api import Fitted
from berthead.data.labels import is_blank, plain
from berthead.errors import DataError, UsageError
from berthead.options import FitOptions
from berthead.records import Example, FloatArray
from berthead.train.fit import fit_examples


class _TextEstimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: the parameters, reading X, fitting."""

    def __init__(
        self,
        *,
        encoder: str = "minilm",
        adapt: str = "full",
        pooling: str = "auto",
        epochs: int | None = None,
        batch: int = 32,
        lr: float | None = None,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        clip: float = 1.0,
        metric: str | None = None,
        valid: float = 0.1,
        max_tokens: int | None = None,
        precision: str = "auto",
        threads: int | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.encoder = encoder
        self.adapt = adapt
        self.pooling = pooling
        self.epochs = epochs
        self.batch = batch
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.clip = clip
        self.metric = metric
        self.valid = valid
        self.max_tokens = max_tokens
        self.precision = precision
        self.threads = threads
        self.random_state = random_state
        self.verbose = verbose

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the model folder, which `berthead.load`, the command line and transformers read.

        Args:
            folder: where to.
            overwrite: replace a model folder that exists.

        Raises:
            sklearn.exceptions.NotFittedError: fit was not called.
            OutputError: it cannot be written.
        """
        check_is_fitted(self, "fitted_")
        self.fitted_.save(folder, overwrite)

    def _fit(self, task: str, X: Any, targets: Sequence[Any], class_weight: str = "none") -> Fitted:
        texts = _texts(X)
        check_consistent_length(texts, targets)
        if not texts:
            raise DataError("X", "is empty: 0 samples", "at least 2 texts")
        _refuse_blank(texts)
        if not 0 <= self.valid < 1:
            raise UsageError("valid", f"is {self.valid!r}", "a share from 0 to below 1")
        options = FitOptions(
            task=task, encoder=self.encoder, adapt=self.adapt, pooling=self.pooling, epochs=self.epochs,
            batch=self.batch, lr=self.lr, weight_decay=self.weight_decay, warmup=self.warmup, clip=self.clip,
            metric=self.metric, max_tokens=self.max_tokens, precision=self.precision, threads=self.threads,
            seed=_seed(self.random_state), class_weight=class_weight,
        )  # fmt: skip
        pairs = isinstance(texts[0], tuple)
        examples = [
            Example(text[0] if pairs else text, text[1] if pairs else None, target, f"X[{row}]")
            for row, (text, target) in enumerate(zip(texts, targets, strict=True))
        ]
        columns = {"text": "text", "pair": "pair" if pairs else None, "label": "label"}
        result = fit_examples(examples, self.valid, options, columns, "y", with_baselines=False, quiet=not self.verbose)
        if result.history.interrupted:
            # scikit-learn's searches take any Exception for a bad candidate and go on.
            raise KeyboardInterrupt
        fitted = Fitted(result.artifact)
        fitted.warnings = result.warnings
        for line in result.warnings:
            warnings.warn(line, UserWarning, stacklevel=3)
        return fitted

    def _logits(self, X: Any) -> FloatArray:
        check_is_fitted(self, "fitted_")
        texts = _texts(X)
        _refuse_blank(texts)
        pairs = bool(self.fitted_.artifact.columns["pair"])
        if texts and pairs != isinstance(texts[0], tuple):
            raise DataError("X", "mixes texts and pairs", "what fit saw: " + ("pairs" if pairs else "single texts"))
        examples = [Example(text[0] if pairs else text, text[1] if pairs else None) for text in texts]
        logits: FloatArray = self.fitted_.predictor.logits(examples)
        return logits

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        tags.target_tags.required = True
        return tags


class TextClassifier(ClassifierMixin, _TextEstimator):  # type: ignore[misc]
    """Predict(BERT(x)) for labels: one a text where y is a column, any number where y is a 0/1 matrix.

    Args:
        encoder: `minilm`, a local folder, or a name that was pulled.
        adapt: what learns: `full` or `frozen`.
        pooling: `auto`, `cls`, `mean` or `pooler`.
        epochs: passes over the data; None: 3, or 40 when frozen.
        batch: rows of one step.
        lr: peak learning rate; None: 5e-5, or 1e-3 when frozen.
        weight_decay: decoupled weight decay.
        warmup: share of the steps in which the rate rises.
        clip: largest norm of the gradient.
        metric: what chooses the best epoch; None: the task's own.
        valid: share of the rows held out for that, and for the temperature or the thresholds; 0: none.
        max_tokens: longest input in tokens; None: the encoder's.
        precision: `auto`, `fp32` or `bf16`, of training.
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
        pooling: str = "auto",
        epochs: int | None = None,
        batch: int = 32,
        lr: float | None = None,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        clip: float = 1.0,
        metric: str | None = None,
        valid: float = 0.1,
        max_tokens: int | None = None,
        precision: str = "auto",
        threads: int | None = None,
        random_state: Any = 0,
        verbose: bool = False,
        class_weight: str | None = None,
    ) -> None:
        super().__init__(
            encoder=encoder, adapt=adapt, pooling=pooling, epochs=epochs, batch=batch, lr=lr,
            weight_decay=weight_decay, warmup=warmup, clip=clip, metric=metric, valid=valid, max_tokens=max_tokens,
            precision=precision, threads=threads, random_state=random_state, verbose=verbose,
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
        _refuse_missing(y)
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
        if self.fitted_.artifact.task.name == "multilabel":
            labels = self.classes_.tolist()
            hot: np.ndarray = np.array([[label in given for label in labels] for given in answers], dtype=int)
            return hot.reshape(len(answers), len(labels))
        return np.array(answers, dtype=self.classes_.dtype)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class TextRegressor(RegressorMixin, _TextEstimator):  # type: ignore[misc]
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
        _refuse_missing(y)
        targets = column_or_1d(np.asarray(y), warn=True).astype(float)
        if not np.isfinite(targets).all():
            raise DataError("y", "holds NaN or infinity", "finite numbers")
        self.fitted_ = self._fit("regress", X, targets.tolist())
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Numbers, float64 [rows]."""
        logits = self._logits(X)
        return np.array([answer.answer for answer in self.fitted_.artifact.task.decode(logits)], dtype=np.float64)


def _seed(random_state: Any) -> Any:
    """The seed itself, or one drawn where scikit-learn would draw."""
    if random_state is None or isinstance(random_state, np.random.RandomState):
        return int(check_random_state(random_state).randint(2**31))
    return random_state


def _texts(X: Any) -> list[Any]:
    """X as a list of texts, or of tuples of two texts."""
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if isinstance(X, str):
        raise DataError("X", "is one text", "a list of texts")
    if isinstance(X, np.ndarray):
        if X.ndim == 2 and X.shape[1] in (1, 2):
            return [row[0] if X.shape[1] == 1 else tuple(row) for row in X.tolist()]
        if X.ndim != 1:
            raise DataError("X", f"has shape {X.shape}", "texts [rows], or pairs [rows, 2]", "Reshape your data.")
        return list(X.tolist())
    return [tuple(value) if isinstance(value, list) else value for value in X]


def _refuse_blank(texts: Sequence[Any]) -> None:
    wanted = "pairs as tuples of two texts" if texts and isinstance(texts[0], tuple) else "texts"
    for row, text in enumerate(texts):
        parts = text if isinstance(text, tuple) else (text,)
        if len(parts) != (2 if wanted != "texts" else 1):
            raise DataError(f"X[{row}]", f"holds {len(parts)} texts", wanted)
        for part in parts:
            if is_blank(part):
                raise DataError(f"X[{row}]", "is blank or NaN", wanted)
            if not isinstance(part, str):
                raise DataError(f"X[{row}]", f"is {type(part).__name__}", wanted)


def _refuse_missing(y: Any) -> None:
    if y is None:
        # scikit-learn's own words, which its checks look for.
        raise DataError("y", "requires y to be passed, but the target y is None", "labels or numbers")
    values = np.asarray(y)
    if values.ndim == 1 and values.dtype == object:
        for row, value in enumerate(values.tolist()):
            if is_blank(value):
                raise DataError(f"y[{row}]", "is missing", "a label or a number for every text")
