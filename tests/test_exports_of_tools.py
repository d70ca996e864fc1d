"""Rows as annotation tools and published data sets write them: read as what they say, or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers
from conftest import write_jsonl
from toy_tasks import QUICK, choose_rows

import berthead
from berthead.data.examples import Columns, to_example
from berthead.errors import DataError, UsageError
from berthead.formats.offsets import is_whole, utf16_place
from berthead.formats.readers import open_rows
from berthead.records import Example
from berthead.tasks import find_task

TEXT = "Ann met Bo in Rome"
MARKS = [(0, 3, "PER"), (8, 10, "PER"), (14, 18, "LOC")]
OBJECTS = [{"start": start, "end": end, "label": label} for start, end, label in MARKS]
TOKENS = [{"text": TEXT[a:b], "start": a, "end": b, "id": n} for n, (a, b) in
          enumerate([(0, 3), (4, 7), (8, 10), (11, 13), (14, 18)])]  # fmt: skip
ROWS = {
    "prodigy": {"text": TEXT, "tokens": TOKENS, "spans": OBJECTS, "answer": "accept", "_input_hash": 1},
    "spacy to_json": {"text": TEXT, "ents": OBJECTS, "tokens": [{"id": 0, "start": 0, "end": 3}]},
    "a pipeline": {"text": TEXT, "entities": [
        {"entity_group": label, "start": start, "end": end, "word": TEXT[start:end], "score": 0.9}
        for start, end, label in MARKS]},
    "doccano": {"text": TEXT, "label": [list(mark) for mark in MARKS]},
    "doccano, older": {"text": TEXT, "annotations": [
        {"label": label, "start_offset": start, "end_offset": end, "user": 1} for start, end, label in MARKS]},
    "doccano, relations": {"text": TEXT, "entities": [
        {"id": 1, "label": label, "start_offset": start, "end_offset": end} for start, end, label in MARKS]},
}  # fmt: skip


def examples(path, task="tag", **columns):
    kind = find_task(task)
    reader = open_rows(path)
    found = Columns.find(kind.form, columns, reader.columns, "file")
    return [to_example(row, found, kind.read, kind.settled) for row in reader]


def marks_of(example: Example) -> list[tuple]:
    assert example.error is None, example.error
    return [tuple(mark) for mark in example.target]


# Spans of one row an object


@pytest.mark.parametrize("tool", ROWS)
def test_a_row_of_a_tool_has_its_spans(tmp_path, tool):
    (found,) = examples(write_jsonl(tmp_path / "a.jsonl", [ROWS[tool]]))
    assert (found.text, found.words, marks_of(found)) == (TEXT, None, MARKS)


def test_numbers_of_labels_are_their_names_where_there_are_no_others(tmp_path):
    row = {"text": TEXT, "annotations": [{"label": 7, "start_offset": 0, "end_offset": 3}]}
    assert marks_of(examples(write_jsonl(tmp_path / "a.jsonl", [row]))[0]) == [(0, 3, "7")]


def test_what_prodigy_did_not_accept_is_no_row(tmp_path):
    rows = [ROWS["prodigy"] | {"answer": answer} for answer in ("accept", "reject", "ignore")]
    rows.append({key: value for key, value in ROWS["prodigy"].items() if key != "spans"})
    found = examples(write_jsonl(tmp_path / "a.jsonl", rows))
    assert [one.error for one in found] == [
        None, 'has "answer": "reject"; expected "accept"', 'has "answer": "ignore"; expected "accept"', None,
    ]  # fmt: skip
    assert found[-1].target == ()


def test_gliners_tokens_get_tags(tmp_path):
    row = {"tokenized_text": TEXT.split(), "ner": [[0, 0, "PER"], [2, 3, "X"]]}
    (found,) = examples(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert found.words == tuple(TEXT.split())
    assert found.target == ("B-PER", "O", "B-X", "I-X", "O")
    wrong = [row | {"ner": ner} for ner in ([[0, 9, "X"]], [[0, 1, "X"], [1, 2, "Y"]], [["a", 1, "X"]])]
    saw = [one.error for one in examples(write_jsonl(tmp_path / "b.jsonl", [row, *wrong]))][1:]
    assert ["0 to 4" in saw[0], "overlaps" in saw[1], "expected [first token, last token" in saw[2]] == [True] * 3


@pytest.mark.parametrize("document", [
    [[TEXT, {"entities": [list(mark) for mark in MARKS]}], None],
    {"classes": ["PER"], "annotations": [[TEXT, {"entities": [list(mark) for mark in MARKS]}], None]},
])  # fmt: skip
def test_training_data_of_spacy(tmp_path, document):
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert open_rows(tmp_path / "a.json").format == "spacy"
    (found,) = examples(tmp_path / "a.json")
    assert (found.text, marks_of(found)) == (TEXT, MARKS)


# Label Studio


def task(text, regions, **annotation):
    return {"data": {"text": text}, "annotations": [{"result": regions} | annotation]}


def region(start, end, label="X", quote=None):
    quoted = {} if quote is None else {"text": quote}
    return {"type": "labels", "value": {"start": start, "end": end, "labels": [label]} | quoted}


def first_of(tmp_path, *tasks, kind="tag"):
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    return examples(tmp_path / "a.json", kind)[0]


@pytest.mark.parametrize(
    ("text", "given", "quote"),
    [
        ("👍🏽 ok Ann", (8, 11), "Ann"),
        ("👍🏽 ok Ann", (8, 11), None),  # behind the end in code points
        ("👨🏻\u200d🚒 men drive trucks now", (18, 24), None),  # inside a word in code points
        ("a\r\nb\r\nAnn sat", (4, 7), "Ann"),  # a browser counts one character a line end
        ("👍\r\nAnn", (3, 6), "Ann"),
    ],
)
def test_places_are_those_that_a_browser_counts(tmp_path, text, given, quote):
    (mark,) = marks_of(first_of(tmp_path, task(text, [region(*given, quote=quote)])))
    assert text[mark[0] : mark[1]] in ("Ann", "trucks")


def test_places_in_code_points_stay(tmp_path):
    assert marks_of(first_of(tmp_path, task("👍 ok Ann", [region(5, 8, quote="Ann")]))) == [(5, 8, "X")]


def test_regions_of_hypertext_have_their_global_offsets(tmp_path):
    value = {"start": "/p[1]", "end": "/p[1]", "startOffset": 9, "globalOffsets": {"start": 0, "end": 3},
             "text": "Ann", "hypertextlabels": ["PER"]}  # fmt: skip
    assert marks_of(first_of(tmp_path, task("Ann sat", [{"type": "hypertextlabels", "value": value}]))) == [
        (0, 3, "PER")
    ]


def test_the_ground_truth_counts(tmp_path):
    one, other = ({"result": [region(0, 3, label)]} for label in ("FIRST", "TRUE"))
    found = {"data": {"text": "Ann sat"}, "annotations": [one, other | {"ground_truth": True}]}
    assert marks_of(first_of(tmp_path, found)) == [(0, 3, "TRUE")]


def test_choices_are_the_label_of_a_text(tmp_path):
    chosen = [{"type": "choices", "from_name": "mood", "value": {"choices": ["good"]}}]
    assert first_of(tmp_path, task("fine", chosen), kind="classify").target == "good"
    both = [*chosen, {"type": "choices", "from_name": "topic", "value": {"choices": ["a", "b"]}}]
    (tmp_path / "b.json").write_text(json.dumps([task("fine", both)]))
    assert next(iter(open_rows(tmp_path / "b.json"))).values == {"text": "fine", "mood": "good", "topic": ["a", "b"]}


# Offsets of other programs


def test_spans_in_utf16_units_are_told_and_read(tmp_path, tiny_bert):
    text = "👍🏽 ok the cat ran"
    units = text.encode("utf-16-le")
    start = len(units[: units.index("cat".encode("utf-16-le"))]) // 2
    rows = [{"text": text, "label": [[start, start + 3, "X"]]}]
    (found,) = examples(write_jsonl(tmp_path / "a.jsonl", rows))
    assert marks_of(found) == [(text.index("cat"), text.index("cat") + 3, "X")]
    model = berthead.fit(tmp_path / "a.jsonl", task="tag", encoder=str(tiny_bert), quiet=True, **QUICK)
    assert any("look like UTF-16 offsets" in one for one in model.warnings)


@pytest.mark.parametrize("text", ["Ann 👍 sat", "👍👍", "abc", "𝒳 y"])
def test_utf16_places_are_pythons(text):
    units = text.encode("utf-16-le")
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            there = [len(text[:place].encode("utf-16-le")) // 2 for place in (start, end)]
            assert utf16_place(text, *there) == (start, end)
    assert utf16_place(text, 0, len(units) // 2 + 1) is None
    assert utf16_place("👍", 1, 2) is None


@pytest.mark.parametrize(
    ("place", "whole"), [((0, 3), True), ((0, 2), False), ((1, 3), False), ((3, 7), False), ((4, 9), False)]
)
def test_whole_words(place, whole):
    assert is_whole("Ann sat", *place) == whole


# Tags that are numbers


def test_tags_that_are_numbers_get_their_names(tmp_path, tiny_bert, cli):
    rows = [
        {"tokens": ["good", "cat"], "ner_tags": [1, 0]},
        {"tokens": ["a", "good", "great"], "ner_tags": [0, 1, 2]},
    ] * 4
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    flags = [
        "--task",
        "tag",
        "--encoder",
        tiny_bert,
        "--epochs",
        12,
        "--lr",
        3e-3,
        "--batch",
        4,
        "--valid",
        0,
        "--quiet",
    ]
    refused = cli("fit", data, *flags, "--out", tmp_path / "m")
    assert refused.code == 3
    assert "holds numbers, such as 1; expected tags. Name them: --tag-names O,B-PER,..." in refused.err
    (tmp_path / "names.txt").write_text("O\nB-POS\nI-POS\n")
    assert cli("fit", data, *flags, "--tag-names", tmp_path / "names.txt", "--out", tmp_path / "m").code == 0
    assert berthead.load(tmp_path / "m").artifact.task.tags == ("O", "B-POS", "I-POS")
    assert json.loads(cli("eval", tmp_path / "m", data, "--json").out)["f1"] == 1.0
    bad = write_jsonl(tmp_path / "b.jsonl", [{"tokens": ["a"], "ner_tags": [3]}])
    assert 'column "ner_tags" holds the tag 3; expected 0 to 2' in cli("eval", tmp_path / "m", bad).err


@pytest.mark.parametrize(("names", "task", "saw"), [
    ("O", "tag", "has 1 name"), ("O,B-X,O", "tag", "has a name twice"), ("a,b", "classify", "has no tags"),
])  # fmt: skip
def test_names_of_tags_that_cannot_be_are_refused(tiny_bert, names, task, saw):
    with pytest.raises(UsageError, match=saw):
        berthead.fit([{"tokens": ["a"], "tags": [1]}], task=task, tag_names=names, encoder=str(tiny_bert), quiet=True)


# Questions


def test_paragraphs_alone_are_questions(tmp_path):
    asked = {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}], "is_impossible": False}
    none = {"id": "2", "question": "Why?", "answers": [], "is_impossible": True}
    unknown = {"id": "3", "question": "When?", "answers": [], "is_impossible": False}
    (tmp_path / "a.json").write_text(json.dumps([{"context": "Ann sat.", "qas": [asked, none, unknown]}]))
    reader = open_rows(tmp_path / "a.json")
    assert reader.format == "squad"
    found = examples(tmp_path / "a.json", "span")
    assert [one.where.rsplit(":", 1)[1] for one in found] == ["[0].qas[0]", "[0].qas[1]", "[0].qas[2]"]
    assert [tuple(one) for one in found[0].target] == [("Ann", 0)]
    assert found[1].target == ()
    assert "expected answers" in found[2].error


@pytest.mark.parametrize("answers", [
    {"text": [""], "answer_start": [0]}, {"text": [""], "answer_start": [-1]}, [{"text": "", "answer_start": -1}], [],
])  # fmt: skip
def test_no_answer_is_written_in_many_ways(tmp_path, answers):
    row = {"question": "Who?", "context": "Ann sat.", "answers": answers}
    assert examples(write_jsonl(tmp_path / "a.jsonl", [row]), "span")[0].target == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_an_answer_that_stands_twice_is_found_by_other_offsets(tmp_path, encoding):
    context = "é 👍 a cat, the cat"
    place = context.rindex("cat")
    start = len(context[:place].encode(encoding)) // (2 if "16" in encoding else 1)
    row = {"question": "Who?", "context": context, "answers": [{"text": "cat", "answer_start": start}]}
    (found,) = examples(write_jsonl(tmp_path / "a.jsonl", [row]), "span")
    assert found.target[0].start == place
    assert "does not count characters" in found.note


# Choices


def test_a_context_is_read_before_question_and_choice(tiny_bert, tmp_path):
    rows = [
        {"article": row["question"], "question": "which one", "options": row["choices"], "answer": "ABCD"[row["label"]]}
        for row in choose_rows(40)
    ]
    model = berthead.fit(rows, task="choose", encoder=str(tiny_bert), quiet=True, **QUICK)
    assert model.info()["columns"]["pair"] == "article"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    example = Example(rows[0]["question"], rows[0]["article"], choices=tuple(rows[0]["options"]))
    (encoded,) = model.artifact.task.encode(model.artifact.tokenizer, [example], model.artifact.policy)
    for row, choice in zip(encoded.rows, rows[0]["options"], strict=True):
        theirs = tokenizer(rows[0]["article"], f"which one {choice}")
        assert row.ids.tolist() == theirs["input_ids"]
        assert row.segments.tolist() == theirs["token_type_ids"]
    model.save(tmp_path / "m")
    again = berthead.load(tmp_path / "m")
    assert again.verify() < 1e-5
    (one, two) = again.predict([rows[0], rows[0] | {"article": "great great great red red"}])
    assert one.answer == model.predict([rows[0]])[0].answer
    assert one.probabilities != two.probabilities
    assert model.evaluate(rows)["accuracy"] > 0.9
    with pytest.raises(DataError, match=r"expected a dict: this model reads a context too"):
        again.predict(("which one", ["a", "b"]))
    with pytest.raises(DataError, match="article"):
        again.predict([{"question": "which one", "options": ["a", "b"]}])


def test_a_function_without_a_context_reads_none(tiny_bert):
    rows = [row | {"context": "a cat"} for row in choose_rows(24)]
    model = berthead.fit(choose_rows(24), task="choose", encoder=str(tiny_bert), quiet=True, **QUICK | {"epochs": 1})
    alone, beside = (model.predict(one) for one in (choose_rows(24), rows))
    assert [one.probabilities for one in alone] == [one.probabilities for one in beside]


def test_swags_beginning_is_read(tmp_path):
    row = {"sent1": "Ann sat.", "sent2": "She", "ending0": "ran.", "ending1": "slept.", "label": 1}
    (found,) = examples(write_jsonl(tmp_path / "a.jsonl", [row]), "choose")
    assert (found.pair, found.text, found.choices) == ("Ann sat.", "She", ("ran.", "slept."))


@pytest.mark.parametrize(("names", "key", "style", "number"), [
    (["A", "B", "C"], "B", "letter", 1), (["1", "2", "3"], "2", "text", 1), (["x", "y", "z"], "z", "text", 2),
])  # fmt: skip
def test_choices_of_arc_have_names(tmp_path, names, key, style, number):
    row = {"question": "Blue?", "choices": {"text": ["sky", "grass", "coal"], "label": names}, "answerKey": key}
    (found,) = examples(write_jsonl(tmp_path / "a.jsonl", [row]), "choose")
    assert found.choices == ("sky", "grass", "coal")
    assert found.target.readings == ((style, number),)


@pytest.mark.parametrize(("choices", "labels", "said"), [
    (["1", "2", "0"], ["0", "1", "2"], "12 such rows, read as the text"),
    (["1", "2", "0"], [0, 1, 2], "12 such rows, read as the number"),
    (["3", "4"], ["3", "4"], None),
    (["sky", "coal", "sea"], [1, 2, 1], "no label is 0: numbers of choices begin at 0"),
])  # fmt: skip
def test_labels_that_can_be_read_in_two_ways_are_told(tiny_bert, choices, labels, said):
    rows = [{"question": "which ?", "choices": choices, "label": labels[n % len(labels)]} for n in range(12)]
    model = berthead.fit(rows, task="choose", encoder=str(tiny_bert), quiet=True, **QUICK | {"epochs": 1})
    told = [one for one in model.warnings if "label" in one]
    assert (said in told[0]) if said else not told
    assert np.isfinite(model.predict(("which ?", choices)).score)


def test_a_number_behind_the_last_choice_gets_a_hint(tmp_path):
    row = {"question": "which ?", "choices": ["a", "b"], "label": 2}
    assert examples(write_jsonl(tmp_path / "a.jsonl", [row]), "choose")[0].error.endswith("numbers begin at 0")
