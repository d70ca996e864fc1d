"""Predict(BERT(x)): fit a prediction network on a pre-trained BERT, and apply the fitted function."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from berthead.errors import (
        BertheadError,
        DataError,
        GateError,
        Interrupted,
        MachineError,
        ModelError,
        OutputError,
        UsageError,
    )
    from berthead.estimators import MultipleChoice, SequenceLabeler, SpanExtractor, TextClassifier, TextRegressor
    from berthead.fitted import Fitted, load
    from berthead.function.parameters import Parameters
    from berthead.records import Prediction, Span
    from berthead.verbs.bench import Bench, bench
    from berthead.verbs.compare import Comparison, compare
    from berthead.verbs.fit import fit
    from berthead.verbs.join import join
    from berthead.verbs.soup import soup

_HOME = {
    "Fitted": "fitted",
    "fit": "verbs.fit",
    "join": "verbs.join",
    "load": "fitted",
    "soup": "verbs.soup",
    "Bench": "verbs.bench",
    "bench": "verbs.bench",
    "Comparison": "verbs.compare",
    "compare": "verbs.compare",
    "MultipleChoice": "estimators",
    "SequenceLabeler": "estimators",
    "SpanExtractor": "estimators",
    "TextClassifier": "estimators",
    "TextRegressor": "estimators",
    "Parameters": "function.parameters",
    "Prediction": "records",
    "Span": "records",
    "BertheadError": "errors",
    "DataError": "errors",
    "GateError": "errors",
    "Interrupted": "errors",
    "MachineError": "errors",
    "ModelError": "errors",
    "OutputError": "errors",
    "UsageError": "errors",
}

__all__ = [
    "Bench",
    "BertheadError",
    "Comparison",
    "DataError",
    "Fitted",
    "GateError",
    "Interrupted",
    "MachineError",
    "ModelError",
    "MultipleChoice",
    "OutputError",
    "Parameters",
    "Prediction",
    "SequenceLabeler",
    "Span",
    "SpanExtractor",
    "TextClassifier",
    "TextRegressor",
    "UsageError",
    "bench",
    "compare",
    "fit",
    "join",
    "load",
    "soup",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import berthead` does not import torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'berthead' has no attribute {name!r}")
    return getattr(import_module(f"berthead.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
