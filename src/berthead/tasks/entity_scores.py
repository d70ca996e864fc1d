"""Precision, recall and F1 of tagged words: by whole entities, or by words if tags are plain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from berthead.data.entities import entities, strict_entities
from berthead.errors import counted

Rows = Sequence[Sequence[str]]
Found = set[tuple[int, str, int, int]]
"""Row, label, first word or character, end."""
Places = Iterable[tuple[int, int, str]]
"""Start, end and label."""


def entity_scores(gold: Rows, predicted: Rows, scheme: str = "BIO") -> dict[str, Any]:
    """Entity metrics: an entity is right if its label, first and last word are right.

    Equal to seqeval 1.2.2 (Nakayama 2018) with `zero_division=0`, and so to conlleval (Tjong Kim Sang and De Meulder
    2003).

    Args:
        gold: the tags of each row.
        predicted: as many tags for each row.
        scheme: "BIO", "IOB1", "BIOES" or "plain", as `berthead.data.tag_schemes.scheme_of` finds it.

    Returns:
        From 0 to 1: `precision`, `recall` and `f1` over all entities; `macro_f1`, the mean over the labels seen;
        `strict_precision`, `strict_recall` and `strict_f1`, where ill-formed tags are no entity; `token_accuracy`; and
        `per_label`, a dict a label. For plain tags the words count in place of entities, `f1` is the accuracy, and
        only `f1`, `macro_f1`, `token_accuracy` and `per_label` are there.

    Raises:
        ValueError: gold and predicted differ in shape, hold no word, or do not fit the scheme.

    Example:
        >>> scores = entity_scores([["B-PER", "I-PER", "O"]], [["B-PER", "I-PER", "B-LOC"]])
        >>> scores["precision"], scores["recall"], scores["per_label"][1]["support"]
        (0.5, 1.0, 1)
    """
    pairs = _pairs(gold, predicted)
    accuracy = sum(wanted == got for wanted, got in pairs) / len(pairs)
    if scheme == "plain":
        table = _per_tag(pairs)
        return {"f1": accuracy, "macro_f1": _macro(table), "token_accuracy": accuracy, "per_label": table}

    def strictly(tags: Sequence[str]) -> Iterable[tuple[str, int, int]]:
        return strict_entities(tags, scheme)

    found = _found(gold, entities), _found(predicted, entities)
    return _scores(*found, _micro(_found(gold, strictly), _found(predicted, strictly)), accuracy)


def span_scores(gold: Sequence[Places], predicted: Sequence[Places], token_accuracy: float) -> dict[str, Any]:
    """The same metrics where spans were given by characters: a span is right if its label and both ends are right.

    Equal to those of seqeval on a tag for each character.

    Args:
        gold: the spans of each row as start, end and label, in characters.
        predicted: as many rows.
        token_accuracy: the share of words with the right tag.

    Returns:
        As `entity_scores`; the strict metrics are the others, because no span is ill-formed.

    Example:
        >>> span_scores([[(0, 2, "PER")]], [[(0, 5, "PER")]], 1.0)["f1"]
        0.0
    """

    def found(rows: Sequence[Places]) -> Found:
        return {(number, label, start, end) for number, row in enumerate(rows) for start, end, label in row}

    wanted, got = found(gold), found(predicted)
    return _scores(wanted, got, _micro(wanted, got), token_accuracy)


def _scores(gold: Found, predicted: Found, strict: tuple[float, float, float], accuracy: float) -> dict[str, Any]:
    table = _table(*map(_labels, (gold & predicted, predicted, gold)))
    precision, recall, f1 = _micro(gold, predicted)
    return {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "macro_f1": _macro(table),
        "strict_precision": strict[0],
        "strict_recall": strict[1],
        "strict_f1": strict[2],
        "token_accuracy": accuracy,
        "per_label": table,
    }


def _pairs(gold: Rows, predicted: Rows) -> list[tuple[str, str]]:
    """The gold and the predicted tag of each word."""
    if len(gold) != len(predicted):
        raise ValueError(
            f"got {counted(len(predicted), 'row')} of predicted tags; expected {len(gold)}, as of gold tags"
        )
    pairs: list[tuple[str, str]] = []
    for number, (wanted, got) in enumerate(zip(gold, predicted, strict=True), 1):
        if len(wanted) != len(got):
            raise ValueError(
                f"row {number} has {counted(len(got), 'predicted tag')}; expected {len(wanted)}, as of gold tags"
            )
        pairs += zip(wanted, got, strict=True)
    if not pairs:
        raise ValueError("got no words; expected at least one to score")
    return pairs


def _found(rows: Rows, read: Callable[[Sequence[str]], Iterable[tuple[str, int, int]]]) -> Found:
    return {(number, *entity) for number, tags in enumerate(rows) for entity in read(tags)}


def _labels(found: Found) -> Counter[str]:
    return Counter(label for _, label, _, _ in found)


def _per_tag(pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The table of plain tags, by words."""
    right = Counter(wanted for wanted, got in pairs if wanted == got)
    return _table(right, Counter(got for _, got in pairs), Counter(wanted for wanted, _ in pairs))


def _table(right: Counter[str], predicted: Counter[str], gold: Counter[str]) -> list[dict[str, Any]]:
    """A dict for each label that is gold or predicted, sorted by label."""
    table = []
    for label in sorted(predicted | gold):
        precision, recall, f1 = _ratios(right[label], predicted[label], gold[label])
        table.append({"label": label, "precision": precision, "recall": recall, "f1": f1, "support": gold[label]})
    return table


def _macro(table: Sequence[dict[str, Any]]) -> float:
    """The mean F1 of the labels; 0 if there are no gold and no predicted entities."""
    return sum(row["f1"] for row in table) / len(table) if table else 0.0


def _micro(gold: Found, predicted: Found) -> tuple[float, float, float]:
    return _ratios(len(gold & predicted), len(predicted), len(gold))


def _ratios(right: int, predicted: int, gold: int) -> tuple[float, float, float]:
    """Precision, recall and F1; 0 instead of 0 / 0."""
    precision = right / predicted if predicted else 0.0
    recall = right / gold if gold else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if right else 0.0
