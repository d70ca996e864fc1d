"""Long inputs as overlapping windows: the rows that the encoder reads, and the units that get an answer."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from itertools import pairwise
from typing import Any, Literal, TypeVar

import numpy as np

from berthead.records import Example, IntArray
from berthead.text.tokenizer import Encoded, Tokenizer

OnLong = Literal["window", "truncate", "error"]
_NOTHING = "has no tokens: the tokenizer drops all its characters; expected a text that it knows"
_NO_TOKENS = Encoded(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), 0, False)


@dataclass(frozen=True, slots=True)
class LengthPolicy:
    """How long inputs are handled, the same in fit and predict.

    Args:
        max_tokens: longest row in tokens, special ones included.
        on_long: `window` (overlapping windows), `truncate` (the end is cut, and counted) or `error`.
        stride: tokens that neighbouring windows share, at least; None: a quarter of a window for tokens, 0 for rows.
    """

    max_tokens: int
    on_long: OnLong = "window"
    stride: int | None = None

    def shared(self, room: int, *, level: str) -> int:
        """Tokens that windows of this size share; half the size if a long question leaves no more than the stride."""
        if self.stride is None:
            return room // 4 if level == "token" else 0
        return self.stride if self.stride < room else room // 2


@dataclass(frozen=True, slots=True)
class Units:
    """The units of an example, each with its own answer: words, or tokens of a context.

    Args:
        window: in which window each unit is read, int64 [units], never falling.
        token: its index in that window's row, int64 [units].
        start: its first character in the user's text, int64 [all units]; -1: the unit stands for the whole window.
            If the end was cut, this includes units that were not read.
        end: the character after its last, int64 [all units].
    """

    window: IntArray
    token: IntArray
    start: IntArray
    end: IntArray


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """An example as the encoder reads it.

    Args:
        rows: its windows, one row of tokens each (those of all choices of a question).
        n_tokens: tokens of the whole example, special ones included.
        truncated: whether tokens were not read.
        groups: the choice that each row belongs to, from 0; None: all rows are one text.
        units: what gets an answer; None: the whole example, or each choice.
        error: why it cannot be read, or None.
    """

    rows: tuple[Encoded, ...]
    n_tokens: int
    truncated: bool
    groups: tuple[int, ...] | None = None
    units: Units | None = None
    error: str | None = None

    @property
    def n_units(self) -> int:
        """The number of answers of this example."""
        if self.units is not None:
            return len(self.units.token)
        return 1 if self.groups is None else self.groups[-1] + 1

    @property
    def n_windows(self) -> int:
        """The largest number of windows of one text of the example."""
        return len(self.rows) if self.groups is None else int(np.bincount(self.groups).max())

    def without_rows(self) -> EncodedExample:
        """The same without its tokens, which are needed only once."""
        return replace(self, rows=(_NO_TOKENS,) * len(self.rows))


Read = TypeVar("Read", bound=Callable[..., list[EncodedExample]])


def _without_tokens_is_an_error(read: Read) -> Read:
    """An input with a row of no token at all, not even a special one, gets an error: no encoder reads it."""

    @wraps(read)
    def checked(*args: Any, **kwargs: Any) -> list[EncodedExample]:
        return [
            one if one.error or all(len(row.ids) for row in one.rows) else replace(one, error=_NOTHING)
            for one in read(*args, **kwargs)
        ]

    return checked  # type: ignore[return-value]


def window_starts(length: int, room: int, shared: int) -> list[int]:
    """Where windows begin: as few as possible, evenly spaced, all full.

    Args:
        length: tokens.
        room: the tokens of a window.
        shared: tokens that neighbours share, at least; below `room`.

    Returns:
        The first token of each window.

    Example:
        >>> window_starts(10, room=6, shared=2)
        [0, 4]
    """
    if length <= room:
        return [0]
    count = -(-(length - shared) // (room - shared))
    return [int(place) for place in np.linspace(0, length - room, count)]


def owners(starts: Sequence[int], room: int, places: IntArray) -> IntArray:
    """The window in which each token has most context on its shorter side.

    Args:
        starts: of the windows.
        room: the tokens of a window.
        places: token indices, ascending, int64 [places].

    Returns:
        Window numbers, int64 [places].

    Example:
        >>> owners([0, 4], 6, np.array([3, 4, 5])).tolist()
        [0, 0, 1]
    """
    edges = [(after + before + room) / 2 for before, after in pairwise(starts)]
    return np.searchsorted(np.array(edges), places, side="right").astype(np.int64)


def windows_in_parts(one: EncodedExample, target: np.ndarray, most: int) -> list[tuple[EncodedExample, np.ndarray]]:
    """An input with units and their targets, cut into inputs of at most so many windows.

    Args:
        one: an input with units.
        target: of each unit, [units or more, ...].
        most: the most windows of a part.

    Returns:
        Parts, each with its targets.
    """
    units = one.units
    if units is None or len(one.rows) <= most:
        return [(one, target)]
    parts = []
    for first in range(0, len(one.rows), most):
        start, end = np.searchsorted(units.window, [first, first + most])
        part = Units(
            units.window[start:end] - first, units.token[start:end], units.start[start:end], units.end[start:end]
        )
        parts.append((replace(one, rows=one.rows[first : first + most], units=part), target[start:end]))
    return parts


@_without_tokens_is_an_error
def read_texts(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, policy: LengthPolicy
) -> list[EncodedExample]:
    """Texts or pairs that get one answer each.

    Args:
        tokenizer: the encoder's.
        texts: the first texts.
        pairs: the second ones, as many; or None.
        policy: how long inputs are handled; of a long pair the longer text is read in windows.

    Returns:
        One input a text.
    """
    first = tokenizer.ids(texts)
    second: Sequence[list[int] | None] = tokenizer.ids(pairs) if pairs is not None else [None] * len(first)
    return [_text_input(tokenizer, a, b, policy) for a, b in zip(first, second, strict=True)]


@_without_tokens_is_an_error
def read_choices(tokenizer: Tokenizer, examples: Sequence[Example], policy: LengthPolicy) -> list[EncodedExample]:
    """Questions with choices: each choice is a separate pair.

    Args:
        tokenizer: the encoder's.
        examples: with `choices`; where there is a context as `pair`, it is read first, then question and choice.
        policy: how long inputs are handled.

    Returns:
        One input a question.
    """
    questions = tokenizer.ids([example.text if example.pair is None else example.pair for example in examples])
    seconds = [
        choice if example.pair is None else f"{example.text} {choice}"
        for example in examples
        for choice in example.choices or ()
    ]
    every = iter(tokenizer.ids(seconds))
    found: list[EncodedExample] = []
    for example, question in zip(examples, questions, strict=True):
        pairs = [_text_input(tokenizer, question, next(every), policy) for _ in example.choices or ()]
        found.append(
            EncodedExample(
                tuple(row for pair in pairs for row in pair.rows),
                max(pair.n_tokens for pair in pairs),
                any(pair.truncated for pair in pairs),
                tuple(number for number, pair in enumerate(pairs) for _ in pair.rows),
                error=next((f"choice {n + 1}: {pair.error}" for n, pair in enumerate(pairs) if pair.error), None),
            )
        )
    return found


@_without_tokens_is_an_error
def read_words(
    tokenizer: Tokenizer, examples: Sequence[Example], policy: LengthPolicy, *, whole: bool, by_piece: bool = False
) -> list[EncodedExample]:
    """Texts with an answer for each word: the given words, or those that the tokenizer finds.

    Args:
        tokenizer: the encoder's.
        examples: with `words`, or with a text alone.
        policy: how long inputs are handled.
        whole: each window gets an answer too, before its words.
        by_piece: each token of a text gets an answer, instead of each word.

    Returns:
        One input a text; each word is answered at its first token, in the window in which it has most context.
    """
    texts = [example.text for example in examples if example.words is None]
    given = [example.words for example in examples if example.words is not None]
    pieces, word_ids = iter(tokenizer.pieces(texts)), iter(tokenizer.word_ids(given))
    found: list[EncodedExample] = []
    for example in examples:
        if example.words is None:
            one = next(pieces)
            firsts = np.flatnonzero(np.diff(one.words, prepend=-2)) if len(one.ids) else np.empty(0, dtype=np.int64)
            if by_piece:  # tokens of single bytes share the place of their character, which is one piece
                firsts = np.flatnonzero(np.diff(one.starts, prepend=-1))
            lasts = np.append(firsts[1:], len(one.ids))[: len(firsts)] - 1
            ids, start = one.ids, one.starts[firsts]
            end = whole_characters(example.text, start, one.ends[lasts])
            kept = end > start  # a token of nothing but space is no word
            firsts, start, end = firsts[kept], start[kept], end[kept]
        else:
            tokens = next(word_ids)
            ids = [token for word in tokens for token in word]
            firsts = np.cumsum([0, *map(len, tokens)])[:-1].astype(np.int64)
            lengths = np.array([len(word) for word in example.words], dtype=np.int64)
            start = np.cumsum(lengths + 1) - lengths - 1  # joined by single spaces
            end = start + lengths
        found.append(_word_input(tokenizer, ids, firsts, start, end, policy, whole))
    return found


@_without_tokens_is_an_error
def read_questions(tokenizer: Tokenizer, examples: Sequence[Example], policy: LengthPolicy) -> list[EncodedExample]:
    """Questions with a context; every token of the context can begin or end the answer.

    Args:
        tokenizer: the encoder's.
        examples: the question as text, the context as pair.
        policy: how long contexts are read.

    Returns:
        One input a question; the first unit of each window stands for "no answer here".
    """
    questions = tokenizer.ids([example.text for example in examples])
    contexts = tokenizer.pieces([example.pair or "" for example in examples])
    found: list[EncodedExample] = []
    for example, question, context in zip(examples, questions, contexts, strict=True):
        ends = whole_characters(example.pair or "", context.starts, context.ends)
        room = tokenizer.room(policy.max_tokens, pair=True)
        kept = question[: max(room // 2, room - len(context.ids))]
        length = len(question) + len(context.ids)
        error = _too_long(length, room, policy)
        room -= len(kept)
        starts, cut = _windows(len(context.ids), room, policy, "token")
        before = tokenizer.first_token(pair=True) + len(kept) + tokenizer.gap()
        rows, window, token, start, end = [], [], [], [], []
        for number, first in enumerate(starts):
            part = context.ids[first : first + room]
            rows.append(tokenizer.row(kept, part, length))
            window.append(np.full(len(part) + 1, number))
            token.append(np.concatenate([[0], before + np.arange(len(part))]))
            start.append(np.concatenate([[-1], context.starts[first : first + room]]))
            end.append(np.concatenate([[-1], ends[first : first + room]]))
        units = Units(*(np.concatenate(part).astype(np.int64) for part in (window, token, start, end)))
        found.append(
            EncodedExample(tuple(rows), rows[0].n_tokens, cut or len(kept) < len(question), None, units, error)
        )
    return found


def whole_characters(text: str, starts: IntArray, ends: IntArray) -> IntArray:
    """Ends moved past the combining marks and joiners that the tokenizer dropped after a token.

    Args:
        text: the user's text.
        starts: the first character of each token or word, int64 [n].
        ends: the character after its last, int64 [n].

    Returns:
        int64 [n]; none is moved past the next start.

    Example:
        >>> whole_characters("e\u0301 a", np.array([0, 3]), np.array([1, 4])).tolist()
        [2, 4]
    """
    if text.isascii():
        return ends
    moved = ends.copy()
    limits = np.append(starts[1:], len(text))
    for place, limit in enumerate(limits[: len(ends)]):
        while moved[place] < limit and unicodedata.category(text[moved[place]]) in ("Mn", "Mc", "Me", "Cf"):
            moved[place] += 1
    return moved


def _text_input(
    tokenizer: Tokenizer, first: list[int], second: list[int] | None, policy: LengthPolicy
) -> EncodedExample:
    room = tokenizer.room(policy.max_tokens, pair=second is not None)
    length = len(first) + len(second or ())
    if length <= room:
        row = tokenizer.row(first, second, length)
        return EncodedExample((row,), row.n_tokens, False)
    # One side of a pair stands whole in every window: the shorter one, or its first half of the room.
    slides_first = second is None or len(first) > len(second)
    still = (second or []) if slides_first else first
    kept, moving = still[: room // 2], first if slides_first else (second or [])
    error = _too_long(length, room, policy)
    room -= len(kept)
    starts, cut = _windows(len(moving), room, policy, "row")
    rows = []
    for start in starts:
        part = moving[start : start + room]
        a, b = (part, kept if second is not None else None) if slides_first else (kept, part)
        rows.append(tokenizer.row(a, b, length))
    return EncodedExample(tuple(rows), rows[0].n_tokens, cut or len(kept) < len(still), error=error)


def _word_input(
    tokenizer: Tokenizer, ids: list[int], firsts: IntArray, start: IntArray, end: IntArray, policy: LengthPolicy,
    whole: bool,
) -> EncodedExample:  # fmt: skip
    room = tokenizer.room(policy.max_tokens, pair=False)
    error = _too_long(len(ids), room, policy)
    starts, cut = _windows(len(ids), room, policy, "token")
    rows = tuple(tokenizer.row(ids[first : first + room], None, len(ids)) for first in starts)
    if cut:
        firsts = firsts[firsts < room]
    window = owners(starts, room, firsts)
    token = firsts - np.array(starts)[window] + tokenizer.first_token(pair=False)
    if whole:
        # One more unit for each window, at its first token, before its words.
        places = np.searchsorted(window, np.arange(len(rows)))
        window, token = np.insert(window, places, np.arange(len(rows))), np.insert(token, places, 0)
        start, end = np.insert(start, places, -1), np.insert(end, places, -1)
    units = Units(*(np.asarray(part, dtype=np.int64) for part in (window, token, start, end)))
    return EncodedExample(rows, rows[0].n_tokens, cut, None, units, error)


def _too_long(length: int, room: int, policy: LengthPolicy) -> str | None:
    """Why an input of so many tokens cannot be read at all, or None."""
    if length <= room or policy.on_long != "error":
        return None
    return f"is too long: {length} tokens where {room} fit (--on-long error)"


def _windows(length: int, room: int, policy: LengthPolicy, level: str) -> tuple[list[int], bool]:
    """Where the windows of a text begin, and whether its end is cut."""
    if length <= room:
        return [0], False
    if policy.on_long != "window" or room < 1:
        return [0], True
    return window_starts(length, room, policy.shared(room, level=level)), False
