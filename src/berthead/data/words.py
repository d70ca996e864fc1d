"""Tables of a word a row, read as rows of a sentence: words, tags and other columns become lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from berthead.data.column_names import find_column, same_name
from berthead.data.forms import FORMS
from berthead.data.labels import is_blank, plain
from berthead.data.lists import list_of
from berthead.errors import DataError, shown
from berthead.records import Row

PEEKED = 50
"""Rows that are looked at to tell words from lists and texts."""
MOST_WORDS = 1_000_000
"""The most words of a sentence; a longer one would fill the memory."""

# What the column that divides the words is called, without blanks and lines between: `Sentence #`, `sentence_id`.
_SENTENCES = re.compile("sent(ence)?(#|id|idx|index|no|nr|num|number)|sentence")
_SINGULAR, _PLURAL = ("word", "token"), ("words", "tokens")
_ALLOWED = 'a column such as "Sentence #" or "sentence_id", filled where a sentence begins or in each of its rows'


@dataclass(frozen=True, slots=True)
class WordTable:
    """Which columns of a table hold a word, its tag, and the sentence.

    Args:
        sentence: the column of the sentence: filled where one begins, or in each row.
        word: the column of the word.
        tag: the column of the tag; None: there is none, or it is not read.
    """

    sentence: str
    word: str
    tag: str | None = None

    @classmethod
    def find(
        cls, form: str, wanted: Mapping[str, Any], names: Sequence[str], peek: Callable[[int], Sequence[Row]],
        where: str, *, label: bool = True,
    ) -> Self | None:  # fmt: skip
        """The columns of a table, if it holds a word a row.

        Args:
            form: a key of `FORMS`; only forms of words have such tables.
            wanted: `text` and `label` to the given column, None: the usual names are tried.
            names: the table's columns.
            peek: gives the first rows, which are still read afterwards.
            where: the table, for errors.
            label: whether tags are read.

        Returns:
            The columns; None: the rows hold something else, such as lists of words.

        Raises:
            DataError: there is a word a row, and no column says where a sentence begins; or the rows of this form need
                more than words and tags.
        """
        word = _word_column(form, wanted.get("text"), names)
        if word is None:
            return None
        first = peek(PEEKED)
        sentence = next((name for name in names if name != word and _SENTENCES.fullmatch(_bare(name))), None)
        tag = _tag_column(form, wanted.get("label"), names, where) if label else None
        cells = [row.values.get(name) for row in first if not row.error for name in (word, tag) if name]
        if any(list_of(cell) is not None or isinstance(cell, dict) for cell in cells):
            return None
        is_usual = _bare(word) in (*_SINGULAR, *_PLURAL)
        are_words = _are_single_words([row.values.get(word) for row in first])
        if sentence is None:
            if is_usual and are_words:
                saw = f'holds a word in each row of "{word}", and no column says where a sentence begins'
                raise DataError(where, saw, _ALLOWED, "Name it so, or write each sentence as a list of words.")
            return None
        is_named = _bare(word) in _SINGULAR and _bare(sentence) != "sentence"
        if not (is_named or ((is_usual or are_words) and _goes_on([row.values.get(sentence) for row in first]))):
            return None
        if FORMS[form].intent and label:
            allowed = "a row for each sentence: lists of words and of tags, and a label"
            raise DataError(where, f'holds a word in each row of "{word}"', allowed, "Write it as JSON Lines.")
        return cls(sentence, word, tag)

    @property
    def note(self) -> str:
        """How the table is read, for the user."""
        return f'a word in each row of "{self.word}": the rows of a sentence, by "{self.sentence}", are read as one'

    def sentences(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows of each sentence as one.

        Args:
            rows: in their order. A row whose sentence is blank or the same as before goes on with it.

        Yields:
            A row a sentence: its name, and the list of each other column. A sentence with a bad row, a blank word or
            tag, or a name that an earlier one had, is a row with an error.
        """
        known: set[Any] = set()
        held: list[Row] = []
        fault, name, has_blank = "", None, False
        for row in rows:
            given = plain(row.values.get(self.sentence))
            blank = is_blank(given)
            if not held or not (blank or (given == name and not has_blank)):
                if held:
                    yield self._sentence(held, fault)
                held, name, has_blank = [], given, False
                fault = "is blank before the first sentence; expected its name" if blank else ""
                if not blank and given in known:
                    fault = f"is {shown(given)} again; expected the words of a sentence in successive rows"
                known.add(given)
            has_blank |= blank
            held.append(row)
            if len(held) > MOST_WORDS:
                fault = f"is {shown(name)} in over {MOST_WORDS:,} rows; expected the words of one sentence"
                held.pop()
        if held:
            yield self._sentence(held, fault)

    def _sentence(self, rows: Sequence[Row], fault: str) -> Row:
        """The rows of a sentence as one; `fault` is what is wrong with its name."""
        columns = [name for name in dict.fromkeys(name for row in rows for name in row.values) if name != self.sentence]
        values: dict[str, Any] = {self.sentence: rows[0].values.get(self.sentence)}
        values |= {name: [plain(row.values.get(name)) for row in rows] for name in columns}
        values[self.word] = [_as_text(word) for word in values.get(self.word, [])]
        if fault:
            return Row(values, rows[0].where, f'column "{self.sentence}" {fault}')
        for row in rows:
            if error := row.error or self._blank(row):
                return Row(values, row.where, error)
        return Row(values, rows[0].where)

    def _blank(self, row: Row) -> str | None:
        """Which cell of a row is blank and may not be, or None."""
        word = row.values.get(self.word)
        if is_blank(word):
            return f'column "{self.word}" is blank; expected a word'
        if self.tag is not None and is_blank(row.values.get(self.tag)):
            return f'column "{self.tag}", the tag of {shown(plain(word))[:60]}, is blank; expected a tag, or O for none'
        return None


def _word_column(form: str, wanted: str | None, names: Sequence[str]) -> str | None:
    """The column that may hold words: the given one, or one with the usual name if no other column holds texts."""
    kind = FORMS[form]
    if not kind.reads_words:
        return None
    if wanted:
        return same_name(wanted, names)
    found = [name for usual in (*_SINGULAR, *_PLURAL) for name in names if _bare(name) == usual]
    texts = [name for usual in kind.text for name in names if _bare(name) == usual]
    others = [name for name in texts if name not in found and not _SENTENCES.fullmatch(_bare(name))]
    return found[0] if found and not others else None


def _tag_column(form: str, wanted: str | None, names: Sequence[str], where: str) -> str | None:
    try:
        return find_column("label", wanted, names, where, FORMS[form].label)
    except DataError:  # whoever reads the tags says so
        return None


def _bare(name: str) -> str:
    return re.sub("[ _-]", "", name).casefold()


def _goes_on(sentences: Sequence[Any]) -> bool:
    """Whether some row belongs to the sentence of the row before."""
    cells = [plain(cell) for cell in sentences]
    return any(is_blank(cell) or cell == before for before, cell in pairwise(cells))


def _are_single_words(cells: Sequence[Any]) -> bool:
    words = [cell for cell in cells if not is_blank(cell)]
    return len(words) > 1 and all(len(str(word).split()) == 1 for word in words)


def _as_text(word: Any) -> Any:
    """A number as its text, in formats with types; anything else as it is."""
    return str(word) if isinstance(word, int | float) and not isinstance(word, bool) else word
