"""Notes on labelled rows for the user: what was probably not meant, with counts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from berthead.data.labels import kind_of, text_of_label
from berthead.errors import counted, shown
from berthead.records import Example, Label

MANY_LABELS = 10  # fewer labels may well be numbers, or few rows each
ROWS_A_CLASS = 5  # numbered classes have about so many rows each, measured numbers fewer
SEPARATORS = (",", ";", "/")
SHOWN = 3


def label_notes(labels: Iterable[Label]) -> list[str]:
    """Notes on the labels of a fit: those that differ in type or spelling only, and numbers that are no classes.

    Args:
        labels: those of all rows, with repetitions.

    Returns:
        Lines.
    """
    rows = Counter((type(label).__name__, label) for label in labels)
    notes = _alike(rows, "type", text_of_label)
    notes += _alike({key: number for key, number in rows.items() if key[0] == "str"}, "spelling", _folded)
    return notes + _not_classes([label for _, label in rows], sum(rows.values()))


def separator_note(cells: Iterable[Sequence[Label]]) -> list[str]:
    """A note on labels that hold another separator: a part of one label is a label, or a part of another one.

    Args:
        cells: the labels of each row.

    Returns:
        A line, or none.
    """
    singles = Counter(cell[0] for cell in cells if len(cell) == 1 and isinstance(cell[0], str))
    for mark in SEPARATORS:
        composed = {text: [part.strip() for part in text.split(mark)] for text in singles if mark in text}
        parts = Counter(part for found in composed.values() for part in set(found))
        if any(all(found) and any(part in singles or parts[part] > 1 for part in found) for found in composed.values()):
            rows = counted(sum(singles[text] for text in composed), "row")
            example = shown(next(iter(composed)))
            return [f'one label with "{mark}" in it, such as {example}, in {rows}; if it separates labels: '
                    f'--separator "{mark}"']  # fmt: skip
    return []


def repetition_notes(examples: Sequence[Example], *, contradict: bool = True) -> list[str]:
    """Notes on rows that repeat another one, and on texts that stand with different targets.

    Args:
        examples: with targets.
        contradict: whether different targets of one text contradict each other; measured numbers do not.

    Returns:
        Lines.
    """
    first: dict[Hashable, tuple[int, str]] = {}
    repeated, clashes = 0, dict[Hashable, tuple[int, int]]()
    for number, example in enumerate(examples):
        key = _input_key(example)
        target = repr(example.target)
        earlier = first.setdefault(key, (number, target))
        if earlier[0] == number:
            continue
        if earlier[1] == target:
            repeated += 1
        else:
            clashes.setdefault(key, (earlier[0], number))
    notes = [f"{counted(repeated, 'row')} {'repeats' if repeated == 1 else 'repeat'} the text and the target of another"
             ] if repeated else []  # fmt: skip
    if clashes and contradict:
        a, b = (examples[number] for number in next(iter(clashes.values())))
        texts = f"{counted(len(clashes), 'text')} {'has' if len(clashes) == 1 else 'have'} different targets"
        notes.append(f"{texts}, such as {a.where} ({_short(a.target)}) and {b.where} ({_short(b.target)})")
    return notes


def overlap_note(fitted: Sequence[Example], held_out: Sequence[Example]) -> list[str]:
    """A note on held-out rows whose text is fitted too: their scores say little.

    Args:
        fitted: the training rows.
        held_out: rows of another file.

    Returns:
        A line, or none.
    """
    known = {_input_key(one) for one in fitted}
    both = sum(_input_key(one) in known for one in held_out)
    have = f"{both:,} of {counted(len(held_out), 'held-out row')} {'has' if both == 1 else 'have'}"
    return [f"{have} the text of a fitted row: the scores are too high"] if both else []


def _input_key(example: Example) -> int:
    """A hash of what the encoder reads."""
    return hash((example.text, example.pair, example.words, example.choices))


def _alike(rows: Mapping[tuple[str, Any], int], what: str, key_of: Callable[[Any], str]) -> list[str]:
    """A note on labels with equal keys."""
    groups: dict[str, list[tuple[Label, int]]] = defaultdict(list)
    for (_, label), number in rows.items():
        if key := key_of(label):
            groups[key].append((label, number))
    alike = [sorted(group, key=lambda one: (-one[1], str(one[0]))) for group in groups.values() if len(group) > 1]
    if not alike:
        return []

    def words(label: Label, number: int) -> str:
        kind = f" of type {kind_of(label)}" if what == "type" else ""
        return f"{shown(label)}{kind} ({counted(number, 'row')})"

    differ = "type" if what == "type" else "case, blanks or punctuation"
    groups_in_words = [", ".join(words(*one) for one in group) for group in alike[:SHOWN]]
    more = [f"{len(alike) - SHOWN} more"] if len(alike) > SHOWN else []
    return [f"labels that differ in {differ} only are different labels: {'; '.join(groups_in_words + more)}"]


def _folded(label: str) -> str:
    """A label without case, blanks around it, and punctuation between its words; "" if nothing can be said."""
    text = label.casefold().replace("_", " ").strip().strip("\"'").rstrip(".,;:!? ")
    return re.sub(r"(?<=\w)[\s\-./']+(?=\w)", "", text) if any(map(str.isalpha, text)) else ""


def _not_classes(labels: Sequence[Label], rows: int) -> list[str]:
    """Whether there are too many labels for classes: numbers that measure, or a label for nearly every row."""
    if len(labels) < MANY_LABELS:
        return []
    numbers = [_number(label) for label in labels]
    if None not in numbers:
        values = sorted(number for number in numbers if number is not None)
        numbered = values[0] in (0, 1) and values == [values[0] + step for step in range(len(values))]
        if not (numbered and rows >= ROWS_A_CLASS * len(labels)):
            return [f"all {len(labels):,} labels are numbers, and each is a class of its own; to predict a number: "
                    "--task regress"]  # fmt: skip
    if len(labels) > rows / 2:
        return [f"{len(labels):,} labels for {counted(rows, 'row')}: nearly every row has a label of its own; "
                "is this the right column? --label COLUMN"]  # fmt: skip
    return []


def _number(label: Label) -> float | None:
    if isinstance(label, bool):
        return None
    try:
        return float(label)
    except ValueError:
        return None


def _short(target: Any) -> str:
    text = shown(target)
    return text if len(text) <= 60 else f"{text[:59]}…"
