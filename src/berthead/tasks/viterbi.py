"""The best path through the tags of words, and which tag may follow which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from berthead.data.tags import OUTSIDE, is_prefixed, parts_of
from berthead.records import IntArray

BoolArray = NDArray[np.bool_]
Scores = NDArray[np.floating[Any]]


def allowed(tags: Sequence[str]) -> tuple[BoolArray, BoolArray]:
    """Which tag may come first, and which may follow which.

    Args:
        tags: the k distinct tags: BIO or plain.

    Returns:
        Whether a tag may come first, [k]; whether a tag (column) may follow another (row), [k, k]. I-X follows only
        B-X and I-X; plain tags have no rules.

    Example:
        >>> start, step = allowed(["O", "B-PER", "I-PER"])
        >>> start.tolist(), step[:, 2].tolist()
        ([True, True, False], [False, True, True])
    """
    parts = [parts_of(tag) if is_prefixed(tag) else (OUTSIDE, "") for tag in tags]
    start = np.array([letter != "I" for letter, _ in parts], dtype=np.bool_)
    same = np.array([[left == right for _, right in parts] for _, left in parts], dtype=np.bool_)
    return start, start[None, :] | same.reshape(len(tags), len(tags))


def viterbi(emissions: Scores, start: Scores, step: Scores, end: Scores) -> IntArray:
    """The best path through a row's tags: the one with the highest sum of scores (Viterbi 1967).

    Args:
        emissions: score of each tag at each word, [n, k]; -inf: impossible, as in the other three.
        start: score of each tag as the first, [k].
        step: score of a tag (column) after another (row), [k, k].
        end: score of each tag as the last, [k].

    Returns:
        Tag numbers, int64 [n]. Of equal paths, the one with the lower number at the last word where they differ; if all
        paths are impossible, the numbers are arbitrary.

    Example:
        >>> start, step = allowed(["O", "B-PER", "I-PER"])
        >>> rules = [np.where(rule, 0, -np.inf) for rule in (start, step)]
        >>> viterbi(np.array([[2.0, 0.0, 3.0], [0.0, 1.0, 2.0]]), *rules, np.zeros(3)).tolist()
        [0, 1]
    """
    words, tags = emissions.shape
    path = np.zeros(words, dtype=np.int64)
    if not words:
        return path
    came_from = np.zeros((words, tags), dtype=np.int64)
    scores = start.astype(np.float64) + emissions[0]
    every = np.arange(tags)
    for word in range(1, words):
        sums = scores[:, None] + step
        came_from[word] = sums.argmax(0)
        scores = sums[came_from[word], every] + emissions[word]
    path[-1] = (scores + end).argmax()
    for word in range(words - 1, 0, -1):
        path[word - 1] = came_from[word, path[word]]
    return path
