"""The schemes of tags (BIO, IOB1, BIOES and others): found, and converted to BIO and back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from berthead.data.entities import Entity, check_scheme, entities, shown_tags, to_tags, unclosed
from berthead.data.tags import OUTSIDE, PREFIXES, is_prefixed, parts_of

SCHEMES = ("BIO", "IOB1", "BIOES", "IOE1", "IOE2", "IO", "plain")
STANDARD = "BIES-"
"""The letters for begin, inside, end and single, and the separator behind them."""
BARE = " "
"""In the place of the separator: tags are letters alone, without labels."""
MOST_BROKEN = 0.25
"""The largest share of entities without an end tag in BIOES; if more lack it, the tags mix schemes."""
_SAME = ("B", "IM", "EL", "SUW")
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
    prefixed = [tag for tag in tags if is_prefixed(tag)]
    if not prefixed and not is_bare(tags):
        _check_spelling(rows, tags)
        others = [tag for tag in tags if tag != OUTSIDE]
        return "IO" if OUTSIDE in tags and others and all(len(tag) > 1 for tag in others) else "plain"
    if prefixed:
        _check_one_scheme(rows, tags, prefixed)
    else:
        prefixed = [tag for tag in tags if tag != OUTSIDE]
        _check_letters(rows, prefixed)
    closing = next((tag for tag in prefixed if parts_of(tag)[0] in "ES"), None)
    if closing is None:
        return "IOB1" if _is_iob1(rows) else "BIO"
    if {parts_of(tag)[0] for tag in prefixed} <= {"I", "E"} and (ends := _ends_of(rows)):
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
    return OUTSIDE in found and bool(found & {"B", "S", "U"}) and found <= PREFIXES | {OUTSIDE}


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
        if bare or is_prefixed(tag):
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
    check_scheme(scheme, SCHEMES)
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
    check_scheme(scheme, SCHEMES)
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


def _mixed(rows: Sequence[Sequence[str]], one: str, other: str, rule: str) -> SchemeError:
    """The error of two tags that do not go together, at the first row that has seen both."""
    row = max(next(number for number, row in enumerate(rows) if tag in row) for tag in (one, other))
    return SchemeError(f'tags such as "{one}" and "{other}" are mixed; expected {rule}', row)


def _check_one_scheme(rows: Sequence[Sequence[str]], tags: Sequence[str], prefixed: Sequence[str]) -> None:
    other = next((tag for tag in tags if tag != OUTSIDE and not is_prefixed(tag)), None)
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


def _ends_of(rows: Sequence[Sequence[str]]) -> str:
    """The scheme of tags with the letters I and E alone: IOE2, IOE1, or neither ("")."""
    always = seldom = True
    for row in rows:
        words = [*map(parts_of, row), (OUTSIDE, "_")]
        for entity in entities(row):
            after, last = words[entity.end], words[entity.end - 1][0]
            always &= last == "E"
            seldom &= (last == "E") == (after[0] != OUTSIDE and after[1] == entity.label)
    return "IOE2" if always else "IOE1" if seldom else ""


def _is_iob1(rows: Sequence[Sequence[str]]) -> bool:
    inside_starts = False
    for row in rows:
        for before, (letter, label) in pairwise([(OUTSIDE, "_"), *map(parts_of, row)]):
            touches = before[0] != OUTSIDE and before[1] == label
            if letter == "B" and not touches:
                return False
            inside_starts |= letter == "I" and not touches
    return inside_starts


def _roles(words: int, scheme: str, touches: bool) -> str:
    """The standard letters of an entity's words; `touches`: directly after an entity of its label; IOE1: before one."""
    if scheme == "BIO":
        return "B" + "I" * (words - 1)
    if scheme == "IOB1":
        return ("B" if touches else "I") + "I" * (words - 1)
    if scheme in ("IOE1", "IOE2"):
        return "I" * (words - 1) + ("E" if touches or scheme == "IOE2" else "I")
    return "S" if words == 1 else "B" + "I" * (words - 2) + "E"
