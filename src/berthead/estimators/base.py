"""What all estimators share: the parameters, fitting, saving."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Unpack

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from berthead.data.forms import FORMS
from berthead.errors import DataError, UsageError, did_you_mean
from berthead.estimators.inputs import refuse_blank, refuse_empty, texts_of
from berthead.fitted import Fitted
from berthead.options import ESTIMATOR_OPTIONS, FitOptions
from berthead.options.keywords import EstimatorKeywords
from berthead.options.python_words import notes_in_python, speaks_python
from berthead.options.signatures import documented, help_of, parameters_of
from berthead.records import Example, FloatArray
from berthead.tasks import find_task
from berthead.train.fit import fit_examples
from berthead.train.settings import check_share

E = TypeVar("E", bound="TextEstimator")

# What estimators have beside the options of a fit: name to default and help.
OWN_PARAMETERS: dict[str, tuple[Any, str]] = {
    "valid": (
        None,
        "Held-out rows as (X, y), or their share of the rows: they choose the best epoch, the temperature, the "
        "thresholds; 0: none; None: 0.1, below 256 rows 0.",
    ),
    "random_state": (0, "A seed; None or a `numpy.random.RandomState`: another one each time."),
    "verbose": (False, "Show progress on stderr."),
    "class_weight": (None, "None, or `balanced`: a rare class counts as much as a common one."),
}


def with_parameters(*own: str) -> Callable[[type[E]], type[E]]:
    """Give an estimator its parameters: the options of a fit, and its own.

    scikit-learn reads them from the signature of `__init__`, and so do `help` and editors.

    Args:
        own: names in OWN_PARAMETERS.

    Returns:
        A class decorator; `{options}` in the class's docstring becomes a line for each.
    """

    def decorate(kind: type[E]) -> type[E]:
        more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=OWN_PARAMETERS[name][0])
                for name in own]  # fmt: skip
        parameters = [*parameters_of(FitOptions, ESTIMATOR_OPTIONS), *more]
        kind._defaults = {one.name: one.default for one in parameters}

        def __init__(self: TextEstimator, **parameters: Any) -> None:
            TextEstimator.__init__(self, **parameters)

        first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        __init__.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
        kind.__init__ = __init__  # type: ignore[method-assign]
        texts = help_of(FitOptions, ESTIMATOR_OPTIONS) | {name: OWN_PARAMETERS[name][1] for name in own}
        kind.__doc__ = documented(kind.__doc__, texts)
        return kind

    return decorate


class TextEstimator(BaseEstimator):  # type: ignore[misc]
    """What all estimators share: the parameters, reading X, fitting."""

    _defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, **parameters: Unpack[EstimatorKeywords]) -> None:
        unknown = [name for name in parameters if name not in self._defaults]
        if unknown:
            fix = did_you_mean(unknown[0], self._defaults)
            raise TypeError(f"{type(self).__name__} has no parameter {unknown[0]!r}. {fix}".rstrip())
        for name, default in self._defaults.items():
            setattr(self, name, parameters.get(name, default))

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the model folder, which `berthead.load`, the command line and transformers read.

        Args:
            folder: the target folder.
            overwrite: replace a model folder that exists.

        Raises:
            sklearn.exceptions.NotFittedError: fit was not called.
            OutputError: it cannot be written.
        """
        check_is_fitted(self, "fitted_")
        self.fitted_.save(folder, overwrite)

    def _fit(
        self, task: str, X: Any, targets: Sequence[Any], read: Callable[[Any], Sequence[Any]],
        class_weight: str = "none", label: str | None = None,
    ) -> Fitted:  # fmt: skip
        examples = _examples(X, targets, "X")
        pairs = examples[0].pair is not None
        columns = FORMS[find_task(task).form].usual(pair=pairs) | ({"label": label} if label else {})

        def held_out(X: Any, y: Any) -> list[Example]:
            found = _examples(X, read(y), "valid X")
            if (found[0].pair is not None) != pairs:
                one, other = ("pairs", "single texts") if pairs else ("single texts", "pairs")
                raise DataError("valid X", f"holds {other}", f"{one}, as X")
            return found

        return self._fit_examples(task, examples, columns, held_out, class_weight)

    def _fit_examples(
        self, task: str, examples: Sequence[Example], columns: dict[str, Any],
        held_out: Callable[[Any, Any], Sequence[Example]], class_weight: str = "none",
    ) -> Fitted:  # fmt: skip
        valid: Any = self.valid
        if isinstance(valid, tuple):
            if len(valid) != 2:
                raise UsageError("valid", f"is a tuple of {len(valid)}", "(X, y)")
            valid = held_out(*valid)
        elif isinstance(valid, int | float):
            check_share(valid, "valid", "None, (X, y), or a share")
        elif valid is not None:
            raise UsageError("valid", f"is {type(valid).__name__}", "None, (X, y), or a share such as 0.1")
        chosen = {name: getattr(self, name) for name in ESTIMATOR_OPTIONS}
        with speaks_python():
            options = FitOptions(task=task, seed=_seed(self.random_state), class_weight=class_weight, **chosen)
        with speaks_python():
            result = fit_examples(examples, valid, options, columns, "y", with_baselines=False, quiet=not self.verbose)
        if result.history.interrupted:
            # scikit-learn's searches take any Exception for a bad candidate and go on.
            raise KeyboardInterrupt
        fitted = Fitted(result.artifact)
        fitted.warnings = notes_in_python(result.warnings)
        for line in fitted.warnings:
            warnings.warn(line, UserWarning, stacklevel=4)
        return fitted

    def _logits(self, X: Any) -> FloatArray:
        check_is_fitted(self, "fitted_")
        texts = texts_of(X)
        refuse_blank(texts)
        pairs = bool(self.fitted_.artifact.columns["pair"])
        if texts and pairs != isinstance(texts[0], tuple):
            one, other = ("single texts", "pairs") if pairs else ("pairs", "single texts")
            raise DataError("X", f"holds {one}", f"{other}, as in fit")
        examples = [Example(text[0] if pairs else text, text[1] if pairs else None) for text in texts]
        logits: FloatArray = self.fitted_.applier.computed(examples)[0]
        return logits

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        tags.target_tags.required = True
        return tags


def _examples(X: Any, targets: Sequence[Any], where: str) -> list[Example]:
    """Texts or pairs of texts, and their targets."""
    texts = texts_of(X)
    check_consistent_length(texts, targets)
    refuse_empty(texts)
    refuse_blank(texts)
    pairs = isinstance(texts[0], tuple)
    return [
        Example(text[0] if pairs else text, text[1] if pairs else None, target, f"{where}[{row}]")
        for row, (text, target) in enumerate(zip(texts, targets, strict=True))
    ]


def _seed(random_state: Any) -> Any:
    """The seed, or one drawn as scikit-learn would draw it."""
    if random_state is None or isinstance(random_state, np.random.RandomState):
        return int(check_random_state(random_state).randint(2**31))
    return random_state
