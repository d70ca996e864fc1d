"""Exports of doccano and Label Studio as texts with spans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from berthead.formats.annotations import with_spans
from berthead.formats.readers import open_rows

TEXT = "Ada met 😀 in Rome"
ADA, ROME = {"start": 0, "end": 3, "label": "PER"}, {"start": 13, "end": 17, "label": "LOC"}


def put(folder: Path, name: str, content) -> str:
    lines = content if name.endswith(".jsonl") else [content]
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def read(path):
    with open_rows(path) as reader:
        return reader, list(reader)


def read_task(tmp_path, *tasks):
    return read(put(tmp_path, "a.json", list(tasks)))[1]


# doccano


@pytest.mark.parametrize("key", ["label", "labels"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_doccano_spans_are_added_beside_its_own(tmp_path, key, name):
    own = [[0, 3, "PER"], [13, 17, "LOC"]]
    reader, rows = read(put(tmp_path, name, [{"id": 1, "text": TEXT, key: own, "Comments": []}]))
    assert reader.columns == ["id", "text", key, "Comments", "spans"]
    assert rows[0].values == {"id": 1, "text": TEXT, key: own, "Comments": [], "spans": [ADA, ROME]}
    assert [TEXT[span["start"] : span["end"]] for span in rows[0].values["spans"]] == ["Ada", "Rome"]


def test_doccano_may_call_the_text_data(tmp_path):
    (row,) = read(put(tmp_path, "a.jsonl", [{"id": 1, "data": TEXT, "label": [[0, 3, "PER"]]}]))[1]
    assert row.values == {"id": 1, "data": TEXT, "label": [[0, 3, "PER"]], "text": TEXT, "spans": [ADA]}


def test_doccano_with_relations_has_entities(tmp_path):
    entities = [{"id": 5, "label": "PER", "start_offset": 0, "end_offset": 3}]
    row = {"id": 1, "text": TEXT, "entities": entities, "relations": []}
    rows = read(put(tmp_path, "a.jsonl", [row, {"id": 2, "text": "So", "entities": [], "relations": []}]))[1]
    assert rows[0].values == row | {"spans": [ADA]}
    assert rows[1].values["spans"] == []


def test_an_empty_list_means_no_span_only_beside_rows_with_spans(tmp_path):
    empty = {"text": "So", "label": []}
    reader, rows = read(put(tmp_path, "a.jsonl", [empty, {"text": TEXT, "label": [[0, 3, "PER"]]}, empty]))
    assert [row.values["spans"] for row in rows] == [[], [ADA], []]
    reader, rows = read(put(tmp_path, "b.jsonl", [empty, {"text": TEXT, "label": ["kind", "short"]}]))
    assert (reader.columns, rows[0].values) == (["text", "label"], empty)
    other = {"text": TEXT, "label": [[0, 3, "PER"]], "labels": []}
    assert with_spans({"text": "So", "labels": []}, {"label"}) == {"text": "So", "labels": []}
    assert with_spans(other)["spans"] == [ADA]


@pytest.mark.parametrize(
    "values",
    [
        {"text": "a", "label": "x"},
        {"text": "a", "label": ["x", "y"]},
        {"text": "a", "labels": []},
        {"text": "a", "label": [[0, 1, "X"], [1, 2]]},
        {"text": "a", "label": [[0, 1, 2]]},
        {"text": "a", "label": [[0.0, 1, "X"]]},
        {"text": "a", "label": [[True, 1, "X"]]},
        {"text": "a", "label": [[0, 1, "X"], None]},
        {"text": "a", "label": {"0": [0, 1, "X"]}},
        {"text": "a", "entities": [{"start": 0, "end": 1, "label": "X"}]},
        {"text": "a", "entities": [{"start_offset": 0, "label": "X"}]},
        {"text": "a", "entities": ["X"]},
        {"text": "a", "label": [[0, 1, "X"]], "spans": None},
        {"text": "a", "spans": [{"start": 0, "end": 1, "label": "X"}]},
        {},
    ],
)
def test_other_rows_stay_as_they_are(values):
    before = json.dumps(values)
    assert with_spans(values) is values
    assert json.dumps(values) == before


def test_the_row_given_is_never_changed():
    values = {"data": TEXT, "label": [[0, 3, "PER"]]}
    assert with_spans(values)["text"] == TEXT
    assert list(values) == ["data", "label"]


# Label Studio


def region(start, end, *labels, **more):
    value = {"start": start, "end": end, "text": TEXT[start:end], "labels": list(labels)}
    return {"id": "x", "from_name": "label", "to_name": "text", "type": "labels", "value": value} | more


def task(*results, text=TEXT, **more):
    return {"id": 7, "data": {"text": text}, "annotations": [{"id": 1, "result": list(results)}]} | more


def test_a_task_is_a_text_with_spans(tmp_path):
    whole = task(region(0, 3, "PER"), region(13, 17, "LOC"), predictions=[], created_at="2024-01-01", project=1)
    whole["data"] |= {"source": "mail", "stars": 4, "meta": {"x": 1}, "none": None}
    path = put(tmp_path, "a.json", [whole, task()])
    reader, rows = read(path)
    assert (reader.format, reader.columns) == ("label-studio", ["text", "id", "source", "stars", "none", "spans"])
    kept = {"id": 7, "source": "mail", "stars": 4, "none": None}
    # "source" is a text too: the one that results refer to counts.
    assert rows[0].values == {"text": TEXT, **kept, "spans": [ADA, ROME]}
    assert rows[1].values == {"text": TEXT, "id": 7, "spans": []}
    assert [row.where for row in rows] == [f"{path}:[0]", f"{path}:[1]"]


def test_a_region_with_several_labels_gives_a_span_for_each(tmp_path):
    (row,) = read_task(tmp_path, task(region(0, 3, "PER", "FIRST"), region(13, 17)))
    assert row.values["spans"] == [ADA, ADA | {"label": "FIRST"}]


def test_results_of_another_kind_are_left_out(tmp_path):
    choice = {"type": "choices", "to_name": "text", "value": {"choices": ["mail"]}}
    relation = {"type": "relation", "from_id": "x", "to_id": "y", "direction": "right"}
    (row,) = read_task(tmp_path, task(choice, region(0, 3, "PER"), relation))
    assert row.values["spans"] == [ADA]


def test_the_first_annotation_counts_that_was_not_cancelled(tmp_path):
    annotations = [
        {"was_cancelled": True, "result": [region(13, 17, "X")]},
        {"was_cancelled": False, "result": [region(0, 3, "PER")]},
        {"result": []},
    ]
    assert read_task(tmp_path, task(annotations=annotations))[0].values["spans"] == [ADA]


def test_a_task_that_nobody_annotated_has_no_spans(tmp_path):
    rows = read_task(
        tmp_path,
        task(annotations=[]),
        task(annotations=[{"was_cancelled": True, "result": []}]),
        {"data": {"text": TEXT}},
    )
    assert [row.error for row in rows] == [None] * 3
    assert [list(row.values) for row in rows] == [["text", "id"], ["text", "id"], ["text"]]


def test_old_versions_say_completions(tmp_path):
    old = {"id": 7, "data": {"text": TEXT}, "completions": [{"id": 1, "result": [region(0, 3, "PER")]}]}
    assert read_task(tmp_path, old)[0].values == {"text": TEXT, "id": 7, "spans": [ADA]}


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"body": TEXT}, {}),  # the only text
        ({"body": TEXT, "title": "T"}, {"to_name": "body"}),
        ({"body": TEXT, "title": "T"}, {"source": "$body"}),
        ({"body": TEXT, "title": "T"}, {"to_name": "doc"}),  # the one that the region quotes
        ({"body": TEXT, "text": "T"}, {"to_name": "body"}),
        ({"body": TEXT, "text": "T"}, {"to_name": "doc"}),
    ],
)
def test_the_annotated_text_is_found_under_any_name(tmp_path, data, named):
    values = read_task(tmp_path, task(region(0, 3, "PER", **named), data=data))[0].values
    assert (values["text"], values["spans"], "body" in values) == (TEXT, [ADA], False)
    assert values.get("title") == data.get("title")


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ({"id": 7, "annotations": []}, 'has no "data"; expected an object'),
        (task(data="a.txt"), 'has a text as "data"; expected an object'),
        (task(region(0, 3, "PER"), data={"n": 1}), 'its "data" holds no text; expected a text'),
        (
            task(data={"a": "x", "b": "y"}),
            'its "data" holds several texts (a, b); expected the annotated one as "text"',
        ),
        (
            task(region(0, 3, "A", to_name="a"), region(0, 3, "B", to_name="b"), data={"a": "x", "b": "y"}),
            "has regions of 2 texts (a, b); expected regions of one text in each task",
        ),
        (task(annotations={}), 'has an object as "annotations"; expected a list'),
        (task(annotations=[None]), "annotations[0] is null; expected an object"),
        (task(annotations=[{"id": 1}]), 'annotations[0] has no "result"; expected a list'),
        (task("x"), "annotations[0].result[0] is a text; expected an object"),
        (
            task(region(0, 3, "PER"), {"type": "labels"}),
            'annotations[0].result[1] has no "value"; expected an object',
        ),
        (
            task(region(0, 3, "PER", value={"end": 3, "labels": ["PER"]})),
            'annotations[0].result[0].value has no "start"; expected a whole number',
        ),
        (
            task(region(0, 3, "PER", value={"start": "/div[1]", "end": 3, "labels": ["PER"]})),
            'annotations[0].result[0].value has a text as "start"; expected a whole number',
        ),
        (
            task(region(0, 3, "PER", value={"start": 0, "end": 3})),
            'annotations[0].result[0].value has no "labels"; expected a list',
        ),
        (
            task(region(0, 3, 5)),
            'annotations[0].result[0].value has "labels" that are not texts; expected a list of texts',
        ),
        (["x"], "is a list; expected an object"),
    ],
)
def test_a_broken_task_is_a_row_that_names_place_and_key(tmp_path, broken, error):
    path = put(tmp_path, "a.json", [task(), broken, task()])
    reader, rows = read(path)
    assert (rows[1].where, rows[1].error) == (f"{path}:[1]", error)
    assert (rows[0].error, rows[2].error, reader.columns) == (None, None, ["text", "id", "spans"])


def test_a_file_of_nothing_but_broken_tasks_tells_their_errors(tmp_path):
    reader, rows = read(put(tmp_path, "a.json", [task(data={"n": 1})]))
    assert (reader.columns, rows[0].error) == (["text", "spans"], 'its "data" holds no text; expected a text')


# Label Studio's JSON-MIN


def minimal(*regions, **more):
    return {"id": 7, "label": list(regions), "annotator": 1, "annotation_id": 3, "created_at": "2024-01-01"} | more


def test_json_min_is_a_text_with_spans(tmp_path):
    regions = [region(0, 3, "PER", "FIRST")["value"], region(13, 17, "LOC")["value"]]
    own = {"id": 7, "annotator": 1, "annotation_id": 3, "created_at": "2024-01-01"}
    rows = read_task(
        tmp_path,
        minimal(*regions, text=TEXT, stars=4, kinds=["mail"]),
        minimal(*regions[1:], body=TEXT),
        minimal(*regions[1:], ner=TEXT, title="T"),
        minimal(text="So"),
        {"id": 7, "text": "So"},
    )
    assert [row.error for row in rows] == [None] * 5
    assert rows[0].values == {"text": TEXT, **own, "stars": 4, "spans": [ADA, ADA | {"label": "FIRST"}, ROME]}
    assert rows[1].values == {"text": TEXT, **own, "spans": [ROME]}
    assert rows[2].values == {"text": TEXT, **own, "title": "T", "spans": [ROME]}
    assert rows[3].values == {"text": "So", **own, "spans": []}
    assert rows[4].values == {"text": "So", "id": 7}  # nobody looked at it


def test_json_min_may_call_its_regions_anything(tmp_path):
    row = {"text": TEXT, "ner": [region(0, 3, "PER")["value"]], "places": [region(13, 17, "LOC")["value"]]}
    assert read_task(tmp_path, row)[0].values == {"text": TEXT, "spans": [ADA, ROME]}


def test_a_broken_row_of_json_min_names_its_place(tmp_path):
    good = region(0, 3, "PER")["value"]
    path = put(tmp_path, "a.json", [minimal(good, good | {"end": "3"}, text=TEXT), minimal(good), minimal(text=TEXT)])
    rows = read(path)[1]
    assert [row.error for row in rows] == [
        'label[1] has a text as "end"; expected a whole number',
        "it holds no text; expected a text",
        None,
    ]
    assert rows[1].where == f"{path}:[1]"


@pytest.mark.parametrize(("start", "end"), [(2, 6), (3, 7)], ids=["code points", "UTF-16"])
def test_the_quote_of_a_region_says_in_which_units_its_place_is_counted(tmp_path, start, end):
    region = {"type": "labels", "value": {"start": start, "end": end, "text": "Rome", "labels": ["LOC"]}}
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([{"data": {"text": "🙂 Rome fell"}, "annotations": [{"result": [region]}]}]), "utf-8")
    (row,) = open_rows(path)
    assert row.values["spans"] == [{"start": 2, "end": 6, "label": "LOC"}]


def test_a_region_that_quotes_another_text_is_an_error_of_its_row(tmp_path):
    region = {"type": "labels", "value": {"start": 0, "end": 4, "text": "Oslo", "labels": ["LOC"]}}
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([{"data": {"text": "Rome fell"}, "annotations": [{"result": [region]}]}]), "utf-8")
    (row,) = open_rows(path)
    assert "quotes 'Oslo', but the text reads 'Rome' at 0 to 4" in row.error
