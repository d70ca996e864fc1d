"""Tag sequences of words, and the spans that they encode."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from berthead.records import IntArray

BoolArray = NDArray[np.bool_]
Scores = NDArray[np.floating[Any]]

OUTSIDE = "O"
SCHEMES = ("BIO", "IOB1", "BIOES", "IOE1", "IOE2", "IO", "plain")
STANDARD = "BIES-"
"""The letters for begin, inside, end and single, and the separator behind them."""
BARE = " "
"""In the place of the separator: tags are letters alone, without labels."""
MOST_BROKEN = 0.25
"""The largest share of entities without an end tag in BIOES; if more lack it, the tags mix schemes."""

# BILOU says last and unit, BMEWO says middle and whole.
_ALIASES = {"L": "E", "U": "S", "W": "S", "M": "I"}
_PREFIXES = frozenset("BIES") | frozenset(_ALIASES)
_SAME = ("B", "IM", "EL", "SUW")
_LETTERS = {"BIO": "OBI", "IOB1": "OBI", "BIOES": "OBIES"}
_Word = tuple[str, str]
_LOWER = re.compile("[bieslu][-_].")
_SUFFIXED = re.compile(".+[-_][BIESLU]")


class SchemeError(ValueError):
    """Tags that fit no scheme.

    Args:
        fault: what was found and what is expected.
        row: the first row that shows it, from 0.
    """

    def __init__(self, fault: str, row: int) -> None:
        super().__init__(fault)
        self.row = row


class Entity(NamedTuple):
    """A labelled span: the words from `first` up to, not including, `end`."""

    label: str
    first: int
    end: int


def scheme_of(sequences: Iterable[Sequence[str]]) -> str:
    """The scheme in which these sequences write their spans.

    Args:
        sequences: the tags of each row. A prefix is one of the letters B I E S L U W M and "-" or "_".

    Returns:
        "BIOES" if an end or a single word has its own letter (L is read as E, U and W as S, M as I); "IOE2" if only
        ends have one, "IOE1" if only ends before an entity of the same label have one; "IOB1" if B- occurs only
        directly after an entity of its label, and some entity starts with I-; "BIO" (IOB2) for other prefixes; "IO" if
        no tag has a prefix, "O" is one of them, and the others are longer; "plain" for other tags without prefixes.

    Raises:
        SchemeError: some tags have prefixes and others, besides "O", have none; two separators or two letters with
            the same meaning are in use; many entities lack the end letter that others have; or prefixes are in lower
            case, or stand behind the label.

    Example:
        >>> scheme_of([["B-PER", "I-PER", "O"]]), scheme_of([["I-PER", "O"]]), scheme_of([["DET", "NOUN"]])
        ('BIO', 'IOB1', 'plain')
    """
    rows = list(sequences)
    # a dict, not a set: the examples in a message must not change from run to run
    tags = list(dict.fromkeys(tag for row in rows for tag in row))
    prefixed = [tag for tag in tags if _is_prefixed(tag)]
    if not prefixed and not is_bare(tags):
        _check_spelling(rows, tags)
        others = [tag for tag in tags if tag != OUTSIDE]
        return "IO" if OUTSIDE in tags and others and all(len(tag) > 1 for tag in others) else "plain"
    if prefixed:
        _check_one_scheme(rows, tags, prefixed)
    else:
        prefixed = [tag for tag in tags if tag != OUTSIDE]
        _check_letters(rows, prefixed)
    closing = next((tag for tag in prefixed if _parts(tag)[0] in "ES"), None)
    if closing is None:
        return "IOB1" if _is_iob1(rows) else "BIO"
    if {_parts(tag)[0] for tag in prefixed} <= {"I", "E"} and (ends := _ends_of(rows)):
        return ends
    _check_closed(rows, closing)
    return "BIOES"


def is_bare(tags: Iterable[str]) -> bool:
    """Whether tags are the letters of a scheme alone: B and O, or others with a letter for the start.

    Args:
        tags: the distinct tags.

    Example:
        >>> is_bare(["B", "I", "O"]), is_bare(["NN", "O"])
        (True, False)
    """
    found = set(tags)
    return OUTSIDE in found and bool(found & {"B", "S", "U"}) and found <= _PREFIXES | {OUTSIDE}


def letters_of(sequences: Iterable[Sequence[str]]) -> str:
    """The letters of the scheme in these sequences, for `from_bio`.

    Args:
        sequences: the tags of each row.

    Returns:
        The letters for begin, inside, end and single, and the separator; standard ones for those not used.

    Example:
        >>> letters_of([["B_PER", "L_PER", "O", "U_LOC"]])
        'BILU_'
    """
    every = Counter(tag for row in sequences for tag in row)
    bare = is_bare(every)
    letters, separators = Counter[str](), Counter[str]()
    for tag, count in every.items():
        if bare or _is_prefixed(tag):
            letters[tag[0]] += count
            separators[tag[1:2]] += count
    # max keeps the first of equals, so the standard letters win ties
    separator = BARE if bare else max("-_", key=separators.__getitem__)
    return "".join(max(some, key=letters.__getitem__) for some in _SAME) + separator


def to_bio(tags: Sequence[str], scheme: str) -> list[str]:
    """Convert tags to BIO, with the same entities.

    Args:
        tags: the tags of one row.
        scheme: the result of `scheme_of`.

    Returns:
        A tag a word, with "-" as separator. Ill-formed tags are read as in `entities`. "plain" tags stay.

    Raises:
        ValueError: there is no such scheme.

    Example:
        >>> to_bio(["S-PER", "O", "B-LOC", "E-LOC"], "BIOES")
        ['B-PER', 'O', 'B-LOC', 'I-LOC']
    """
    _check_scheme(scheme, SCHEMES)
    if scheme == "plain":
        return list(tags)
    if scheme == "IO":
        tags = [tag if tag == OUTSIDE else f"I-{tag}" for tag in tags]
    return to_tags(entities(tags), len(tags))


def from_bio(tags: Sequence[str], scheme: str, letters: str = STANDARD) -> list[str]:
    """Convert BIO tags to the user's scheme.

    Args:
        tags: the BIO tags of one row.
        scheme: the result of `scheme_of`.
        letters: the result of `letters_of`.

    Returns:
        A tag a word. Well-formed tags survive `to_bio` and `from_bio` unchanged.

    Raises:
        ValueError: there is no such scheme.

    Example:
        >>> from_bio(["B-PER", "O", "B-LOC", "I-LOC"], "BIOES", "BILU-")
        ['U-PER', 'O', 'B-LOC', 'L-LOC']
    """
    _check_scheme(scheme, SCHEMES)
    if scheme == "plain":
        return list(tags)
    separator, written, none = letters[-1], [OUTSIDE] * len(tags), Entity("", -1, -1)
    found = entities(tags)
    for before, entity, after in zip([none, *found], found, [*found[1:], none], strict=False):
        if scheme == "IO":
            written[entity.first : entity.end] = [entity.label] * (entity.end - entity.first)
            continue
        neighbour, edge = (after, entity.end) if scheme == "IOE1" else (before, entity.first)
        touches = neighbour.label == entity.label and edge in (neighbour.first, neighbour.end)
        for word, role in enumerate(_roles(entity.end - entity.first, scheme, touches), entity.first):
            letter = letters[STANDARD.index(role)]
            written[word] = letter if separator == BARE else f"{letter}{separator}{entity.label}"
    return written


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
    for at, word in enumerate([*map(_parts, tags), (OUTSIDE, "_")]):
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
    _check_scheme(scheme, tuple(_LETTERS))
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
    parts = [_parts(tag) if _is_prefixed(tag) else (OUTSIDE, "") for tag in tags]
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


def _is_prefixed(tag: str) -> bool:
    return tag[:1] in _PREFIXES and tag[1:2] in ("-", "_")


def _mixed(rows: Sequence[Sequence[str]], one: str, other: str, rule: str) -> SchemeError:
    """The error of two tags that do not go together, at the first row that has seen both."""
    row = max(next(number for number, row in enumerate(rows) if tag in row) for tag in (one, other))
    return SchemeError(f'tags such as "{one}" and "{other}" are mixed; expected {rule}', row)


def _check_one_scheme(rows: Sequence[Sequence[str]], tags: Sequence[str], prefixed: Sequence[str]) -> None:
    other = next((tag for tag in tags if tag != OUTSIDE and not _is_prefixed(tag)), None)
    if other is not None:
        rule = 'a prefix (B-, I-, E-, S-, L-, U-, W-, M-) on every tag but "O", or on none'
        raise _mixed(rows, prefixed[0], other, rule)
    second = next((tag for tag in prefixed if tag[1] != prefixed[0][1]), None)
    if second is not None:
        raise _mixed(rows, prefixed[0], second, '"-" behind every prefix, or "_" behind every prefix')
    _check_letters(rows, prefixed)


def _check_letters(rows: Sequence[Sequence[str]], prefixed: Sequence[str]) -> None:
    for letters in _SAME:
        shown = {tag[0]: tag for tag in prefixed if tag[0] in letters}
        if len(shown) > 1:
            one, other = list(shown.values())[:2]
            raise _mixed(rows, one, other, "one of their letters, which mean the same")


def _check_spelling(rows: Sequence[Sequence[str]], tags: Sequence[str]) -> None:
    """Refuse prefixes in lower case, and prefixes behind the label: they would be learnt as plain tags."""
    odd = next((tag for tag in tags if _LOWER.match(tag)), None)
    if odd and "o" in tags:
        rule = f'"{odd[0].upper()}{odd[1:]}", and "O" for no entity'
    else:
        odd = next((tag for tag in tags if _SUFFIXED.fullmatch(tag)), None)
        if odd is None or not all(tag == OUTSIDE or _SUFFIXED.fullmatch(tag) for tag in tags):
            return
        rule = f'the letter before the label: "{odd[-1]}{odd[-2]}{odd[:-2]}"'
    row = next(number for number, row in enumerate(rows) if odd in row)
    raise SchemeError(f'tags such as "{odd}" are of no scheme; expected {rule}', row)


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


def _check_closed(rows: Sequence[Sequence[str]], closing: str) -> None:
    """Refuse many entities without an end tag if others have one: they are of another scheme, IOB1 or IOB2."""
    broken = [(number, one) for number, row in enumerate(rows) for one in unclosed(row)]
    if len(broken) <= MOST_BROKEN * sum(len(entities(row)) for row in rows):
        return
    number, one = broken[0]
    saw = shown_tags(rows[number], one)
    rule = 'a single tag such as "S-X", or tags from "B-X" to "E-X"'
    both = max(number, next(place for place, row in enumerate(rows) if closing in row))
    raise SchemeError(f'"{saw}" is not a whole entity beside tags such as "{closing}"; expected {rule}', both)


def shown_tags(tags: Sequence[str], entity: Entity) -> str:
    """The tags of an entity for a message: four at most."""
    return " ".join(tags[entity.first : entity.end][:4]) + (" ..." if entity.end - entity.first > 4 else "")


def _ends_of(rows: Sequence[Sequence[str]]) -> str:
    """The scheme of tags with the letters I and E alone: IOE2, IOE1, or neither ("")."""
    always = seldom = True
    for row in rows:
        words = [*map(_parts, row), (OUTSIDE, "_")]
        for entity in entities(row):
            after, last = words[entity.end], words[entity.end - 1][0]
            always &= last == "E"
            seldom &= (last == "E") == (after[0] != OUTSIDE and after[1] == entity.label)
    return "IOE2" if always else "IOE1" if seldom else ""


def _is_iob1(rows: Sequence[Sequence[str]]) -> bool:
    inside_starts = False
    for row in rows:
        for before, (letter, label) in pairwise([(OUTSIDE, "_"), *map(_parts, row)]):
            touches = before[0] != OUTSIDE and before[1] == label
            if letter == "B" and not touches:
                return False
            inside_starts |= letter == "I" and not touches
    return inside_starts


def _check_scheme(scheme: str, known: Sequence[str]) -> None:
    if scheme not in known:
        raise ValueError(f'the scheme is "{scheme}"; expected one of {", ".join(known)}')


@lru_cache(maxsize=10_000)
def _parts(tag: str) -> _Word:
    """The letter and the label of a tag."""
    letter, rest = tag[:1], tag[1:]
    label = rest[1:] if rest.startswith("_") else rest.split("-", 1)[-1]
    return _ALIASES.get(letter, letter), label or "_"


def _strict_parts(tag: str, scheme: str) -> _Word:
    letter, label = _parts(tag)
    if letter not in _LETTERS[scheme]:
        raise ValueError(f'"{tag}" is not a {scheme} tag; expected one of the prefixes {", ".join(_LETTERS[scheme])}')
    # seqeval's strict mode, and only that, drops hyphens around the label
    return letter, label.strip("-") or "_"


def _ended(before: _Word, word: _Word) -> bool:
    (letter_before, label_before), (letter, label) = before, word
    if letter_before in ("E", "S") or (letter_before in ("B", "I") and letter in ("B", "S", OUTSIDE)):
        return True
    return letter_before not in (OUTSIDE, ".") and label_before != label


def _started(before: _Word, word: _Word) -> bool:
    (letter_before, label_before), (letter, label) = before, word
    if letter in ("B", "S") or (letter in ("E", "I") and letter_before in ("E", "S", OUTSIDE)):
        return True
    return letter not in (OUTSIDE, ".") and label_before != label


def _continued(before: _Word, word: _Word) -> bool:
    return before[0] in ("B", "I") and word[0] in ("I", "E") and before[1] == word[1]


def _strictly_started(before: _Word, word: _Word, scheme: str) -> bool:
    if scheme != "IOB1":
        return word[0] in ("B", "S")
    if word[0] == "B":
        return before[0] in ("B", "I") and before[1] == word[1]
    return word[0] == "I" and (before[0] in (OUTSIDE, "B") or before[1] != word[1])


def _strictly_ended(last: _Word, after: _Word, scheme: str) -> bool:
    if scheme == "BIOES":
        return last[0] in ("E", "S")
    # in IOB1 a B- behind another label is wrong, and seqeval lets it spoil a B- before it, but not an I-
    return scheme == "BIO" or not (last[0] == after[0] == "B" and last[1] != after[1])


def _roles(words: int, scheme: str, touches: bool) -> str:
    """The standard letters of an entity's words; `touches`: directly after an entity of its label; IOE1: before one."""
    if scheme == "BIO":
        return "B" + "I" * (words - 1)
    if scheme == "IOB1":
        return ("B" if touches else "I") + "I" * (words - 1)
    if scheme in ("IOE1", "IOE2"):
        return "I" * (words - 1) + ("E" if touches or scheme == "IOE2" else "I")
    return "S" if words == 1 else "B" + "I" * (words - 2) + "E"


def _shown(span: Entity) -> str:
    return f'"{span.label}" over words {span.first} to {span.end - 1}'
