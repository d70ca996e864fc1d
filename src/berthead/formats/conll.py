"""CoNLL columns: a line a token, its tag in a column, a blank line after each sentence; CoNLL-U too."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from berthead.errors import DataError, shown
from berthead.formats.format import Content, Format, Source
from berthead.records import Row

_DOCUMENT = re.compile(r"-DOCSTART-(\s|$)")
_GAP = re.compile("[ \t]+")  # not \s: a token may hold a no-break space
_COMMENT = re.compile("#[ \t]")
_TAG = re.compile("O|[BIESLUWM][-_].*")
_COUNTED = re.compile(r"\d+")
_PEEKED = 200
"""Lines of data that are read to find what the columns hold."""
# CoNLL-U, https://universaldependencies.org/format.html: the parts of speech are what is tagged most.
_UNIVERSAL = ("id", "tokens", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")

_Sentence = list[tuple[int, list[str]]]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the lines of a file are split, and what their columns hold.

    Args:
        line: the first line of data.
        tabs: whether tabs divide the columns.
        names: what each column is called in rows, as they stand in the file; None: it only counts the tokens.
    """

    line: int
    tabs: bool
    names: tuple[str | None, ...]

    @property
    def width(self) -> int:
        """The number of columns."""
        return len(self.names)

    @property
    def columns(self) -> list[str]:
        """The keys of a row: tokens and tags before columns that few need."""
        first = [name for name in ("tokens", "tags") if name in self.names]
        return first + [name for name in self.names if name and name not in first]

    @property
    def is_universal(self) -> bool:
        """Whether it is CoNLL-U, where some lines are no words."""
        return "upos" in self.names

    def cells(self, line: str) -> list[str]:
        """The columns of a line."""
        return _cells(line, self.tabs)

    def is_comment(self, line: str, cells: list[str]) -> bool:
        """Whether a line is a comment: it begins so, and is divided otherwise than lines of data."""
        return _COMMENT.match(line) is not None and (len(cells) != self.width or ("\t" in line) > self.tabs)

    def fault(self, cells: list[str]) -> str | None:
        """What is wrong with a line, or None."""
        if len(cells) != self.width:
            count, between = _counted(len(cells)), f" separated by {'tabs' if self.tabs else 'spaces'}"
            wanted = f"expected {self.width}{between if self.width > 1 else ''}, as in line {self.line}"
            fix = "and a blank line behind each sentence"
            return f"has {count} ({', '.join(map(shown, cells))[:60]}); {wanted}, {fix}"
        if "tags" in self.names and not cells[place := self.names.index("tags")]:
            column = "its last column" if place == self.width - 1 else f"its column {place + 1}"
            token = shown(cells[self.names.index("tokens")])[:60]
            return f"{column}, the tag of {token}, is empty; expected a tag, or O for none"
        return None


def conll_rows(name: str, lines: Iterator[str]) -> tuple[list[str], Iterator[Row]]:
    r"""The sentences of a CoNLL file.

    Args:
        name: the file, for locations.
        lines: its lines with their line ends. The first line of data decides how all are split: at tabs if it
            has one, else at runs of spaces. The first sentences decide which column holds the tags.

    Returns:
        The keys of the rows, and the rows: "tokens" from the first column; "tags" from the last, or, if only one other
        column holds tags such as "B-PER", from that one; "column_2" and so on for the others. A first column that
        counts the tokens of each sentence is left out; in CoNLL-U columns have its names, "upos" among them. A
        sentence with an invalid line is a row with an error.

    Raises:
        DataError: there is no line of data.

    Example:
        >>> columns, rows = conll_rows("a.conll", iter(["Rome\tB-LOC\n", "fell\tO\n", "\n", "So\tO\n"]))
        >>> [(row.where, row.values) for row in rows][0]
        ('a.conll:1', {'tokens': ['Rome', 'fell'], 'tags': ['B-LOC', 'O']})
    """
    numbered = enumerate(lines, 1)
    held, layout = _layout(name, numbered)
    rows = (_row(name, layout, sentence) for sentence in _sentences(layout, itertools.chain(held, numbered)))
    return layout.columns, rows


def _layout(name: str, numbered: Iterator[tuple[int, str]]) -> tuple[list[tuple[int, str]], _Layout]:
    """The lines read to find the layout, and the layout."""
    held: list[tuple[int, str]] = []
    first: tuple[int, str] | None = None
    for number, line in numbered:
        held.append((number, line))
        if _ends(line):
            continue
        if not _COMMENT.match(line):
            first = number, line
            break
        first = first or (number, line)  # a comment, or the token "#": the next line tells
    if first is None:
        raise DataError(name, "holds no token", "one token on each line, its tag in the last column", "Check the file.")
    number, line = first
    tabs = "\t" in line
    layout = _Layout(number, tabs, (None,) * len(_cells(line, tabs)))
    held += itertools.islice(numbered, _PEEKED)
    sentences = [[cells for _, cells in one if len(cells) == layout.width] for one in _sentences(layout, iter(held))]
    return held, replace(layout, names=_names([one for one in sentences if one], layout))


def _names(sentences: list[list[list[str]]], layout: _Layout) -> tuple[str | None, ...]:
    """What each column of a file is called, from its first sentences."""
    width = layout.width
    if width == 1:
        return ("tokens",)
    counts = _counts_tokens(sentences)
    if counts and width == len(_UNIVERSAL) and layout.tabs:
        return (None, *_UNIVERSAL[1:])
    token = 1 if counts else 0
    if counts and width == 2:
        return None, "tokens"
    tagged = [place for place in range(width) if _holds_tags([line[place] for one in sentences for line in one])]
    tags = width - 1
    if tagged and (tags not in tagged or (counts and width == 4)):
        tags = tagged[0] if len(tagged) == 1 or counts else tags  # in GermEval's four, the first of two levels
    if tags == token:  # the tags stand first, and the tokens last
        token = width - 1
    names: list[str | None] = [f"column_{number}" for number in range(1, width + 1)]
    names[0] = None if counts else names[0]
    names[token], names[tags] = "tokens", "tags"
    return tuple(names)


def _counts_tokens(sentences: list[list[list[str]]]) -> bool:
    """Whether the first column is 1, 2, 3 in each sentence; in CoNLL-U, other numbers stand between."""
    counted = [[line[0] for line in one if _COUNTED.fullmatch(line[0])] for one in sentences]
    return any(len(one) > 1 for one in counted) and all(
        one == [str(number) for number in range(1, len(one) + 1)] and len(one) * 2 > len(lines)
        for one, lines in zip(counted, sentences, strict=True)
    )


def _holds_tags(cells: list[str]) -> bool:
    """Whether all cells are tags with prefixes, or O, and some have one."""
    return all(_TAG.fullmatch(cell) for cell in cells) and any(cell != "O" for cell in cells)


def _sentences(layout: _Layout, numbered: Iterator[tuple[int, str]]) -> Iterator[_Sentence]:
    """The lines of data of each sentence, numbered and split."""
    sentence: _Sentence = []
    for number, line in numbered:
        if not _ends(line):
            cells = layout.cells(line)
            # In CoNLL-U "1-2" is a written word of several, and "1.1" a word that is not written.
            beside = layout.is_universal and not _COUNTED.fullmatch(cells[0]) and len(cells) == layout.width
            if not layout.is_comment(line, cells) and not beside:
                sentence.append((number, cells))
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _row(name: str, layout: _Layout, sentence: _Sentence) -> Row:
    place = layout.names.index("tokens")
    for number, cells in sentence:
        if fault := layout.fault(cells):
            return Row({"tokens": [line[min(place, len(line) - 1)] for _, line in sentence]}, f"{name}:{number}", fault)
    columns = dict(zip(layout.names, ([*column] for column in zip(*(line for _, line in sentence), strict=True)),
                       strict=True))  # fmt: skip
    return Row({key: columns[key] for key in layout.columns}, f"{name}:{sentence[0][0]}")


def _cells(line: str, tabs: bool) -> list[str]:
    if not tabs:
        return _GAP.split(line.strip(" \t\r\n"))
    # Data by characters has the token " "; behind it spaces mean nothing.
    token, *others = line.rstrip("\r\n").split("\t")
    return [token, *(cell.strip(" ") for cell in others)]


def _ends(line: str) -> bool:
    """Whether a sentence ends here: at a blank line, or where a document starts."""
    return not line.strip() or _DOCUMENT.match(line) is not None


def _counted(number: int) -> str:
    return f"{number} column{'s' * (number != 1)}"


def _read(source: Source) -> Content:
    return Content(*conll_rows(source.name, source.lines))


# There is no other text format of rows that .txt could be. Header lines are missing, so that no stream is taken for it.
CONLL = Format("conll", _read, (".conll", ".conllu", ".bio", ".iob", ".iob2", ".bioes", ".annotated", ".txt"))
