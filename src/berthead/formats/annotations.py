"""Rows of annotation tools (doccano, Prodigy, GLiNER, transformers) as texts with spans, or tokens with tags."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

from berthead.formats.json_values import kind_of

Span = dict[str, Any]
"""{"start": int, "end": int, "label": str}: code points of the text, the end behind the last of them."""

_MARKS = ("label", "labels", "entities", "annotations", "ents")  # where tools write spans


def with_spans(values: dict[str, Any], marked: Container[str] = ()) -> dict[str, Any]:
    """A row of another tool with its spans, or tags, in our form; any other row unchanged.

    Args:
        values: the row. Spans are looked for under "label" and "labels", as [start, end, label] each; under "entities",
            as objects with "start_offset", "end_offset" and "label" (doccano) or with "start", "end" and
            "entity_group" (transformers); under "annotations", as doccano's older objects; and under "ents" (spaCy).
            Of GLiNER, "tokenized_text" and "ner" become tokens and tags.
        marked: keys (of `span_keys`) under which an empty list means no span, and a value that is no list of spans
            is copied to "spans", to be refused there; other keys may hold anything.

    Returns:
        The row with "spans", with "text" if doccano calls it "data", and without tokens that are objects; or the row
        itself, if it has nothing of that kind.

    Raises:
        ValueError: its spans were not accepted, or they do not fit its tokens.

    Example:
        >>> with_spans({"text": "Rome fell", "label": [[0, 4, "LOC"]]})["spans"]
        [{'start': 0, 'end': 4, 'label': 'LOC'}]
    """
    if isinstance(values.get("tokenized_text"), list) and isinstance(values.get("ner"), list):
        return _of_gliner(values)
    if _has_token_objects(values):  # of Prodigy and spaCy: the text is there too
        if (answer := values.get("answer", "accept")) != "accept":
            raise ValueError(f'has "answer": "{answer}"; expected "accept"')
        found = values.get("spans", values.get("ents", [] if "answer" in values else None))
        others = {key: value for key, value in values.items() if key not in ("tokens", "ents")}
        return others if found is None else others | {"spans": found}
    if "spans" in values:
        return values
    for key in _MARKS:
        marks = values.get(key)
        if not isinstance(marks, list) or not (marks or key in marked):
            continue
        spans = _spans_under(key, marks)
        if spans is None and key in marked:
            spans = marks
        if spans is not None:
            text = {"text": values["data"]} if "text" not in values and isinstance(values.get("data"), str) else {}
            return values | text | {"spans": spans}
    return values


def span_keys(rows: Iterable[dict[str, Any]]) -> frozenset[str]:
    """The keys of spans in these rows, if they are those of another tool.

    Args:
        rows: some rows of a file.

    Returns:
        Some of "label", "labels", "entities", "annotations" and "ents".

    Example:
        >>> sorted(span_keys([{"text": "So", "label": []}, {"text": "Rome", "label": [[0, 4, "LOC"]]}]))
        ['label']
    """
    found = set[str]()
    for values in rows:
        for key in _MARKS:
            marks = values.get(key)
            if isinstance(marks, list) and marks and _spans_under(key, marks) is not None:
                found.add(key)
    return frozenset(found)


def _spans_under(key: str, marks: list[Any]) -> list[Span] | None:
    """The spans of a list; None if an item is something else."""
    spans = []
    for mark in marks:
        is_ours = key == "entities" and isinstance(mark, dict) and {"start", "end", "label"} <= mark.keys()
        triple = mark if key in ("label", "labels") else _offsets(mark) if isinstance(mark, dict) else None
        triple = None if is_ours else triple
        if not isinstance(triple, list) or [type(part) for part in triple[:2]] != [int, int] or len(triple) != 3:
            return None
        if key == "annotations" and type(triple[2]) is int:  # doccano's numbers, whose names stand elsewhere
            triple[2] = str(triple[2])
        if type(triple[2]) is not str:
            return None
        spans.append(dict(zip(("start", "end", "label"), triple, strict=True)))
    return spans


def _offsets(mark: dict[str, Any]) -> list[Any]:
    if "start_offset" in mark:
        return [mark.get(key) for key in ("start_offset", "end_offset", "label")]
    label = next((mark[key] for key in ("entity_group", "entity") if key in mark), mark.get("label"))
    return [mark.get("start"), mark.get("end"), label]


def _has_token_objects(values: dict[str, Any]) -> bool:
    tokens = values.get("tokens")
    return (
        isinstance(tokens, list)
        and bool(tokens)
        and isinstance(values.get("text"), str)
        and all(isinstance(one, dict) and {"start", "end"} <= one.keys() for one in tokens)
    )


def _of_gliner(values: dict[str, Any]) -> dict[str, Any]:
    tokens = values["tokenized_text"]
    tags = ["O"] * len(tokens)
    for number, mark in enumerate(values["ner"]):
        if not isinstance(mark, list) or [type(part) for part in mark] != [int, int, str]:
            raise ValueError(f"ner[{number}] is {kind_of(mark)}; expected [first token, last token, label]")
        first, last, label = mark
        if not 0 <= first <= last < len(tokens):
            raise ValueError(f"ner[{number}] is of the tokens {first} to {last}; expected 0 to {len(tokens) - 1}")
        if any(tag != "O" for tag in tags[first : last + 1]):
            raise ValueError(f"ner[{number}] overlaps another span; expected each token in one span at most")
        tags[first : last + 1] = [f"B-{label}"] + [f"I-{label}"] * (last - first)
    others = {key: value for key, value in values.items() if key not in ("tokenized_text", "ner")}
    return {"tokens": tokens, "tags": tags} | others
