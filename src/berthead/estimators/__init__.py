"""scikit-learn estimators: fit, predict and score use the same fit and the same function."""

from berthead.estimators.structured import MultipleChoice, SequenceLabeler, SpanExtractor
from berthead.estimators.text import TextClassifier, TextRegressor

__all__ = ["MultipleChoice", "SequenceLabeler", "SpanExtractor", "TextClassifier", "TextRegressor"]
