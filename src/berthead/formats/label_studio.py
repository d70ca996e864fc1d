"""Exports of Label Studio, as JSON and JSON-MIN: tasks as texts with spans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from berthead.formats.annotations import Span
from berthead.formats.documents import Document
from berthead.formats.json_values import kind_of, wanted
from berthead.formats.offsets import is_whole, utf16_place
from berthead.records import Row

_LABELS = ("labels", "hypertextlabels")
_SIMPLE = str | int | float | bool | None
# What Label Studio itself adds to a row of JSON-MIN; none of them is the text.
_OWN = frozenset(["id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "file_upload"])


def is_label_studio(rows: list[Any]) -> bool:
    """Whether a list read from JSON is an export of Label Studio: JSON, or JSON-MIN with spans.

    Args:
        rows: the list.

    Returns:
        True if some row has an object as "data", or a list of regions with "start", "end" and "labels".

    Example:
        >>> is_label_studio([{"data": {"text": "Rome fell"}, "annotations": []}])
        True
    """
    return any(_is_task(row) or bool(_regions(row)) for row in rows if isinstance(row, dict))


def label_studio_rows(name: str, rows: list[Any]) -> Iterator[Row]:
    """The tasks of a Label Studio export as texts with spans.

    Of annotations that were not cancelled the ground truth counts, or the first. A region with several labels gives a
    span for each; choices for the whole text become its "label".

    Args:
        name: the file, for locations.
        rows: the content of the file: tasks with "data" and "annotations" ("completions" in old versions), or JSON-MIN.

    Returns:
        Rows with "text"; "spans", unless the task was not annotated; and other simple values: the task's "id", and the
        texts and numbers of its data. A task without a text, or with an invalid region, is a row with an error.

    Example:
        >>> region = {"type": "labels", "value": {"start": 0, "end": 4, "labels": ["LOC"]}}
        >>> task = {"id": 7, "data": {"text": "Rome fell"}, "annotations": [{"result": [region]}]}
        >>> next(label_studio_rows("a.json", [task])).values
        {'text': 'Rome fell', 'id': 7, 'spans': [{'start': 0, 'end': 4, 'label': 'LOC'}]}
    """
    # In one file all rows are of one kind; a task whose "data" is missing must not pass for JSON-MIN.
    read = _task if any(isinstance(row, dict) and _is_task(row) for row in rows) else _minimal
    for number, row in enumerate(rows):
        where = f"{name}:[{number}]"
        if not isinstance(row, dict):
            yield Row({}, where, f"is {kind_of(row)}; expected an object")
            continue
        try:
            yield Row(read(row), where)
        except ValueError as error:
            yield Row(_simple(row), where, str(error))


def _is_task(row: dict[str, Any]) -> bool:
    return isinstance(row.get("data"), dict)


def _task(task: dict[str, Any]) -> dict[str, Any]:
    data = wanted(task, "data", dict)
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    kept = {key: task[key] for key in ("id",) if key in task} | _simple(data)
    place, results = _results(task)
    if results is None:
        return _row(kept, _text_key(texts, [], [], 'its "data"'), None)
    chosen = _chosen(results)
    kept |= chosen
    regions = [(f"{place}[{number}]", one) for number, one in results if one.get("type") in _LABELS]
    if chosen and not regions:
        return _row(kept, _text_key(texts, [], [], 'its "data"'), None)
    named = [one.get("to_name") for _, one in regions] + [str(one.get("source")).lstrip("$") for _, one in regions]
    marks = [(f"{at}.value", wanted(one, "value", dict, at)) for at, one in regions]
    key = _text_key(texts, named, [value for _, value in marks], 'its "data"')
    return _row(kept, key, [span for at, value in marks for span in _spans(value, at, texts[key])])


def _results(task: dict[str, Any]) -> tuple[str, list[tuple[int, dict[str, Any]]] | None]:
    """The location of the counting annotation's results, and the numbered results; None if there is none."""
    key = "annotations" if "annotations" in task or "completions" not in task else "completions"
    annotations = wanted(task, key, list) if key in task else []
    numbered = list(enumerate(annotations))
    numbered.sort(key=lambda one: not (isinstance(one[1], dict) and one[1].get("ground_truth") is True))
    for number, annotation in numbered:
        place = f"{key}[{number}]"
        if not isinstance(annotation, dict):
            raise ValueError(f"{place} is {kind_of(annotation)}; expected an object")
        if annotation.get("was_cancelled"):
            continue
        results = wanted(annotation, "result", list, place)
        for position, result in enumerate(results):
            if not isinstance(result, dict):
                raise ValueError(f"{place}.result[{position}] is {kind_of(result)}; expected an object")
        return f"{place}.result", list(enumerate(results))
    return key, None


def _minimal(row: dict[str, Any]) -> dict[str, Any]:
    """A row of JSON-MIN, in which the project chooses the key of the regions."""
    texts = {key: value for key, value in row.items() if isinstance(value, str) and key not in _OWN}
    regions = _regions(row)
    key = _text_key(texts, [], [value for _, value in regions], "it")
    # A row without regions says by its annotator that there are none, not that nobody looked.
    annotated = regions or "annotation_id" in row or "annotator" in row
    return _row(
        _simple(row),
        key,
        [span for at, value in regions for span in _spans(value, at, texts[key])] if annotated else None,
    )


def _regions(row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The regions of a JSON-MIN row, each with its location."""
    return [
        (f"{key}[{number}]", region)
        for key, value in row.items()
        if isinstance(value, list)
        for number, region in enumerate(value)
        if isinstance(region, dict) and {"start", "end", "labels"} <= region.keys()
    ]


def _row(kept: dict[str, Any], key: str, spans: list[Span] | None) -> dict[str, Any]:
    """The text under our name, the other simple values, and the spans if there was an annotation."""
    others = {name: value for name, value in kept.items() if name not in ("text", key)}
    values = {"text": kept[key]} | others
    return values if spans is None else values | {"spans": spans}


def _chosen(results: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """The choices for the whole text: under "label" if there is one question, else each under its name."""
    found: dict[str, Any] = {}
    for _, result in results:
        value = result.get("value")
        if result.get("type") == "choices" and isinstance(value, dict) and isinstance(value.get("choices"), list):
            chosen = value["choices"]
            found[str(result.get("from_name"))] = chosen[0] if len(chosen) == 1 else chosen
    return {"label": next(iter(found.values()))} if len(found) == 1 else found


def _spans(value: dict[str, Any], place: str, text: str) -> list[Span]:
    """A region's spans, one a label."""
    global_offsets = value.get("globalOffsets")
    places = global_offsets if isinstance(global_offsets, dict) else value
    start, end = wanted(places, "start", int, place), wanted(places, "end", int, place)
    start, end = _where_quoted(value.get("text"), start, end, text, place)
    labels = wanted(value, next((key for key in _LABELS if key in value), "labels"), list, place)
    if not all(isinstance(label, str) for label in labels):
        raise ValueError(f'{place} has "labels" that are not texts; expected a list of texts')
    return [{"start": start, "end": end, "label": label} for label in labels]


def _where_quoted(quote: Any, start: int, end: int, text: str, place: str) -> tuple[int, int]:
    """The region in code points: as given, or as a browser counts, if only that gives its quote or whole words."""

    def is_it(first: int, last: int) -> bool:
        if isinstance(quote, str):
            return 0 <= first <= last <= len(text) and text[first:last].strip() == quote.strip()
        return is_whole(text, first, last)

    if is_it(start, end):
        return start, end
    for found in (utf16_place(text, start, end), utf16_place(text, start, end, one_line_end=True)):
        if found and is_it(*found):
            return found
    if not isinstance(quote, str) or end > len(text):
        return start, end
    seen = f"{quote[:40]!r}, but the text reads {text[start:end][:40]!r} at {start} to {end}"
    raise ValueError(f"{place} quotes {seen}; expected the quoted text there")


def _text_key(texts: dict[str, str], named: list[Any], regions: list[dict[str, Any]], place: str) -> str:
    """The key of the annotated text: the only one, the one named in results, or the one quoted by regions."""
    if not texts:
        raise ValueError(f"{place} holds no text; expected a text")
    if len(texts) == 1:
        return next(iter(texts))
    names = {name for name in named if name in texts}
    if len(names) > 1:
        raise ValueError(
            f"has regions of {len(names)} texts ({', '.join(sorted(names))}); expected regions of one text in each task"
        )
    quoting = [key for key in texts if regions and all(_quotes(region, texts[key]) for region in regions)]
    for keys in (list(names), quoting, ["text"] if "text" in texts else []):
        if len(keys) == 1:
            return keys[0]
    raise ValueError(f'{place} holds several texts ({", ".join(texts)}); expected the annotated one as "text"')


def _quotes(region: dict[str, Any], text: str) -> bool:
    start, end = region.get("start"), region.get("end")
    return isinstance(start, int) and isinstance(end, int) and text[start:end] == region.get("text")


def _simple(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(value, _SIMPLE)}


LABEL_STUDIO = Document(
    name="label-studio",
    described='a Label Studio export, as [{"data": {"text": "..."}, "annotations": [...]}], or as JSON-MIN',
    is_one=lambda document: isinstance(document, list) and is_label_studio(document),
    rows=label_studio_rows,
    needed=("text",),
    target="spans",
)
