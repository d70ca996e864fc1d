"""Answers in a .json file: an object of each row's id and its answer, as SQuAD's own scripts read it."""

from __future__ import annotations

import gzip
import json

import pytest
from conftest import write_csv, write_jsonl
from toy_tasks import fit_task, span_rows

import berthead
from berthead.errors import OutputError


@pytest.fixture(scope="module")
def reader(tiny_bert, tmp_path_factory):
    """A folder of a function that answers questions, or says that there is no answer."""
    folder = tmp_path_factory.mktemp("models") / "reader"
    fit_task(tiny_bert, "span", span_rows(60, unanswerable=True)).save(folder)
    return folder


@pytest.mark.parametrize("name", ["answers.json", "answers.json.gz"])
def test_answers_of_a_squad_file_are_read_by_its_scripts(reader, tmp_path, cli, name):
    asked = [{"id": f"q{n}", "question": row["question"], "answers": row["answers"]} for n, row in
             enumerate(span_rows(30, seed=3, unanswerable=True))]  # fmt: skip
    rows = span_rows(30, seed=3, unanswerable=True)
    paragraphs = [{"context": row["context"], "qas": [one]} for row, one in zip(rows, asked, strict=True)]
    (tmp_path / "dev.json").write_text(
        json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]})
    )
    ran = cli("predict", reader, tmp_path / "dev.json", "--out", tmp_path / name, "--part-rows", 7)
    assert ran.code == 0, ran.err
    opened = gzip.open if name.endswith("gz") else open
    with opened(tmp_path / name, "rb") as file:
        found = json.load(file)
    model = berthead.load(reader)
    alone = model.predict([(row["question"], row["context"]) for row in rows])
    assert found == {f"q{n}": one.answer or "" for n, one in enumerate(alone)}
    assert set(found.values()) == {"red", ""}


def test_other_answers_keep_their_type(toy_model, tmp_path, cli):
    data = write_jsonl(tmp_path / "in.jsonl", [{"id": 7, "text": "good cat"}, {"id": 'é"', "text": "bad dog"}])
    assert cli("predict", toy_model, data, "--out", tmp_path / "out.json").code == 0
    assert json.loads((tmp_path / "out.json").read_text()) == {"7": "positive", 'é"': "negative"}


@pytest.mark.parametrize(
    ("rows", "saw"),
    [
        ([{"text": "good cat"}], 'has no id, under which a .json file holds its answer; expected a column "id"'),
        (
            [{"id": "a", "text": "good"}, {"id": "a", "text": "bad"}],
            'id "a": occurs twice; expected an id for each row',
        ),
    ],
)
def test_rows_without_an_id_of_their_own_are_told(toy_model, tmp_path, rows, saw):
    data = write_csv(tmp_path / "in.csv", rows)
    model = berthead.load(toy_model)
    if "id" in rows[0]:
        with pytest.raises(OutputError, match=saw):
            model.predict_file(data, tmp_path / "out.json")
    else:
        summary = model.predict_file(data, tmp_path / "out.json")
        assert summary.failed == 1
        assert saw in summary.errors[0]
    assert not (tmp_path / "out.json").exists() or json.loads((tmp_path / "out.json").read_text()) == {}


def test_an_empty_input_gives_an_empty_object(toy_model, tmp_path):
    (tmp_path / "in.csv").write_text("id,text\n")
    berthead.load(toy_model).predict_file(tmp_path / "in.csv", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == {}
