"""The tokens of a text with their positions, and the words that they belong to."""

from __future__ import annotations

import string
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np

from berthead.records import IntArray

_ASCII_PUNCTUATION = frozenset(string.punctuation)
_CJK = (("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0002ebef"))


@dataclass(frozen=True, slots=True)
class Pieces:
    """A text's tokens without the special ones, and their positions in the text.

    Args:
        ids: token numbers [tokens].
        starts: the first character of each token, int64 [tokens].
        ends: the character after each token's last, int64 [tokens].
        words: the number of each token's word, int64 [tokens], never falling.
    """

    ids: list[int]
    starts: IntArray
    ends: IntArray
    words: IntArray


def pieces_of(encoding: Any) -> Pieces:
    """The tokens of an encoding of `tokenizers`."""
    words = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)
    places = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    return Pieces(encoding.ids, places[:, 0], places[:, 1], words)


def by_words(pieces: Pieces, text: str) -> Pieces:
    """The same tokens without their leading space, and with punctuation and CJK as separate words."""
    starts, ends, words = pieces.starts.tolist(), pieces.ends.tolist(), []
    word, known, place = -1, None, -1
    for number, (first, last) in enumerate(zip(starts, ends, strict=True)):
        start = last - len(text[first:last].lstrip())
        end = start + len(text[start:last].rstrip())
        # Tokens of single bytes share the place of their character. A token of space begins a word, it ends none.
        apart = start == end or (
            start != place and (_stands_alone(text[start : start + 1]) or _stands_alone(text[start - 1 : start]))
        )
        if pieces.words[number] != known or apart:
            word += 1
        known, place = pieces.words[number], start
        starts[number], ends[number] = start, end
        words.append(word)
    return Pieces(pieces.ids, *(np.array(values, dtype=np.int64) for values in (starts, ends, words)))


def _stands_alone(letter: str) -> bool:
    """Whether a character is a word by itself, as in BERT."""
    if letter.isascii():
        return letter in _ASCII_PUNCTUATION and letter != ""
    return unicodedata.category(letter).startswith("P") or any(first <= letter <= last for first, last in _CJK)
