"""The frozen records that modules exchange: numpy and plain Python, no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Label = str | int | float | bool
"""A label keeps the type it had in the user's data: "0" and 0 are two labels."""

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file, unconverted.

    Args:
        values: column name to value; text formats give `str`, JSON Lines and Parquet keep their types.
        where: `file:line` (or `file:row N` if rows are not lines).
        error: why the row cannot be read, or None.
    """

    values: dict[str, Any]
    where: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One input of the function, and its target if there is one.

    Args:
        text: the first text; the question; the tokens joined by spaces.
        pair: the second text of a pair, the context of a question, or None.
        target: the correct answer, in the user's own terms, or None.
        where: `file:line` or `row N`.
        error: why this row has no answer, or None.
        words: the tokens, if the user gave tokens, or None.
        choices: the choices of a question, or None.
        note: what was corrected in this row, or None.
    """

    text: str
    pair: str | None = None
    target: Any = None
    where: str = ""
    error: str | None = None
    words: tuple[str, ...] | None = None
    choices: tuple[str, ...] | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows laid end to end, without padding.

    Args:
        ids: token numbers, int64 [tokens].
        segments: token types, int64 [tokens].
        positions: position in the row from 0, int64 [tokens].
        starts: where each row starts, and the end of the last, int64 [rows + 1].
        row: which row of the caller's input each row is, int64 [rows].
    """

    ids: IntArray
    segments: IntArray
    positions: IntArray
    starts: IntArray
    row: IntArray

    @property
    def lengths(self) -> IntArray:
        """Tokens in each row, int64 [rows]."""
        return np.diff(self.starts)


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the user's own text: `text[start:end]` of the input is `text`.

    Args:
        start: its first character, from 0.
        end: the character after its last.
        text: the characters.
        label: what it is, or None: an answer to a question.
        score: its probability.
        window: the window that decided, from 0.
    """

    start: int
    end: int
    text: str
    label: Label | None = None
    score: float | None = None
    window: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Prediction:
    """The function's answer for one input, in plain Python types.

    Args:
        answer: a label, a list of labels, a number, a dict of target to number (regress with several), a list of spans
            (tag), a text (span; empty: the context holds no answer), or a choice; None if there is an error.
        score: probability of the answer (of the surest label for multilabel); None for regress and tag.
        probabilities: label or number of the choice to probability; None if there are no labels.
        n_tokens: tokens of the whole input, special tokens included.
        truncated: whether tokens were cut off.
        n_windows: windows the input was read in.
        window: the window that decided, from 0; None if each span has its own.
        spans: the entities (tag, joint) or the best answers, best first (span); None for other tasks.
        tags: one for each token if tokens were given (tag, joint), else None.
        error: why there is no answer, or None.
        where: the input's `file:line` or `row N`.
    """

    answer: Any
    score: float | None = None
    probabilities: dict[Label, float] | None = None
    n_tokens: int = 0
    truncated: bool = False
    n_windows: int = 1
    window: int | None = 0
    spans: list[Span] | None = None
    tags: list[str] | None = None
    error: str | None = None
    where: str = ""

    def __repr__(self) -> str:
        """The answer, or why there is none; probabilities, spans and tokens are left out."""
        if self.error is not None:
            return f"Prediction(error={self.error!r}{f', where={self.where!r}' if self.where else ''})"
        score = "" if self.score is None else f", score={self.score:.4g}"
        answer = repr(self.answer)
        return f"Prediction({answer if len(answer) <= 200 else answer[:199] + '…'}{score})"

    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON-serialisable dict; probabilities as a list, since JSON's keys know text only."""
        record = asdict(self)
        if self.probabilities is not None:
            pairs = self.probabilities.items()
            record["probabilities"] = [{"label": label, "probability": share} for label, share in pairs]
        return record
