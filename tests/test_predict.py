"""The same answer for a row however it is asked for: alone, packed, streamed, from threads, or file to file."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WORDS, toy_rows, tries, write_csv, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import berthead
from berthead.data.examples import to_example
from berthead.errors import DataError, Interrupted, OutputError, UsageError
from berthead.function.artifact import plain_logits
from berthead.jobs import files
from berthead.jobs import work as work_module
from berthead.jobs.files import predict_file
from berthead.jobs.work import Work
from berthead.options import PredictOptions
from berthead.predict import reading
from berthead.predict.predictor import Predictor
from berthead.records import Example

QUICK = settings(deadline=None, max_examples=tries(40))
PLAIN = [word for word in WORDS if not word.startswith("##")]
ROWS = st.lists(st.lists(st.sampled_from(PLAIN), min_size=1, max_size=90).map(" ".join), min_size=1, max_size=25)
KINDS = {
    "classify": {},
    "multilabel": {"task": "multilabel", "label": "tags"},
    "regress": {"task": "regress", "label": "stars"},
}


@pytest.fixture(scope="module")
def model(fit_toy):
    return berthead.load(fit_toy(epochs=6))


def predicted(model, source, target, **options):
    return predict_file(model.predictor, str(source), str(target), PredictOptions(**options), quiet=True)


def read_csv(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Packed, streamed, threaded


@QUICK
@given(texts=ROWS, token_budget=st.integers(1, 3000))
def test_packed_equals_one_by_one(texts, token_budget, fit_toy, model):
    examples = [Example(text) for text in texts]
    packed = Predictor(model.artifact, token_budget=token_budget).logits(examples)
    np.testing.assert_allclose(packed, plain_logits(model.artifact, examples), rtol=0, atol=1e-5)


@QUICK
@given(texts=ROWS, token_budget=st.integers(1, 3000))
def test_packed_pairs_equal_one_by_one(texts, token_budget, fit_toy):
    pairs = berthead.load(fit_toy(pair="pair"))
    examples = [Example(text, texts[-n]) for n, text in enumerate(texts)]
    packed = Predictor(pairs.artifact, token_budget=token_budget).logits(examples)
    np.testing.assert_allclose(packed, plain_logits(pairs.artifact, examples), rtol=0, atol=1e-5)


def test_results_come_in_input_order_with_transformers_answers(model, fit_toy):
    folder = fit_toy(epochs=6)
    texts = [" ".join(PLAIN[(n * 7 + k) % len(PLAIN)] for k in range(1 + n * 13 % 50)) for n in range(200)]
    tokenizer, theirs = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForSequenceClassification.from_pretrained(folder),
    )
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    shares = theirs.eval()(**batch).logits.softmax(-1).detach().numpy()
    ours = model.predict(texts)
    assert [one.where for one in ours] == [f"input {n}" for n in range(1, 201)]
    np.testing.assert_allclose([list(one.probabilities.values()) for one in ours], shares, rtol=0, atol=1e-5)
    assert [one.answer for one in ours] == [theirs.config.id2label[n] for n in shares.argmax(1)]
    assert [one.score for one in ours] == pytest.approx(shares.max(1), abs=1e-5)
    assert len({one.answer for one in ours}) == 2


def test_a_generator_is_read_only_a_little_ahead(model, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_ROWS", 10)
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield Example("good cat")

    answers = model.predictor.predict(endless())
    assert taken == 0
    for number in range(1, 100):
        next(answers)
        assert number <= taken <= number + 30
    answers.close()


def test_long_texts_make_short_chunks(model, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_CHARACTERS", 1000)
    sizes = [len(chunk) for chunk in reading.chunks(Example("x" * 300) for _ in range(10))]
    assert sizes == [4, 4, 2]
    assert len(list(model.predictor.predict(Example("good " * 60) for _ in range(10)))) == 10


def test_chunks_of_any_size_give_the_same_answers(model, monkeypatch):
    texts = [row["text"] for row in toy_rows()]
    whole = model.predict(texts)
    for rows in (1, 7, len(texts)):
        monkeypatch.setattr(reading, "CHUNK_ROWS", rows)
        parts = model.predict(texts)
        assert [one.answer for one in parts] == [one.answer for one in whole]
        assert [one.score for one in parts] == pytest.approx([one.score for one in whole], abs=1e-5)


@pytest.mark.parametrize("bad", [[], [0], [2, 3, 9], list(range(10))])
@pytest.mark.parametrize("chunk", [3, 100])
def test_bad_rows_become_errors_and_the_rest_is_intact(bad, chunk, model, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_ROWS", chunk)
    texts = [f"good cat {'a ' * n}" for n in range(10)]
    clean = model.predict(texts)
    examples = [
        Example("", where=f"row {n}", error="broken") if n in bad else Example(text, where=f"row {n}")
        for n, text in enumerate(texts)
    ]
    for number, (one, wanted) in enumerate(zip(model.predictor.predict(examples), clean, strict=True)):
        assert one.where == f"row {number}"
        if number in bad:
            assert (one.answer, one.score, one.probabilities, one.error) == (None, None, None, "broken")
        else:
            assert (one.answer, one.error, one.n_tokens) == (wanted.answer, None, wanted.n_tokens)
            assert one.score == pytest.approx(wanted.score, abs=1e-5)


def test_blank_and_strange_inputs_become_errors_in_place(model):
    answers = model.predict(["good cat", "", None, float("nan"), "  \n", "bad cat"])
    assert [one.error is None for one in answers] == [True, False, False, False, False, True]
    assert all("expected a text" in one.error for one in answers[1:5])


def test_an_error_in_the_source_reaches_the_caller(model):
    def source():
        yield Example("good cat")
        raise DataError("a.csv:3", "is broken")

    with pytest.raises(DataError, match=r"a\.csv:3"):
        list(model.predictor.predict(source()))


def test_no_rows_give_no_answers(model):
    assert model.predict([]) == []
    assert model.predict(iter(())) == []
    assert model.predictor.logits([]).shape == (0, 2)


def test_64_threads_on_one_model_get_the_answers_of_one(model):
    batches = [[f"{PLAIN[(n + k) % len(PLAIN)]} cat {'red ' * (k % 7)}" for k in range(1 + n % 9)] for n in range(64)]
    wanted = [[(one.answer, one.score) for one in model.predict(batch)] for batch in batches]
    ready = Barrier(64)

    def ask(batch):
        ready.wait()
        return [[(one.answer, one.score) for one in model.predict(batch)] for _ in range(3)]

    with ThreadPoolExecutor(64) as pool:
        got = list(pool.map(ask, batches))
    assert got == [[one] * 3 for one in wanted]


@pytest.mark.parametrize("max_tokens", [None, 8])
def test_tokens_and_truncation_are_counted(max_tokens, fit_toy):
    folder = fit_toy(max_tokens=max_tokens, on_long="truncate")
    model, tokenizer = berthead.load(folder), AutoTokenizer.from_pretrained(folder)
    texts = ["cat", "good cat sat on the mat", "cat " * 6, "cat " * 7, "cat " * 62, "cat " * 63, "bad " * 500]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    answers = model.predict(texts)
    assert [one.n_tokens for one in answers] == lengths
    assert [one.truncated for one in answers] == [length > (max_tokens or 64) for length in lengths]
    assert {one.truncated for one in answers} == {True, False}
    assert {(one.n_windows, one.window) for one in answers} == {(1, 0)}
    assert model.predict("bad " * 500).score == model.predict("bad " * 499).score


@pytest.mark.parametrize("max_tokens", [None, 8])
def test_tokens_and_windows_are_counted_where_nothing_is_cut(max_tokens, fit_toy):
    model = berthead.load(fit_toy(max_tokens=max_tokens, pooling="mean", adapt="frozen", epochs=10, lr=0.1))
    room = (max_tokens or 64) - 2
    lengths = [1, 6, 7, 12, 13, 62, 63, 124, 125, 500]
    answers = model.predict(["cat " * length for length in lengths])
    assert [one.n_tokens for one in answers] == [length + 2 for length in lengths]
    assert [one.n_windows for one in answers] == [-(-length // room) for length in lengths]
    assert not any(one.truncated for one in answers)
    assert all(0 <= one.window < one.n_windows for one in answers)
    ends = [Example("bad " * 2 * room + word) for word in ("good", "bad")]
    assert [one.n_windows for one in model.predict([one.text for one in ends])] == [3, 3]
    assert np.ptp(model.predictor.logits(ends), axis=0).min() > 1e-2  # the last word is read


def test_a_prediction_is_plain_python_and_json(fit_toy):
    for kind, options in KINDS.items():
        one = berthead.load(fit_toy(**options)).predict("good cat")
        again = json.loads(json.dumps(one.to_dict()))
        assert again == one.to_dict()
        assert type(one.answer) is {"classify": str, "multilabel": list, "regress": float}[kind]
        assert type(one.score) is (type(None) if kind == "regress" else float)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_answers_are_near_the_exact_ones(kind, fit_toy):
    folder = fit_toy(**KINDS[kind])
    examples = [Example(row["text"]) for row in toy_rows()]
    exact, fast = (berthead.load(folder, precision=one).predictor.logits(examples) for one in ("fp32", "bf16"))
    assert 0 < np.abs(exact - fast).max() < 0.2


# File to file


ODD_ROWS = [
    {"id": "007", "text": "good cat", "note": "None"},
    {"id": "1e5", "text": 'the "awful" dog, ran', "note": ""},
    {"id": " 8 ", "text": "line one\nline two", "note": "NA"},
    {"id": "é😀", "text": "poor dog, fine mat", "note": "null"},
    {"id": "-0.10", "text": "bad " * 100, "note": "a|b;c\td"},
]


def python_answers(model, rows):
    return model.predict([row["text"] for row in rows])


def close(values):
    return pytest.approx([float(value) for value in values], abs=1e-5)


def test_csv_keeps_every_cell_and_adds_pythons_answers(model, tmp_path):
    source = write_csv(tmp_path / "in.csv", ODD_ROWS)
    summary = predicted(model, source, tmp_path / "out.csv", probabilities=True)
    rows = read_csv(tmp_path / "out.csv")
    assert list(rows[0]) == ["id", "text", "note", "prediction", "score", "p(negative)", "p(positive)"]
    assert [{name: row[name] for name in ("id", "text", "note")} for row in rows] == ODD_ROWS
    wanted = python_answers(model, ODD_ROWS)
    assert [row["prediction"] for row in rows] == [one.answer for one in wanted]
    assert [float(row["score"]) for row in rows] == close(one.score for one in wanted)
    for label in model.labels:
        assert [float(row[f"p({label})"]) for row in rows] == close(one.probabilities[label] for one in wanted)
    assert (summary.rows, summary.failed, summary.errors_file) == (5, 0, None)
    assert (summary.truncated, summary.windowed) == (0, 1)
    assert names(tmp_path) == ["in.csv", "out.csv"]


def test_csv_cells_are_kept_byte_for_byte(model, tmp_path):
    """A file whose quoting is already minimal comes back line by line, with cells added at the end."""
    lines = ["id,text,note", "007,good cat,", '1e5,"awful ""dog"", ran",NA', '" 8",bad cat,1.00'.replace('"', "")]
    source = tmp_path / "in.csv"
    source.write_bytes(("\n".join(lines) + "\n").encode())
    predicted(model, source, tmp_path / "out.csv")
    out = (tmp_path / "out.csv").read_bytes().decode().splitlines()
    assert len(out) == len(lines)
    for before, after in zip(lines, out, strict=True):
        assert after.startswith(f"{before},")
        assert after.removeprefix(f"{before},").count(",") == 1


@pytest.mark.parametrize("source", ["in.csv", "in.tsv", "in.jsonl", "in.parquet", "in.csv.gz", "in.jsonl.zst"])
@pytest.mark.parametrize("target", ["out.csv", "out.tsv", "out.jsonl", "out.parquet", "out.csv.gz", "out.jsonl.zst"])
def test_any_format_to_any_format(source, target, model, tmp_path):
    frame = pd.DataFrame(ODD_ROWS)
    path = tmp_path / source
    if source == "in.parquet":
        frame.to_parquet(path)
    elif "jsonl" in source:
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_csv(path, index=False, sep="\t" if "tsv" in source else ",")
    predicted(model, path, tmp_path / target)
    out = tmp_path / target
    if target == "out.parquet":
        got = pd.read_parquet(out)
    elif "jsonl" in target:
        got = pd.read_json(out, lines=True, dtype=False)
    else:
        got = pd.read_csv(out, sep="\t" if "tsv" in target else ",", dtype=str, keep_default_na=False)
    wanted = python_answers(model, ODD_ROWS)
    assert got[["id", "text", "note"]].to_dict("records") == ODD_ROWS
    assert got["prediction"].tolist() == [one.answer for one in wanted]
    assert got["score"].astype(float).tolist() == close(one.score for one in wanted)
    assert names(tmp_path) == sorted([source, target])


def test_parquet_keeps_types_and_adds_typed_columns(model, tmp_path):
    table = pa.table({
        "text": ["good cat", "bad cat", "the dog"],
        "n": pa.array([1, None, 2**62], pa.int64()),
        "day": pa.array([0, 1, 20000], pa.date32()),
        "tags": pa.array([["a"], [], None], pa.list_(pa.string())),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "in.parquet")
    predicted(model, tmp_path / "in.parquet", tmp_path / "out.parquet", probabilities=True)
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.select(table.column_names).equals(table)
    added = {field.name: field.type for field in out.schema if field.name not in table.column_names}
    assert added.pop("prediction") == pa.string()
    assert set(added.values()) == {pa.float64()}


def test_stdin_to_stdout(model, tmp_path, monkeypatch, capsysbinary):
    text = "id,text\n1,good cat\n2,bad cat\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    summary = predicted(model, "-", "-")
    out = capsysbinary.readouterr().out.decode()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["id"], row["text"]) for row in rows] == [("1", "good cat"), ("2", "bad cat")]
    assert [row["prediction"] for row in rows] == [one.answer for one in model.predict(["good cat", "bad cat"])]
    assert (summary.rows, summary.errors_file) == (2, None)


@pytest.mark.parametrize("compressed", [False, True])
def test_json_lines_from_stdin_are_recognised(compressed, model, monkeypatch, capsysbinary):
    data = b'{"text": "good cat", "n": 1}\n{"text": "bad cat", "n": [2]}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(data) if compressed else data)))
    predicted(model, "-", "-")
    rows = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [row["n"] for row in rows] == [1, [2]]
    assert [row["prediction"] for row in rows] == [one.answer for one in model.predict(["good cat", "bad cat"])]


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_writes_its_answers(kind, fit_toy, tmp_path):
    model = berthead.load(fit_toy(**KINDS[kind]))
    rows = [{"text": row["text"]} for row in toy_rows()]
    wanted = python_answers(model, rows)
    source = write_csv(tmp_path / "in.csv", rows)
    for target in ("out.csv", "out.jsonl", "out.parquet"):
        predicted(model, source, tmp_path / target, probabilities=True)
    from_csv = read_csv(tmp_path / "out.csv")
    from_json = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    from_parquet = pq.read_table(tmp_path / "out.parquet").to_pylist()
    added = ["prediction", "score", *(f"p({label})" for label in model.labels)]
    assert list(from_csv[0]) == ["text", *(added[:1] if kind == "regress" else added)]
    answers = [one.answer for one in wanted]
    if kind == "regress":
        assert [float(row["prediction"]) for row in from_csv] == close(answers)
        assert [row["prediction"] for row in from_json] == close(answers)
        assert [row["prediction"] for row in from_parquet] == close(answers)
        return
    decoded = [json.loads(row["prediction"]) if kind == "multilabel" else row["prediction"] for row in from_csv]
    assert decoded == answers
    assert [row["prediction"] for row in from_json] == answers
    assert [row["prediction"] for row in from_parquet] == answers
    for rows in (from_csv, from_json, from_parquet):
        for label in model.labels:
            shares = [float(row[f"p({label})"]) for row in rows]
            assert shares == close(one.probabilities[label] for one in wanted)


def test_written_numbers_read_back_as_the_same_float32(model, tmp_path):
    source = write_csv(tmp_path / "in.csv", [{"text": row["text"]} for row in toy_rows()])
    predicted(model, source, tmp_path / "out.csv")
    cells = [row["score"] for row in read_csv(tmp_path / "out.csv")]
    wanted = model.predictor.predict(Example(row["text"]) for row in toy_rows())
    assert [np.float32(cell) for cell in cells] == [np.float32(one.score) for one in wanted]
    assert max(map(len, cells)) <= 13


@pytest.mark.parametrize("labels", [[123456789.25, -0.1234567890123], [0, 1], [True, False], ["0", "1"]], ids=str)
@pytest.mark.parametrize("target", ["out.jsonl", "out.parquet"])
def test_typed_labels_are_written_as_they_are(labels, target, tiny_bert, tmp_path):
    rows = [{"text": row["text"], "label": labels[n % 2]} for n, row in enumerate(toy_rows(2))]
    model = berthead.fit(rows, encoder=str(tiny_bert), epochs=8, lr=5e-3, batch=8, valid=0, quiet=True, threads=1)
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": row["text"]} for row in rows])
    predicted(model, source, tmp_path / target)
    if target == "out.jsonl":
        got = [json.loads(line)["prediction"] for line in (tmp_path / target).read_text().splitlines()]
    else:
        got = pq.read_table(tmp_path / target).column("prediction").to_pylist()
    wanted = [one.answer for one in python_answers(model, rows)]
    assert [(type(one), one) for one in got] == [(type(one), one) for one in wanted]
    assert set(map(repr, got)) <= set(map(repr, labels))


def test_clashing_columns_get_another_name(model, tmp_path):
    rows = [{"text": "good cat", "prediction": "mine", "score": "keep", "score_2": "this", "p(positive)": "too"}]
    predicted(model, write_csv(tmp_path / "in.csv", rows), tmp_path / "out.csv", probabilities=True)
    (row,) = read_csv(tmp_path / "out.csv")
    assert {name: row[name] for name in rows[0]} == rows[0]
    assert list(row)[5:] == ["prediction_2", "score_3", "p(negative)", "p(positive)_2"]
    assert row["prediction_2"] == model.predict("good cat").answer
    again = tmp_path / "again.csv"
    predicted(model, tmp_path / "out.csv", again)
    assert list(read_csv(again)[0])[-2:] == ["prediction_3", "score_4"]


def test_other_columns_and_pairs_are_read(fit_toy, tmp_path):
    pairs = berthead.load(fit_toy(pair="pair"))
    rows = [{"one": row["text"], "two": row["pair"]} for row in toy_rows(1)]
    source = write_csv(tmp_path / "in.csv", rows)
    predicted(pairs, source, tmp_path / "out.csv", text="one", pair="two")
    wanted = pairs.predict([(row["one"], row["two"]) for row in rows])
    assert [row["prediction"] for row in read_csv(tmp_path / "out.csv")] == [one.answer for one in wanted]
    assert [float(row["score"]) for row in read_csv(tmp_path / "out.csv")] == close(one.score for one in wanted)
    with pytest.raises(DataError, match='has no column "pair"'):
        predicted(pairs, source, tmp_path / "no.csv", text="one")
    with pytest.raises(UsageError, match="fitted on single texts"):
        predicted(berthead.load(fit_toy()), source, tmp_path / "no.csv", text="one", pair="two")
    assert not (tmp_path / "no.csv").exists()


def test_bad_rows_are_put_aside_with_place_reason_and_row(model, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text('id,text\n1,good cat\n2,\n3\n4,"bad\ncat"\n5,too,many\n6,poor dog\n', encoding="utf-8")
    (tmp_path / "out.csv.errors.jsonl").write_text('{"where": "of an earlier run"}\n')
    summary = predicted(model, source, tmp_path / "out.csv")
    assert [row["id"] for row in read_csv(tmp_path / "out.csv")] == ["1", "4", "6"]
    errors = [json.loads(line) for line in (tmp_path / "out.csv.errors.jsonl").read_text().splitlines()]
    assert [list(one) for one in errors] == [["where", "error", "row"]] * 3
    assert [one["where"].removeprefix(str(tmp_path)) for one in errors] == ["/in.csv:3", "/in.csv:4", "/in.csv:7"]
    assert 'column "text" is blank' in errors[0]["error"]
    assert "has 1 field; expected 2, as in the header" in errors[1]["error"]
    assert errors[0]["row"] == {"id": "2", "text": ""}
    assert (summary.rows, summary.failed) == (6, 3)
    assert summary.errors_file == f"{tmp_path}/out.csv.errors.jsonl"
    assert summary.errors[0] == f"{source}:3: {errors[0]['error']}"
    source.write_text("id,text\n1,good cat\n", encoding="utf-8")
    assert predicted(model, source, tmp_path / "out.csv").errors_file is None
    assert names(tmp_path) == ["in.csv", "out.csv"]


def test_errors_to_stdout_are_told_and_not_mixed_in(model, tmp_path, capsysbinary):
    source = write_csv(tmp_path / "in.csv", [{"text": ""}, {"text": "good cat"}] * 15)
    summary = predicted(model, source, "-")
    rows = list(csv.DictReader(io.StringIO(capsysbinary.readouterr().out.decode())))
    assert [row["text"] for row in rows] == ["good cat"] * 15
    assert (summary.failed, len(summary.errors), summary.errors_file) == (15, 10, None)
    assert names(tmp_path) == ["in.csv"]


def test_only_bad_rows_still_give_a_header(model, tmp_path):
    source = write_csv(tmp_path / "in.csv", [{"text": " ", "n": "1"}])
    summary = predicted(model, source, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "text,n,prediction,score\n"
    assert (summary.rows, summary.failed) == (1, 1)


def test_nothing_stands_at_the_target_before_the_end(model, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_ROWS", 5)
    source = write_csv(tmp_path / "in.csv", toy_rows())
    target = tmp_path / "out.csv"
    target.write_text("the old result")
    seen = []
    values = Work._values

    def watched(*args):
        seen.append(target.read_text())
        return values(*args)

    monkeypatch.setattr(Work, "_values", watched)
    predicted(model, source, target)
    assert seen == ["the old result"] * len(toy_rows())
    assert len(read_csv(target)) == len(toy_rows())
    assert names(tmp_path) == ["in.csv", "out.csv"]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl.gz", "out.parquet"])
def test_ctrl_c_keeps_the_rows_of_a_stream_as_partial(name, model, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_ROWS", 5)
    rows = toy_rows()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(write_csv(tmp_path / "in.csv", rows).open("rb")))
    numbers = itertools.count()

    def interrupted(*args):
        if next(numbers) == 33:
            raise KeyboardInterrupt
        return to_example(*args)

    monkeypatch.setattr(work_module, "to_example", interrupted)
    with pytest.raises(Interrupted, match=r"stopped after \d+ rows.*out.*partial") as caught:
        predicted(model, "-", tmp_path / name)
    assert caught.value.exit_code == 130
    assert names(tmp_path) == ["in.csv", f"{name}.partial"]
    readable = tmp_path / f"partial-{name}"
    shutil.copy(tmp_path / f"{name}.partial", readable)
    with berthead.formats.readers.open_rows(readable) as reader:
        kept = [row.values for row in reader]
    assert 25 <= len(kept) <= 33
    assert [row["text"] for row in kept] == [row["text"] for row in rows[: len(kept)]]
    wanted = [one.answer for one in python_answers(model, rows[: len(kept)])]
    assert [row["prediction"] for row in kept] == wanted


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.jsonl", "out.parquet"])
def test_a_full_disk_is_an_output_error_and_leaves_nothing(name, model, tmp_path):
    """The limit on file sizes stands in for the disk's end: the system itself refuses to write."""
    rows = [{"text": "good cat", "more": np.random.default_rng(n).bytes(150).hex()} for n in range(1500)]
    source = write_csv(tmp_path / "in.csv", rows)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"out\."):
            predicted(model, source, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["in.csv"]


def test_targets_that_cannot_be_are_refused_before_any_row_is_read(model, tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError("rows were read")

    monkeypatch.setattr(files, "Table", refuse)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "device.csv").symlink_to("/dev/full")
    for target, error in [
        ("folder.csv", OutputError), ("nowhere/out.csv", OutputError), ("out.docx", UsageError), ("out", UsageError)
    ]:  # fmt: skip
        with pytest.raises(error):
            predicted(model, tmp_path / "in.csv", tmp_path / target)
    with pytest.raises(OutputError, match="is a device"):
        predicted(model, tmp_path / "in.csv", tmp_path / "device.csv")
    assert names(tmp_path) == ["device.csv", "folder.csv"]


def test_a_file_that_breaks_in_the_middle_leaves_nothing(model, tmp_path):
    source = tmp_path / "in.csv.gz"
    whole = gzip.compress("".join(["text\n", *(f"good cat {n}\n" for n in range(30_000))]).encode())
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="ends too early"):
        predicted(model, source, tmp_path / "out.csv")
    assert names(tmp_path) == ["in.csv.gz"]


def test_the_input_is_not_replaced_by_the_output(model, tmp_path):
    source = write_csv(tmp_path / "in.csv", ODD_ROWS)
    before = source.read_bytes()
    (tmp_path / "link.csv").symlink_to(source)
    for target in (source, tmp_path / "link.csv"):
        with pytest.raises(OutputError, match="is the input"):
            predicted(model, source, target)
    assert source.read_bytes() == before
    assert names(tmp_path) == ["in.csv", "link.csv"]


def test_an_odd_first_row_of_json_lines_stops_nothing(model, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": 1}, {"text": "good cat", "id": 2}])
    summary = predicted(model, source, tmp_path / "out.jsonl")
    assert (summary.rows, summary.failed) == (2, 1)
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (row["id"], row["prediction"]) == (2, "positive")


def test_no_value_of_json_lines_is_overwritten(model, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "good cat"}, {"text": "bad dog", "prediction": "mine"}])
    predicted(model, source, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prediction_2"] for row in rows] == ["positive", "negative"]
    assert rows[1]["prediction"] == "mine"


def test_a_late_row_with_the_name_of_an_added_column_is_put_aside(model, tmp_path):
    rows = [{"text": "good cat"}] * 1000 + [{"text": "bad dog", "score": 42}]
    summary = predicted(model, write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    assert (summary.rows, summary.failed) == (1001, 1)
    (aside,) = [json.loads(line) for line in (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()]
    assert aside["row"] == {"text": "bad dog", "score": 42}
    assert 'has a value for "score"' in aside["error"]


# Memory


MEASURED = """
import sys
from pathlib import Path
import berthead
from berthead.engine.cpu import use_threads
from berthead.jobs.files import predict_file
from berthead.options import PredictOptions
folder, source, target = sys.argv[1:]
use_threads(1)
model = berthead.load(folder)
summary = predict_file(model.predictor, source, target, PredictOptions(), quiet=True)
# Not getrusage: its peak begins with that of the process that started this one.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(summary.rows, int(status["VmHWM"].split()[0]) / 1024)
"""


def test_memory_does_not_grow_with_the_rows(fit_toy, tmp_path):
    words = [word for word in PLAIN if word.isalpha()]
    peaks = {}
    for count in (5_000, 40_000):
        source, target = tmp_path / f"{count}.csv", tmp_path / f"{count}.out.csv"
        with source.open("w", encoding="utf-8") as file:
            file.write("id,text\n")
            file.writelines(f"{n},{words[n % len(words)]} cat {words[n * 7 % len(words)]}\n" for n in range(count))
        run = subprocess.run(
            [sys.executable, "-c", MEASURED, fit_toy(), source, target], capture_output=True, text=True, check=True
        )
        rows, peak = run.stdout.split()
        assert int(rows) == count
        peaks[count] = float(peak)
        with target.open(encoding="utf-8") as file:
            ids = [line.split(",", 1)[0] for line in file]
        assert ids == ["id", *map(str, range(count))]
    print(f"peak RSS in MiB: {peaks}")
    assert peaks[40_000] - peaks[5_000] < 25
