"""Spans that cut words: scored as they were given, and found where pieces of words get tags."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import write_csv
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from toy_tasks import QUICK, tag_rows

import berthead
from berthead.errors import UsageError
from berthead.tasks.entity_scores import span_scores

TEXTS = [
    "the cats ran",
    "a dogs sat",
    "cats on the mat",
    "the dog ran",
    "dogs and cats",
    "good cats",
    "the mats",
    "cat",
]


def animal_rows(texts: list[str], times: int = 6) -> list[dict]:
    """The animal without its plural is a span, which cuts most words that it stands in."""
    return [
        {"text": text, "spans": [
            {"start": text.index(one), "end": text.index(one) + 3, "label": "ANIMAL"}
            for one in ("cat", "dog") if one in text
        ]}
        for text in texts
    ] * times  # fmt: skip


def fit(rows, encoder, **options):
    return berthead.fit(rows, encoder=str(encoder), task="tag", quiet=True, **QUICK | {"epochs": 25} | options)


@pytest.fixture(scope="module")
def by_word(tiny_bert):
    return fit(animal_rows(TEXTS), tiny_bert, tag_unit="word")


@pytest.fixture(scope="module")
def by_piece(tiny_bert):
    return fit(animal_rows(TEXTS), tiny_bert)


def places(prediction) -> list[tuple[int, int, str]]:
    return [(span.start, span.end, span.label) for span in prediction.spans]


# Scores


def test_a_span_that_cuts_a_word_is_not_found_by_words(by_word):
    rows = animal_rows(TEXTS, 1)
    scores = by_word.evaluate(rows)
    wanted = [{(one["start"], one["end"], one["label"]) for one in row["spans"]} for row in rows]
    found = [set(places(one)) for one in by_word.predict([row["text"] for row in rows])]
    right = sum(len(one & other) for one, other in zip(wanted, found, strict=True))
    assert scores["recall"] == right / sum(map(len, wanted)) == 2 / 8
    assert scores["precision"] == right / sum(map(len, found))
    assert scores["token_accuracy"] == 1.0
    assert scores["per_label"][0]["support"] == 8


def test_both_sides_of_a_comparison_count_as_scores_do(by_word, by_piece):
    found = berthead.compare(by_word, by_piece, animal_rows(TEXTS, 1))
    assert found.rows == len(TEXTS)
    assert found.agreement < 1


def characters(spans: list[tuple[int, int, str]], length: int) -> list[str]:
    tags = ["O"] * length
    for start, end, label in spans:
        tags[start:end] = [f"B-{label}"] + [f"I-{label}"] * (end - start - 1)
    return tags


@st.composite
def some_spans(draw):
    edges = sorted(draw(st.sets(st.integers(0, 12), max_size=6)))
    pairs = zip(edges[::2], edges[1::2], strict=False)
    return [(start, end, draw(st.sampled_from(["A", "B", "C"]))) for start, end in pairs]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(some_spans(), some_spans()), min_size=1, max_size=4))
def test_scores_of_spans_are_those_of_seqeval_by_characters(rows):
    gold, predicted = ([list(row) for row in side] for side in zip(*rows, strict=True))
    scores = span_scores(gold, predicted, 1.0)
    theirs = [[characters(row, 13) for row in side] for side in (gold, predicted)]
    quiet = {"zero_division": 0}
    assert scores["f1"] == pytest.approx(f1_score(*theirs, **quiet))
    assert scores["precision"] == pytest.approx(precision_score(*theirs, **quiet))
    assert scores["recall"] == pytest.approx(recall_score(*theirs, **quiet))
    if any(map(bool, gold + predicted)):
        report = classification_report(*theirs, output_dict=True, **quiet)
        assert scores["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])


def test_white_space_at_the_ends_of_a_span_is_not_counted(by_word):
    rows = [{"text": "cat  on a mat", "spans": [{"start": 0, "end": 5, "label": "ANIMAL"}]}]
    assert by_word.evaluate(rows)["f1"] == 1.0


# Pieces


def test_pieces_are_taken_where_spans_cut_words(by_piece, by_word):
    assert by_piece.info()["task"]["unit"] == "piece"
    assert "unit" not in by_word.info()["task"]
    (note,) = [one for one in by_piece.warnings if "tag_unit" in one]
    assert note.startswith("36 of 48 spans begin or end inside a word, so each piece of a word gets a tag")
    assert "begins or ends inside a word" in " ".join(by_word.warnings)
    assert by_piece.evaluate(animal_rows(TEXTS, 1))["f1"] == 1.0
    for row, answer in zip(animal_rows(TEXTS, 1), by_piece.predict(TEXTS), strict=True):
        assert places(answer) == sorted((one["start"], one["end"], one["label"]) for one in row["spans"])
        assert all(row["text"][one.start : one.end] == one.text for one in answer.spans)


def test_words_are_kept_where_spans_are_words(tiny_bert):
    rows = [{"text": "the cat ran", "spans": [{"start": 4, "end": 7, "label": "ANIMAL"}]}] * 60
    slip = {"text": "the cats", "spans": [{"start": 4, "end": 7, "label": "ANIMAL"}]}
    assert "unit" not in fit([*rows, slip], tiny_bert, epochs=1).info()["task"]
    assert fit(rows, tiny_bert, epochs=1, tag_unit="piece").info()["task"]["unit"] == "piece"


def test_the_folder_says_so_and_older_readers_refuse_it(by_piece, by_word, tmp_path):
    by_piece.save(tmp_path / "piece")
    by_word.save(tmp_path / "word")
    record = json.loads((tmp_path / "piece" / "berthead.json").read_text(encoding="utf-8"))
    assert record["format_version"] == 5
    assert json.loads((tmp_path / "word" / "berthead.json").read_text(encoding="utf-8"))["format_version"] < 5
    again = berthead.load(tmp_path / "piece")
    assert again.verify() < 1e-5
    assert again.predict(TEXTS) == by_piece.predict(TEXTS)
    record["task"]["unit"] = "letter"
    (tmp_path / "piece" / "berthead.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(berthead.errors.ModelError, match="unit is 'letter'; expected word or piece"):
        berthead.load(tmp_path / "piece")


def test_an_exported_function_tags_pieces_too(by_piece, tmp_path):
    pytest.importorskip("onnxruntime")
    by_piece.export_onnx(tmp_path / "onnx")
    assert json.loads((tmp_path / "onnx" / "berthead.json").read_text(encoding="utf-8"))["export"]["version"] == 2
    assert [places(one) for one in berthead.load(tmp_path / "onnx").predict(TEXTS)] == [
        places(one) for one in by_piece.predict(TEXTS)
    ]


def test_joined_functions_of_words_and_pieces_answer_as_alone(tiny_bert):
    rows = animal_rows(TEXTS)
    one, other = (fit(rows, tiny_bert, adapt="frozen", epochs=2, tag_unit=unit) for unit in ("word", "piece"))
    both = berthead.join({"word": one, "piece": other}).predict(TEXTS)
    for name, alone in (("word", one), ("piece", other)):
        for joined, answer in zip(both, alone.predict(TEXTS), strict=True):
            assert places(joined[name]) == places(answer)


def test_files_are_scored_and_answered(by_piece, tmp_path, cli):
    by_piece.save(tmp_path / "m")
    rows = [{"text": row["text"], "spans": json.dumps(row["spans"])} for row in animal_rows(TEXTS, 1)]
    data = write_csv(tmp_path / "rows.csv", rows)
    assert json.loads(cli("eval", tmp_path / "m", data, "--json").out)["f1"] == 1.0
    assert cli("predict", tmp_path / "m", data, "--out", tmp_path / "out.jsonl").code == 0
    first = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert [(one["start"], one["end"]) for one in first["prediction"]] == [(4, 7)]


def test_a_joint_function_tags_pieces_and_counts_spans_as_given(tiny_bert):
    rows = [row | {"intent": "many" if "s" in row["text"] else "one"} for row in animal_rows(TEXTS)]
    options = {"intent": "intent", "label": "spans", "text": "text"}
    by_piece, by_word = (
        berthead.fit(
            rows, encoder=str(tiny_bert), task="joint", quiet=True, tag_unit=unit, **QUICK | {"epochs": 25} | options
        )
        for unit in ("auto", "word")
    )
    assert by_piece.info()["task"]["tag"]["unit"] == "piece"
    assert by_piece.evaluate(rows)["exact_match"] == 1.0
    scores = by_word.evaluate(rows)
    assert scores["exact_match"] == pytest.approx(
        np.mean([row["text"] in ("the dog ran", "cat", "the mats") for row in rows])
    )


@pytest.mark.parametrize(
    ("rows", "options", "saw"),
    [
        (tag_rows(8), {"task": "tag"}, 'tag_unit="piece": the rows hold tokens, and each has a tag already'),
        ([{"text": "a", "label": one} for one in "xyxyxy"], {}, 'tag_unit: is piece, but task="classify"'),
    ],
)  # fmt: skip
def test_what_has_no_pieces_refuses_them(tiny_bert, rows, options, saw):
    with pytest.raises(UsageError, match=saw):
        berthead.fit(rows, encoder=str(tiny_bert), tag_unit="piece", quiet=True, **options)
