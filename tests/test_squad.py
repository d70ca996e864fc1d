"""Questions of SQuAD files, and JSON documents that are something else."""

from __future__ import annotations

import copy
import gzip
import io
import json
from pathlib import Path

import pytest

from berthead.errors import DataError
from berthead.formats.readers import count_rows, format_of, open_rows

CONTEXT = "Rome fell in 476. Nobody wept."
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Rome",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {"id": "q1", "question": "When?", "answers": [{"text": "476", "answer_start": 13}]},
                        {"id": "q2", "question": "Why?", "answers": [], "is_impossible": True},
                    ],
                },
            ],
        },
        {
            "paragraphs": [
                {
                    "context": "So.",
                    "qas": [{"id": 3, "question": "What?", "answers": [], "is_impossible": False, "more": 1}],
                },
                {"context": "Empty.", "qas": []},
                {"context": "Other.", "qas": [{"id": "q4", "question": "Who?"}]},
            ]
        },
    ],
}


def put(folder: Path, name: str, content) -> str:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


def read(path, format=None):
    with open_rows(path, format=format) as reader:
        return reader, list(reader)


def changed(*path, **changes):
    """SQUAD with other values somewhere; a value None takes the key away."""
    document = copy.deepcopy(SQUAD)
    place = document
    for step in path:
        place = place[step]
    for key, value in changes.items():
        if value is None:
            del place[key]
        else:
            place[key] = value
    return document


@pytest.mark.parametrize("name", ["dev.json", "dev.json.gz", "DEV.JSON"])
@pytest.mark.parametrize("format", [None, "json", "squad"])
def test_a_question_is_a_row(tmp_path, name, format):
    path = put(tmp_path, name, SQUAD)
    reader, rows = read(path, format)
    assert (reader.format, reader.notes) == ("squad", [])
    assert reader.columns == ["id", "question", "context", "answers", "title", "is_impossible"]
    assert [row.error for row in rows] == [None] * 4
    answers = [{"text": "476", "answer_start": 13}]
    first = {"id": "q1", "question": "When?", "context": CONTEXT, "answers": answers, "title": "Rome"}
    assert [row.values for row in rows] == [
        first,
        first | {"id": "q2", "question": "Why?", "answers": [], "is_impossible": True},
        {"id": 3, "question": "What?", "context": "So.", "is_impossible": False},
        {"id": "q4", "question": "Who?", "context": "Other."},
    ]
    assert [row.where for row in rows] == [
        f"{path}:data[0].paragraphs[0].qas[0]",
        f"{path}:data[0].paragraphs[0].qas[1]",
        f"{path}:data[1].paragraphs[0].qas[0]",
        f"{path}:data[1].paragraphs[2].qas[0]",
    ]
    assert count_rows(path) is None
    assert format_of(str(path))[0] == "json"  # written there, it holds answers by id


def test_an_impossible_question_needs_no_answers(tmp_path):
    path = put(tmp_path, "a.json", changed("data", 0, "paragraphs", 0, "qas", 1, answers=None))
    assert read(path)[1][1].values["answers"] == []


def test_the_offsets_are_those_of_python(tmp_path):
    context = "𝒳 😀 Rome fell"
    question = {"question": "?", "answers": [{"text": "Rome", "answer_start": 4}]}
    document = {"data": [{"paragraphs": [{"context": context, "qas": [question]}]}]}
    written = json.dumps(document, ensure_ascii=False).encode()
    for data in (written, b"\xef\xbb\xbf" + written, written.decode().encode("utf-16"), json.dumps(document).encode()):
        (row,) = read(put(tmp_path, "a.json", data))[1]
        assert row.values["context"][4:8] == "Rome"
    assert "id" not in row.values


ARTICLE, PARAGRAPH = ("data", 0), ("data", 0, "paragraphs", 0)
QUESTION, ANSWER = (*PARAGRAPH, "qas", 0), (*PARAGRAPH, "qas", 0, "answers", 0)


@pytest.mark.parametrize(
    ("path", "changes", "where", "error"),
    [
        (ARTICLE, {"paragraphs": None}, "data[0]", 'has no "paragraphs"; expected a list'),
        (ARTICLE, {"paragraphs": {}}, "data[0]", 'has an object as "paragraphs"; expected a list'),
        (ARTICLE, {"paragraphs": ["So"]}, "data[0].paragraphs[0]", "is a text; expected an object"),
        (PARAGRAPH, {"qas": None}, "data[0].paragraphs[0]", 'has no "qas"; expected a list'),
        (
            PARAGRAPH,
            {"context": None},
            "data[0].paragraphs[0].qas[0]",
            'its paragraph, data[0].paragraphs[0], has no "context"; expected a text',
        ),
        (
            PARAGRAPH,
            {"context": 7},
            "data[0].paragraphs[0].qas[0]",
            'its paragraph, data[0].paragraphs[0], has a number as "context"; expected a text',
        ),
        (PARAGRAPH, {"qas": [[]]}, "data[0].paragraphs[0].qas[0]", "is a list; expected an object"),
        (QUESTION, {"question": None}, "data[0].paragraphs[0].qas[0]", 'has no "question"; expected a text'),
        (QUESTION, {"question": ["?"]}, "data[0].paragraphs[0].qas[0]", 'has a list as "question"; expected a text'),
        (QUESTION, {"id": [1]}, "data[0].paragraphs[0].qas[0]", 'has a list as "id"; expected a text or a number'),
        (QUESTION, {"answers": "476"}, "data[0].paragraphs[0].qas[0]", 'has a text as "answers"; expected a list'),
        (
            QUESTION,
            {"answers": {"text": ["476"], "answer_start": [13]}},
            "data[0].paragraphs[0].qas[0]",
            'has an object as "answers"; expected a list',
        ),
        (QUESTION, {"answers": ["476"]}, "data[0].paragraphs[0].qas[0]", "answers[0] is a text; expected an object"),
        (
            QUESTION,
            {"is_impossible": "no"},
            "data[0].paragraphs[0].qas[0]",
            'has a text as "is_impossible"; expected true or false',
        ),
        (
            QUESTION,
            {"is_impossible": True},
            "data[0].paragraphs[0].qas[0]",
            'has "answers" although "is_impossible" is true; expected [], or "is_impossible": false',
        ),
        (ANSWER, {"text": None}, "data[0].paragraphs[0].qas[0]", 'answers[0] has no "text"; expected a text'),
        (
            ANSWER,
            {"answer_start": "13"},
            "data[0].paragraphs[0].qas[0]",
            'answers[0] has a text as "answer_start"; expected a whole number',
        ),
        (
            ANSWER,
            {"answer_start": True},
            "data[0].paragraphs[0].qas[0]",
            'answers[0] has true or false as "answer_start"; expected a whole number',
        ),
    ],
)
def test_a_fault_is_a_row_that_names_place_and_key(tmp_path, path, changes, where, error):
    name = put(tmp_path, "a.json", changed(*path, **changes))
    reader, rows = read(name)
    assert (rows[0].where, rows[0].error) == (f"{name}:{where}", error)
    assert [row.error for row in rows[-2:]] == [None, None]  # reading went on
    assert reader.columns[:3] == ["id", "question", "context"]


def test_what_a_bad_question_is_stays_known(tmp_path):
    rows = read(put(tmp_path, "a.json", changed(*PARAGRAPH, context=None)))[1]
    assert [row.values for row in rows[:2]] == [
        {"id": "q1", "question": "When?", "title": "Rome"},
        {"id": "q2", "question": "Why?", "title": "Rome"},
    ]


def test_a_file_of_nothing_but_bad_questions_tells_their_errors(tmp_path):
    document = {"data": [{"paragraphs": [{"qas": [{"question": "?"}]}]}]}
    reader, rows = read(put(tmp_path, "a.json", document))
    assert reader.columns == ["question", "context", "answers"]
    assert 'has no "context"' in rows[0].error


# JSON that is something else


@pytest.mark.parametrize(
    ("document", "saw"),
    [
        ({"rows": [], "n": 1}, 'is a JSON object with the keys "rows", "n"; expected a SQuAD document, such as '),
        (
            {"data": [{"text": "a"}]},
            'is a JSON object with the keys "data"; none of "data" has "paragraphs"; expected a SQuAD',
        ),
        ({}, "is an empty JSON document; expected a SQuAD document, such as "),
        ([], "is an empty JSON document; expected a SQuAD document, such as "),
        (["a", "b"], "is a JSON list that begins with a text; expected a SQuAD document, such as "),
        ("SQuAD", "holds nothing but a text; expected a SQuAD document, such as "),
        (None, "holds nothing but null; expected a SQuAD document, such as "),
        (12, "holds nothing but a number; expected a SQuAD document, such as "),
        ({"data": [{"paragraphs": []}]}, "is a SQuAD document without a question; expected questions under qas"),
    ],
)
def test_other_documents_are_refused_with_what_was_seen_and_allowed(tmp_path, document, saw):
    path = put(tmp_path, "a.json", document)
    with pytest.raises(DataError) as caught:
        open_rows(path)
    assert str(caught.value).startswith(f"{path}: {saw}")
    assert str(caught.value).endswith("Check that this is the right file.")
    assert "without" in saw or "or a list of objects" in str(caught.value)


def test_a_document_of_another_kind_than_asked_is_refused(tmp_path):
    path = put(tmp_path, "a.json", [{"text": "a", "n": 1}])
    with pytest.raises(
        DataError,
        match=r'begins with an object with the keys "text", "n"; expected a SQuAD document, such as .*\]\}\. Check',
    ):
        open_rows(path, format="squad")
    with pytest.raises(
        DataError, match=r"begins with an object .*; expected a Label Studio export, as .* JSON-MIN\. Check"
    ):
        open_rows(path, format="label-studio")
    with pytest.raises(
        DataError, match='is a JSON object with the keys "version", "data"; expected a Label Studio export'
    ):
        open_rows(put(tmp_path, "b.json", SQUAD), format="label-studio")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_document_that_is_cut_off_says_so_and_where(tmp_path, indent, share):
    whole = json.dumps(SQUAD, indent=indent)
    cut = whole[: int(len(whole) * share)]
    path = put(tmp_path, "a.json", cut.encode())
    with pytest.raises(DataError) as caught:
        open_rows(path)
    assert caught.value.where == f"{path}:{cut.count(chr(10)) + 1}"
    assert caught.value.saw.startswith("ends in the middle of the JSON document (")
    assert caught.value.fix == "Copy or export the file again."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"data": [1,\n 2,]}', r":2: is not JSON \(.* at column \d+\)\. Copy"),
        (b'\n\n{"data": "a\nb"}', r":3: is not JSON \(Invalid control character at column 12\)\. Copy"),
        (
            b'{"text": "a"}\n{"text": "b"}\n',
            r":2: is not JSON \(Extra data at column 1\)\. If every .* name .* \.jsonl",
        ),
        (b"[" * 100_000, r": is not JSON \(nested too deeply\)"),
        (b"[" + b"9" * 5000 + b"]", r": is not JSON \(Exceeds the limit \(4300 digits\)"),
        (b"text,label\n", r":1: is not JSON \(Expecting value at column 1\)"),
        (b" \n", ": is empty"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path, content, message):
    path = put(tmp_path, "a.json", content)
    with pytest.raises(DataError, match=f"^{path}{message}"):
        open_rows(path)


def test_damaged_gzip_is_a_data_error(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(SQUAD).encode())[:-30])
    with pytest.raises(DataError, match="is a gzip file that ends too early"):
        open_rows(tmp_path / "a.json.gz")


# Lists of objects


def test_a_list_of_objects_is_read_as_rows(tmp_path):
    path = put(tmp_path, "a.json", [{"text": "a", "label": 1}, "b", {"text": "c", "tags": ["x"]}, None])
    reader, rows = read(path)
    assert (reader.format, reader.columns) == ("json", ["text", "label", "tags"])
    assert [row.values for row in rows] == [{"text": "a", "label": 1}, {}, {"text": "c", "tags": ["x"]}, {}]
    assert [row.where for row in rows] == [f"{path}:[{number}]" for number in range(4)]
    assert [row.error for row in rows] == [None, "is a text; expected an object", None, "is null; expected an object"]


def test_a_list_of_empty_objects_is_refused(tmp_path):
    path = put(tmp_path, "a.json", [{}, {}])
    with pytest.raises(DataError, match="is an object without keys; expected objects with keys"):
        open_rows(path)


# Standard input


@pytest.mark.parametrize("indent", [None, 1, 4])
@pytest.mark.parametrize(
    ("document", "format", "where"),
    [
        (SQUAD, "squad", "stdin:data[0].paragraphs[0].qas[0]"),
        ([{"text": "a"}], "json", "stdin:[0]"),
        ([{"data": {"text": "a"}}], "label-studio", "stdin:[0]"),
    ],
)
def test_documents_from_standard_input_are_sniffed(monkeypatch, document, format, where, indent):
    data = json.dumps(document, indent=indent).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    reader, rows = read("-")
    assert (reader.format, rows[0].where, rows[0].error) == (format, where, None)


@pytest.mark.parametrize(
    ("line", "format"),
    [
        ('{"text": "has \\"paragraphs\\" and data"}', "jsonl"),
        ('{"text": "a", "paragraphs": [1]}', "jsonl"),
        ('{"paragraphs": ', "jsonl"),
        ("[a],b", "csv"),
    ],
)
def test_lines_from_standard_input_stay_lines(monkeypatch, line, format):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f'{line}\n{{"text": "b"}}\n'.encode())))
    assert read("-")[0].format == format


def test_parquet_asked_of_standard_input_is_refused(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"PAR1\x15\x04\n")))
    with pytest.raises(DataError, match=r"^stdin: is a Parquet file; .* Give the file's path instead"):
        open_rows("-", format="parquet")


# Real data


def test_policyqa_is_read_whole(shared_data):
    path = shared_data / "policyqa" / "dev.json"
    if not path.is_file():
        pytest.skip(f"no policyqa/dev.json in {shared_data}")
    reader, rows = read(path)
    assert (reader.format, len(rows)) == ("squad", 3809)
    assert not [row for row in rows if row.error]
    for row in rows:
        for answer in row.values["answers"]:
            start = answer["answer_start"]
            assert row.values["context"][start : start + len(answer["text"])] == answer["text"]
    assert len({row.values["id"] for row in rows}) == 3809
