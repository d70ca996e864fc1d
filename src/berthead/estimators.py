"""scikit-learn estimators: the same fit and the same function behind fit, predict and score."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from berthead.api import Fitted, mended
from berthead.data.examples import Columns, sound_examples, to_example
from berthead.data.labels import is_blank, plain
from berthead.errors import DataError, UsageError
from berthead.options import FitOptions
from berthead.records import Example, FloatArray, Prediction, Row, Span
from berthead.tasks import find_task
from berthead.train.fit import fit_examples


class _TextEstimator(BaseEstimator):  # type: ignore[misc]
    """What all estimators share: the parameters, reading X, fitting."""

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
        threads: int | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.encoder = encoder
        self.adapt = adapt
        self.head = head
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
        self.on_long = on_long
        self.stride = stride
        self.windows = windows
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
        _refuse_empty(texts)
        _refuse_blank(texts)
        pairs = isinstance(texts[0], tuple)
        examples = [
            Example(text[0] if pairs else text, text[1] if pairs else None, target, f"X[{row}]")
            for row, (text, target) in enumerate(zip(texts, targets, strict=True))
        ]
        columns = {"text": "text", "pair": "pair" if pairs else None, "label": "label"}
        return self._fit_examples(task, examples, columns, class_weight)

    def _fit_examples(
        self, task: str, examples: Sequence[Example], columns: dict[str, Any], class_weight: str = "none"
    ) -> Fitted:
        if not 0 <= self.valid < 1:
            raise UsageError("valid", f"is {self.valid!r}", "a share from 0 to below 1")
        options = FitOptions(
            task=task, encoder=self.encoder, adapt=self.adapt, head=self.head, pooling=self.pooling,
            epochs=self.epochs, batch=self.batch, lr=self.lr, weight_decay=self.weight_decay, warmup=self.warmup,
            clip=self.clip, metric=self.metric, max_tokens=self.max_tokens, on_long=self.on_long, stride=self.stride,
            windows=self.windows, precision=self.precision, threads=self.threads, seed=_seed(self.random_state),
            class_weight=class_weight,
        )  # fmt: skip
        result = fit_examples(examples, self.valid, options, columns, "y", with_baselines=False, quiet=not self.verbose)
        if result.history.interrupted:
            # scikit-learn's searches take any Exception for a bad candidate and go on.
            raise KeyboardInterrupt
        fitted = Fitted(result.artifact)
        fitted.warnings = result.warnings
        for line in result.warnings:
            warnings.warn(line, UserWarning, stacklevel=4)
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
        head: `auto`, or the name of an installed package's head.
        pooling: `auto`, `cls`, `mean` or `pooler`.
        epochs: passes over the data; None: 3, or 40 when frozen.
        batch: rows of one step.
        lr: peak learning rate; None: 5e-5, or 1e-3 when frozen.
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
        threads: int | None = None,
        random_state: Any = 0,
        verbose: bool = False,
        class_weight: str | None = None,
    ) -> None:
        super().__init__(
            encoder=encoder, adapt=adapt, head=head, pooling=pooling, epochs=epochs, batch=batch, lr=lr,
            weight_decay=weight_decay, warmup=warmup, clip=clip, metric=metric, valid=valid, max_tokens=max_tokens,
            on_long=on_long, stride=stride, windows=windows, precision=precision, threads=threads,
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


class _StructuredEstimator(_TextEstimator):
    """What the estimators of tags, answers and choices share: rows that are no plain texts."""

    _task: ClassVar[str]
    _columns: ClassVar[dict[str, Any]]
    _metric: ClassVar[str]

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on rows and targets.

        Args:
            X: rows, as the class says.
            y: their targets, as many.

        Returns:
            The estimator.

        Raises:
            DataError: rows that cannot be used (it is a ValueError).
        """
        if y is None:
            raise DataError("y", "requires y to be passed, but the target y is None", "a target for every row")
        examples = self._examples(X, y)
        for line in mended(examples):
            warnings.warn(line, UserWarning, stacklevel=2)
        self.fitted_ = self._fit_examples(self._task, examples, self._columns)
        return self

    def _predictions(self, X: Any) -> list[Prediction]:
        check_is_fitted(self, "fitted_")
        found = list(self.fitted_.predictor.predict(self._examples(X, None)))
        for one in found:
            if one.error:
                raise DataError(one.where, one.error)
        return found

    def score(self, X: Any, y: Any) -> float:
        """The task's metric on rows with targets, from 0 to 1: F1 of entities or of answers, or accuracy."""
        check_is_fitted(self, "fitted_")
        examples = self._examples(X, y)
        for example in examples:
            try:
                self.fitted_.artifact.task.check(example.target)
            except ValueError as error:
                raise DataError(example.where, f"the target {error}", fix="Fit on rows that have it.") from None
        return float(self.fitted_.predictor.evaluate(examples)[self._metric])

    def _examples(self, X: Any, y: Any) -> list[Example]:
        rows = _rows(X)
        _refuse_empty(rows)
        if y is not None:
            check_consistent_length(rows, y)
        task, form = find_task(self._task), find_task(self._task).form
        columns = Columns("text", "pair" if form == "question" else None, "label" if y is not None else None,
                          ("choices",) if form == "choices" else (), form=form)  # fmt: skip
        targets = [None] * len(rows) if y is None else list(y)
        read = (
            to_example(Row(_values(row, form) | {"label": target}, f"X[{number}]"), columns, task.read, task.settled)
            for number, (row, target) in enumerate(zip(rows, targets, strict=True))
        )
        return sound_examples(read, skip_bad_rows=False)[0]


class SequenceLabeler(_StructuredEstimator):
    """Predict(BERT(x)) for a tag a word: X holds lists of tokens and y lists of tags, or X texts and y lists of spans.

    The parameters are those of `TextClassifier` without `class_weight`; `head="crf"` decodes with a conditional random
    field.

    Attributes:
        fitted_: the `Fitted` function.

    Example:
        >>> X, y = [["Ann", "left"], ["Bob", "came"]] * 2, [["B-PER", "O"], ["B-PER", "O"]] * 2
        >>> SequenceLabeler(adapt="frozen", valid=0).fit(X, y).predict([["Eve", "went"]])
        [['B-PER', 'O']]
    """

    _task: ClassVar[str] = "tag"
    _columns: ClassVar[dict[str, Any]] = {"text": "tokens", "pair": None, "label": "tags"}
    _metric: ClassVar[str] = "f1"

    def predict(self, X: Any) -> list[Any]:
        """A list for each row: tags where it holds tokens, `Span` records where it is a text."""
        return [one.spans if one.tags is None else one.tags for one in self._predictions(X)]


class SpanExtractor(_StructuredEstimator):
    """Predict(BERT(x)) for the answer in a context: X holds (question, context), y answers as texts or as in SQuAD.

    The parameters are those of `TextClassifier` without `class_weight`. An answer in y is a text that stands once in
    its context, the empty text where there is none, or [{"text": ..., "answer_start": ...}].

    Attributes:
        fitted_: the `Fitted` function.

    Example:
        >>> X = [("Who came?", "Yesterday Ann came."), ("Who left?", "Then Bob left.")]
        >>> answer = SpanExtractor(epochs=1, valid=0).fit(X, ["Ann", "Bob"]).predict([("Who sat?", "Eve sat.")])[0]
        >>> answer in "Eve sat."
        True
    """

    _task: ClassVar[str] = "span"
    _columns: ClassVar[dict[str, Any]] = {"text": "question", "pair": "context", "label": "answers"}
    _metric: ClassVar[str] = "f1"

    def predict(self, X: Any) -> list[str]:
        """The answer to each question, a part of its context; empty: it holds none."""
        return [one.answer for one in self._predictions(X)]

    def predict_spans(self, X: Any) -> list[list[Span]]:
        """The best few answers to each question, best first, with their places and probabilities."""
        return [one.spans or [] for one in self._predictions(X)]

    def _examples(self, X: Any, y: Any) -> list[Example]:
        # An empty text is no answer; a blank cell of a file may be a mistake.
        return super()._examples(
            X, None if y is None else [[] if isinstance(one, str) and not one else one for one in y]
        )


class MultipleChoice(_StructuredEstimator):
    """Predict(BERT(x)) for one of a question's choices: X holds (question, [choice, ...]), y numbers, letters or texts.

    The parameters are those of `TextClassifier` without `class_weight`.

    Attributes:
        fitted_: the `Fitted` function.

    Example:
        >>> X = [("Grass is", ["green", "red"]), ("Blood is", ["green", "red"])]
        >>> chooser = MultipleChoice(epochs=1, valid=0).fit(X, [0, 1])
        >>> chooser.predict_proba([("Snow is", ["white", "red", "hot"])])[0].shape
        (3,)
    """

    _task: ClassVar[str] = "choose"
    _columns: ClassVar[dict[str, Any]] = {"text": "question", "pair": None, "label": "label", "choices": ["choices"]}
    _metric: ClassVar[str] = "accuracy"

    def predict(self, X: Any) -> list[Any]:
        """The choice for each question, named as in y: its number, its letter, or its text."""
        return [one.answer for one in self._predictions(X)]

    def predict_proba(self, X: Any) -> list[np.ndarray]:
        """The probability of each choice, an array [choices] for each question."""
        return [np.array(list((one.probabilities or {}).values())) for one in self._predictions(X)]


def _rows(X: Any) -> list[Any]:
    """X as a list of rows: of a table its rows, of one column the cells."""
    if isinstance(X, str | bytes | dict):
        raise DataError("X", f"is {type(X).__name__}", "a list of rows", "Put it in a list.")
    if hasattr(X, "columns") and hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if isinstance(X, np.ndarray) and X.ndim == 2 and X.shape[1] == 1:
        X = X[:, 0]
    listed = X.to_list() if hasattr(X, "to_list") else X.tolist() if hasattr(X, "tolist") else list(X)
    # Cells of a polars or Arrow table are arrays and series themselves.
    return [
        [_plain(part) for part in row] if isinstance(row, list | tuple | np.ndarray) else _plain(row) for row in listed
    ]


def _plain(cell: Any) -> Any:
    for name in ("to_list", "tolist"):
        if hasattr(cell, name):
            return getattr(cell, name)()
    return cell


def _values(row: Any, form: str) -> dict[str, Any]:
    """A row of X as the columns of its form."""
    if form == "words":
        return {"text": row}
    if not isinstance(row, list | tuple) or len(row) != 2:
        wanted = "(question, context)" if form == "question" else "(question, [choice, ...])"
        raise DataError("X", f"holds {type(row).__name__}", wanted)
    return {"text": row[0], "pair" if form == "question" else "choices": row[1]}


def _refuse_empty(rows: Sequence[Any]) -> None:
    if not len(rows):
        raise DataError("X", "is empty: 0 samples", "at least 2 texts")


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
