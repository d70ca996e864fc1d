"""A linear-chain conditional random field over the words of a text.

Source: Lafferty et al. 2001, "Conditional Random Fields: Probabilistic Models for Segmenting and Labeling Sequence
Data".
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from berthead.records import FloatArray, IntArray
from berthead.tasks.arrays import softmax
from berthead.tasks.viterbi import allowed, viterbi

# Added to the score of a step that no tag sequence may take.
IMPOSSIBLE = -1e4


class Scored(Protocol):
    """A head with the scores of a conditional random field, as tensors or as arrays.

    Attributes:
        crf: whether it has them.
        first: of the first tag, [tags].
        last: of the last tag, [tags].
        step: of a tag (column) after another (row), [tags, tags].
    """

    crf: bool
    first: Any
    last: Any
    step: Any


class Field(NamedTuple):
    """The scores of the field, with very low scores for forbidden transitions.

    Args:
        first: of the first tag, [tags].
        last: of the last tag, [tags].
        step: of a tag (column) after another (row), [tags, tags].
    """

    first: FloatArray
    last: FloatArray
    step: FloatArray

    @classmethod
    def of(cls, head: Scored, tags: tuple[str, ...]) -> Field:
        """The current scores of a head."""
        first, step = (~part * np.float32(IMPOSSIBLE) for part in rules(tags))
        return cls(as_array(head.first) + first, as_array(head.last), as_array(head.step) + step)

    def path(self, logits: FloatArray) -> tuple[IntArray, FloatArray]:
        """The likeliest tags of a text's words, int64 [words], and their probabilities, [words]."""
        path = viterbi(logits, self.first, self.step, self.last)
        return path, marginals(logits, self.first, self.step, self.last)[np.arange(len(path)), path]


def as_array(values: Any) -> FloatArray:
    """A tensor on any device, or an array, as a float32 array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float32)


@lru_cache(maxsize=64)
def rules(tags: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """`tags.allowed` of a task's tags, cached because every text needs it."""
    return allowed(tags)


def marginals(emissions: FloatArray, start: FloatArray, step: FloatArray, end: FloatArray) -> FloatArray:
    """The probability of each tag at each word in a linear-chain conditional random field.

    Args:
        emissions: scores of tags, [words, tags].
        start: of the first tag, [tags].
        step: of a tag after another, [tags, tags].
        end: of the last tag, [tags].

    Returns:
        float [words, tags]; each row sums to 1.
    """
    forward, backward = (np.empty(emissions.shape) for _ in range(2))
    forward[0], backward[-1] = start + emissions[0], end
    for place in range(1, len(emissions)):
        forward[place] = np.logaddexp.reduce(forward[place - 1][:, None] + step, 0) + emissions[place]
    for place in range(len(emissions) - 2, -1, -1):
        backward[place] = np.logaddexp.reduce(step + emissions[place + 1] + backward[place + 1], 1)
    return softmax(forward + backward)
