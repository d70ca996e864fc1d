"""scikit-learn estimators: the same fit and the same function behind fit, predict and score."""

from berthead.estimators.structured import MultipleChoice, SequenceLabeler, SpanExtractor
from berthead.estimators.text import TextClassifier, TextRegressor

__all__ = ["MultipleChoice", "SequenceLabeler", "SpanExtractor", "TextClassifier", "TextRegressor"]
