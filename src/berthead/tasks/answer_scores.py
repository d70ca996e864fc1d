"""Exact match and F1 of extracted answers, as in SQuAD, and the threshold for no answer."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from berthead.errors import counted

_ARTICLES = re.compile(r"\b(a|an|the)\b")
# ASCII only: so it stands in the published script, and other dashes and quotes stay
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """A text for comparing answers: lower case, without ASCII punctuation, articles and extra white space.

    Args:
        text: an answer.

    Returns:
        The words with one space between them. Punctuation goes before articles, so "a-b" is "ab".

    Example:
        >>> normalised("The  U.S. Army's, a base")
        'us armys base'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(answer: str, gold_texts: Sequence[str]) -> float:
    """Whether an answer is one of the gold ones, after `normalised`.

    Args:
        answer: the answer; "" for none.
        gold_texts: the right answers; none, or only blank ones: there is no answer, and "" is right.

    Returns:
        1.0 or 0.0.

    Example:
        >>> exact("the cat", ["Cat.", "a dog"])
        1.0
    """
    words = normalised(answer)
    return float(any(words == gold for gold in _golds(gold_texts)))


def f1(answer: str, gold_texts: Sequence[str]) -> float:
    """The share of words that an answer has in common with the gold answer that fits best (Rajpurkar et al. 2016).

    Args:
        answer: the answer; "" for none.
        gold_texts: the right answers; none, or only blank ones: there is no answer, and "" is right (Rajpurkar et al.
            2018).

    Returns:
        From 0 to 1: the harmonic mean of precision and recall over words, each counted as often as it stands there.

    Example:
        >>> f1("black cat", ["the cat", "dog"])
        0.6666666666666666
    """
    words = normalised(answer).split()
    return max(_overlap(words, gold.split()) for gold in _golds(gold_texts))


def answer_scores(answers: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, float | int]:
    """The measures of SQuAD 2.0, from 0 to 1.

    Args:
        answers: an answer a row; "" for none.
        golds: the right answers of each row; empty, or holding nothing but blanks, where the row has none.

    Returns:
        `exact` and `f1`, means over all rows. Where some rows have no answer, also `no_answer_accuracy` (how many of
        them got none), `rows_without_answer` (how many they are), and, unless no row has one, `has_answer_exact` and
        `has_answer_f1`.

    Raises:
        ValueError: answers and golds differ in length, or there is no row.

    Example:
        >>> scores = answer_scores(["cat", ""], [["the cat"], []])
        >>> scores["exact"], scores["no_answer_accuracy"]
        (1.0, 1.0)
    """
    if len(answers) != len(golds):
        raise ValueError(f"got {counted(len(answers), 'answer')}; expected {len(golds)}, one for each row")
    if not answers:
        raise ValueError("got no rows; expected at least one to score")
    exacts = np.array([exact(answer, gold) for answer, gold in zip(answers, golds, strict=True)])
    shares = np.array([f1(answer, gold) for answer, gold in zip(answers, golds, strict=True)])
    # the published script asks whether answers are listed at all: a gold answer of punctuation only is one
    has_answer = np.array([any(text.strip() for text in gold) for gold in golds])
    scores: dict[str, float | int] = {"exact": float(exacts.mean()), "f1": float(shares.mean())}
    if has_answer.all():
        return scores
    if has_answer.any():
        scores |= {"has_answer_exact": float(exacts[has_answer].mean())}
        scores |= {"has_answer_f1": float(shares[has_answer].mean())}
    scores["no_answer_accuracy"] = float(exacts[~has_answer].mean())
    scores["rows_without_answer"] = int((~has_answer).sum())
    return scores


def best_threshold(margins: Sequence[float], right_if_answered: Sequence[float], has_answer: Sequence[bool]) -> float:
    """The no-answer threshold with the highest mean F1: a question is answered where its margin reaches it.

    Args:
        margins: score of the best span minus the score of no answer, for each question. Infinite ones say that a
            question is always answered, or never.
        right_if_answered: F1 of the best span, from 0 to 1.
        has_answer: whether the question has an answer; one without is right if it is not answered.

    Returns:
        A finite threshold, half-way between two margins or just beyond all of them. Of equally good ones it is the one
        nearest to 0, which is where answering and not answering score the same; 0 where no margin is finite.

    Raises:
        ValueError: the arguments differ in length.

    Example:
        >>> best_threshold([3.0, 1.0, -2.0], [1.0, 0.0, 0.0], [True, False, False])
        2.0
    """
    if not len(margins) == len(right_if_answered) == len(has_answer):
        raise ValueError(
            "margins, right_if_answered and has_answer differ in length; expected one value for each question"
        )
    order = np.argsort(np.asarray(margins, dtype=np.float64), kind="stable")
    ordered = np.asarray(margins, dtype=np.float64)[order]
    cuts = _cuts(np.unique(ordered[np.isfinite(ordered)]))
    # what each question gains by being answered, summed from the highest margin down
    gains = np.asarray(right_if_answered, dtype=np.float64) - ~np.asarray(has_answer, dtype=np.bool_)
    sums = np.append(np.cumsum(gains[order][::-1])[::-1], 0.0)
    # rounded, so that the order of additions does not decide between equals
    totals = np.round(sums[np.searchsorted(ordered, cuts)], 9)
    best = cuts[totals == totals.max()]
    return float(best[np.abs(best).argmin()])


def _golds(texts: Sequence[str]) -> list[str]:
    """The gold answers, normalised; blank ones count only where there are no others."""
    return [words for words in map(normalised, texts) if words] or [""]


def _overlap(words: Sequence[str], gold: Sequence[str]) -> float:
    if not words or not gold:
        return float(words == gold)
    common = (Counter(words) & Counter(gold)).total()
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def _cuts(margins: np.ndarray) -> np.ndarray:
    """All distinguishable thresholds, for distinct finite margins in ascending order."""
    if not len(margins):
        return np.zeros(1)
    # half of each first: the sum of two large ones may be infinite
    halves = margins[:-1] / 2 + margins[1:] / 2
    # between neighbouring floats there is nothing, and the lower one must stay below
    between = np.where(halves > margins[:-1], halves, margins[1:])
    # not the very next float: a margin computed elsewhere may differ in its last digits
    low, high = margins[0], margins[-1]
    return np.concatenate([[low - max(1.0, abs(low)) / 1000], between, [high + max(1.0, abs(high)) / 1000]])
