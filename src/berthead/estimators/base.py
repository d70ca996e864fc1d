"""What all estimators share: the parameters, fitting, saving."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from berthead.errors import DataError, UsageError
from berthead.estimators.inputs import refuse_blank, refuse_empty, texts_of
from berthead.fitted import Fitted
from berthead.options import FitOptions
from berthead.records import Example, FloatArray
from berthead.train.fit import fit_examples


class TextEstimator(BaseEstimator):  # type: ignore[misc]
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
    ) -> None:
        self.encoder = encoder
        self.adapt = adapt
        self.head = head
        self.pooling = pooling
        self.epochs = epochs
        self.batch = batch
        self.lr = lr
        self.head_lr = head_lr
        self.layer_decay = layer_decay
        self.unfreeze = unfreeze
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
        self.cache = cache
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
        texts = texts_of(X)
        check_consistent_length(texts, targets)
        refuse_empty(texts)
        refuse_blank(texts)
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
            epochs=self.epochs, batch=self.batch, lr=self.lr, head_lr=self.head_lr, layer_decay=self.layer_decay,
            unfreeze=self.unfreeze, weight_decay=self.weight_decay, warmup=self.warmup, clip=self.clip,
            metric=self.metric, max_tokens=self.max_tokens, on_long=self.on_long, stride=self.stride,
            windows=self.windows, precision=self.precision, cache=self.cache, threads=self.threads,
            seed=_seed(self.random_state), class_weight=class_weight,
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
        texts = texts_of(X)
        refuse_blank(texts)
        pairs = bool(self.fitted_.artifact.columns["pair"])
        if texts and pairs != isinstance(texts[0], tuple):
            raise DataError("X", "mixes texts and pairs", "what fit saw: " + ("pairs" if pairs else "single texts"))
        examples = [Example(text[0] if pairs else text, text[1] if pairs else None) for text in texts]
        logits: FloatArray = self.fitted_.applier.logits(examples)
        return logits

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        tags.target_tags.required = True
        return tags


def _seed(random_state: Any) -> Any:
    """The seed itself, or one drawn where scikit-learn would draw."""
    if random_state is None or isinstance(random_state, np.random.RandomState):
        return int(check_random_state(random_state).randint(2**31))
    return random_state
