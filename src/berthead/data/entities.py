"""Entities: the labelled spans of words that a sequence of tags encodes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from berthead.data.tags import OUTSIDE, Parts, parts_of

_LETTERS = {"BIO": "OBI", "IOB1": "OBI", "BIOES": "OBIES"}


class Entity(NamedTuple):
    """A labelled span: the words from `first` up to, not including, `end`."""

    label: str
    first: int
    end: int


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one row, as in conlleval: ill-formed tags give entities too.

    Equal to `seqeval.metrics.sequence_labeling.get_entities`; also supports "_" and the letters L, U, W and M.

    Args:
        tags: BIO, IOB1 or BIOES tags.

    Returns:
        The entities from left to right; "_" is the label of a tag without one.

    Example:
        >>> entities(["O", "I-PER", "I-PER", "B-LOC"])
        [Entity(label='PER', first=1, end=3), Entity(label='LOC', first=3, end=4)]
    """
    found: list[Entity] = []
    before, first = (OUTSIDE, ""), 0
    for at, word in enumerate([*map(parts_of, tags), (OUTSIDE, "_")]):
        if _ended(before, word):
            found.append(Entity(before[1], first, at))
        if _started(before, word):
            first = at
        before = word
    return found


def strict_entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    """The well-formed entities of one row; tags that break the scheme's rules give none.

    Equal to seqeval with `mode="strict"` and IOB2, IOB1 or IOBES; also supports "_" and the letters L, U, W and M.

    Args:
        tags: the tags of one row.
        scheme: "BIO", "IOB1" or "BIOES".

    Returns:
        The entities from left to right.

    Raises:
        ValueError: there is no such scheme, or a tag's letter does not belong to it.

    Example:
        >>> strict_entities(["I-PER", "O", "B-LOC"], "BIO")
        [Entity(label='LOC', first=2, end=3)]
    """
    check_scheme(scheme, tuple(_LETTERS))
    words = [_strict_parts(tag, scheme) for tag in tags]
    words.append((OUTSIDE, "_"))
    found, before, at = [], words[-1], 0
    while at < len(words):
        if not _strictly_started(before, words[at], scheme):
            end = at + 1
        else:
            end = next(i for i in range(at + 1, len(words)) if not _continued(words[i - 1], words[i]))
            if _strictly_ended(words[end - 1], words[end], scheme):
                found.append(Entity(words[at][1], at, end))
        before, at = words[end - 1], end
    return found


def to_tags(spans: Sequence[Entity], words: int) -> list[str]:
    """Spans as BIO tags.

    Args:
        spans: labelled spans in any order.
        words: the number of words in the row.

    Returns:
        A tag a word.

    Raises:
        ValueError: two spans overlap, or a span is empty or reaches beyond the row.

    Example:
        >>> to_tags([Entity("PER", 1, 3)], 4)
        ['O', 'B-PER', 'I-PER', 'O']
    """
    ordered = sorted(spans, key=lambda span: (span.first, span.end))
    for span in ordered:
        if not 0 <= span.first < span.end <= words:
            raise ValueError(f"{_shown(span)} is not in the row; expected a span within its {words} words")
    for left, right in pairwise(ordered):
        if right.first < left.end:
            raise ValueError(f"{_shown(left)} and {_shown(right)} overlap; expected each word in one span at most")
    tags = [OUTSIDE] * words
    for label, first, end in ordered:
        tags[first:end] = [f"B-{label}"] + [f"I-{label}"] * (end - first - 1)
    return tags


def unclosed(tags: Sequence[str]) -> list[Entity]:
    """The entities of a BIOES row that are not a single tag, or tags from B- to E-.

    Args:
        tags: the tags of one row.

    Returns:
        The entities, from left to right.

    Example:
        >>> unclosed(["B-PER", "I-PER", "S-LOC"])
        [Entity(label='PER', first=0, end=2)]
    """
    closed = {(one.first, one.end) for one in strict_entities(tags, "BIOES")}
    return [one for one in entities(tags) if (one.first, one.end) not in closed]


def shown_tags(tags: Sequence[str], entity: Entity) -> str:
    """The tags of an entity for a message: four at most."""
    return " ".join(tags[entity.first : entity.end][:4]) + (" ..." if entity.end - entity.first > 4 else "")


def check_scheme(scheme: str, known: Sequence[str]) -> None:
    """Check that a scheme is known; ValueError."""
    if scheme not in known:
        raise ValueError(f'the scheme is "{scheme}"; expected one of {", ".join(known)}')


def _strict_parts(tag: str, scheme: str) -> Parts:
    letter, label = parts_of(tag)
    if letter not in _LETTERS[scheme]:
        raise ValueError(f'"{tag}" is not a {scheme} tag; expected one of the prefixes {", ".join(_LETTERS[scheme])}')
    # seqeval's strict mode, and only that, drops hyphens around the label
    return letter, label.strip("-") or "_"


def _ended(before: Parts, word: Parts) -> bool:
    (letter_before, label_before), (letter, label) = before, word
    if letter_before in ("E", "S") or (letter_before in ("B", "I") and letter in ("B", "S", OUTSIDE)):
        return True
    return letter_before not in (OUTSIDE, ".") and label_before != label


def _started(before: Parts, word: Parts) -> bool:
    (letter_before, label_before), (letter, label) = before, word
    if letter in ("B", "S") or (letter in ("E", "I") and letter_before in ("E", "S", OUTSIDE)):
        return True
    return letter not in (OUTSIDE, ".") and label_before != label


def _continued(before: Parts, word: Parts) -> bool:
    return before[0] in ("B", "I") and word[0] in ("I", "E") and before[1] == word[1]


def _strictly_started(before: Parts, word: Parts, scheme: str) -> bool:
    if scheme != "IOB1":
        return word[0] in ("B", "S")
    if word[0] == "B":
        return before[0] in ("B", "I") and before[1] == word[1]
    return word[0] == "I" and (before[0] in (OUTSIDE, "B") or before[1] != word[1])


def _strictly_ended(last: Parts, after: Parts, scheme: str) -> bool:
    if scheme == "BIOES":
        return last[0] in ("E", "S")
    # in IOB1 a B- behind another label is wrong, and seqeval lets it spoil a B- before it, but not an I-
    return scheme == "BIO" or not (last[0] == after[0] == "B" and last[1] != after[1])


def _shown(span: Entity) -> str:
    return f'"{span.label}" over words {span.first} to {span.end - 1}'
