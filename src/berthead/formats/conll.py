"""CoNLL columns: a line a token, its tag in the last column, a blank line after each sentence."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from berthead.errors import DataError, shown
from berthead.formats.format import Content, Format, Source
from berthead.records import Row

_DOCUMENT = re.compile(r"-DOCSTART-(\s|$)")
_GAP = re.compile("[ \t]+")  # not \s: a token may hold a no-break space

_Sentence = list[tuple[int, list[str]]]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the lines of a file are split, taken from its first line of data."""

    line: int
    tabs: bool
    width: int

    @property
    def columns(self) -> list[str]:
        """The keys of a row."""
        between = (f"column_{number}" for number in range(2, self.width))
        return ["tokens", "tags", *between] if self.width > 1 else ["tokens"]

    def cells(self, line: str) -> list[str]:
        """The columns of a line."""
        return _cells(line, self.tabs)

    def fault(self, cells: list[str]) -> str | None:
        """What is wrong with a line, or None."""
        if len(cells) != self.width:
            count, between = _counted(len(cells)), f" separated by {'tabs' if self.tabs else 'spaces'}"
            wanted = f"expected {self.width}{between if self.width > 1 else ''}, as in line {self.line}"
            fix = "and a blank line behind each sentence"
            return f"has {count} ({', '.join(map(shown, cells))[:60]}); {wanted}, {fix}"
        if self.width > 1 and not cells[-1]:
            return f"its last column, the tag of {shown(cells[0])[:60]}, is empty; expected a tag, or O for none"
        return None


def conll_rows(name: str, lines: Iterator[str]) -> tuple[list[str], Iterator[Row]]:
    r"""The sentences of a CoNLL file.

    Args:
        name: the file, for locations.
        lines: its lines with their line ends. The first line of data decides how all are split: at tabs if it
            has one, else at runs of spaces.

    Returns:
        The keys of the rows, and the rows: "tokens" from the first column; "tags" from the last, unless there is only
        one; "column_2" and so on for those between. A sentence with an invalid line is a row with an error.

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
        if not line.startswith("# "):
            first = number, line
            break
        first = first or (number, line)  # a comment, or the token "#": the next line tells
    if first is None:
        raise DataError(name, "holds no token", "one token on each line, its tag in the last column", "Check the file.")
    number, line = first
    tabs = "\t" in line
    return held, _Layout(number, tabs, len(_cells(line, tabs)))


def _sentences(layout: _Layout, numbered: Iterator[tuple[int, str]]) -> Iterator[_Sentence]:
    """The lines of data of each sentence, numbered and split."""
    sentence: _Sentence = []
    for number, line in numbered:
        if not _ends(line):
            cells = layout.cells(line)
            if len(cells) == layout.width or not line.startswith("# "):
                sentence.append((number, cells))
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _row(name: str, layout: _Layout, sentence: _Sentence) -> Row:
    tokens = [cells[0] for _, cells in sentence]
    for number, cells in sentence:
        if fault := layout.fault(cells):
            return Row({"tokens": tokens}, f"{name}:{number}", fault)
    first, *others = (list(column) for column in zip(*(cells for _, cells in sentence), strict=True))
    # The tags stand last in the file and second in a row, before columns that few need.
    ordered = [first, *others[-1:], *others[:-1]]
    return Row(dict(zip(layout.columns, ordered, strict=True)), f"{name}:{sentence[0][0]}")


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
CONLL = Format("conll", _read, (".conll", ".bio", ".iob", ".iob2", ".bioes", ".annotated", ".txt"))
