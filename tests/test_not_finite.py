"""Numbers that are not finite: a row without finite logits has no answer, and a record holds no such number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import toy_rows, write_csv
from safetensors.torch import load_file, save_file
from test_artifact import edit_json, edit_weights

import berthead
from berthead.errors import DataError, ModelError, UsageError
from berthead.options.python_words import in_python
from berthead.predict.answers import NOT_FINITE
from berthead.tasks import find_task

TEXTS = ["good cat", "good 3 cat", "awful dog"]  # no row of the fits holds a 3
TASKS = {
    "classify": {},
    "multilabel": {"task": "multilabel", "label": "tags"},
    "regress": {"task": "regress", "label": "stars"},
    "windows": {"max_tokens": 4, "windows": "max"},
}


def spoilt(model: berthead.Fitted) -> berthead.Fitted:
    """The function with a token, "3", whose vector overflows in the first layer."""
    theta = dict(model.theta)
    table = theta["embeddings.word_embeddings.weight"]
    table[model.artifact.tokenizer.ids(["3"])[0][0]] = 3e38
    return model.with_parameters(theta=theta)


def answers(predictions) -> list:
    return [(one.answer, one.score, one.error) for one in predictions]


@pytest.mark.parametrize("options", TASKS.values(), ids=TASKS)
def test_a_row_without_finite_logits_has_no_answer_and_the_others_keep_theirs(options, fit_toy):
    model = berthead.load(fit_toy(**options))
    before, after = model.predict(TEXTS), spoilt(model).predict(TEXTS)
    assert [one.error for one in before] == [None] * 3
    assert answers(after)[::2] == answers(before)[::2]
    assert after[1] == berthead.Prediction(None, window=None, error=NOT_FINITE, where="input 2")


@pytest.mark.parametrize("kind", ["tag", "span", "choose", "joint"])
def test_so_it_is_where_a_row_has_many_units(kind, tiny_bert, tmp_path):
    said = {
        "tag": ([{"tokens": ["good", word], "tags": ["O", "B-X"]} for word in ("cat", "dog")] * 2, {}),
        "joint": (
            [{"tokens": ["good", w], "tags": ["O", "B-X"], "intent": i} for w, i in (("cat", "a"), ("dog", "b"))] * 4,
            {},
        ),
        "span": (
            [{"question": "the", "context": "good red", "answers": [{"text": "red", "answer_start": 5}]}] * 4, {},
        ),
        "choose": ([{"question": "good", "choices": ["cat", "dog"], "answer": n % 2} for n in range(4)], {}),
    }[kind]  # fmt: skip
    model = berthead.fit(
        said[0], task=kind, out=tmp_path / "m", encoder=str(tiny_bert), epochs=1, valid=0, quiet=True, threads=1
    )
    inputs = {
        "tag": [{"tokens": ["good", "cat"]}, {"tokens": ["3", "cat"]}, {"tokens": ["dog"]}],
        "joint": [{"tokens": ["good", "cat"]}, {"tokens": ["3", "cat"]}, {"tokens": ["dog"]}],
        "span": [("the cat", "good mat"), ("the 3", "good mat"), ("the dog", "red mat")],
        "choose": [("good", ["cat", "dog"]), ("good", ["cat", "3"]), ("bad", ["cat", "dog"])],
    }[kind]
    before, after = model.predict(inputs), spoilt(model).predict(inputs)
    assert answers(after)[::2] == answers(before)[::2]
    assert answers(after)[1] == (None, None, NOT_FINITE)


def test_in_files_the_row_stands_among_the_errors(fit_toy, tmp_path, cli):
    spoilt(berthead.load(fit_toy())).save(tmp_path / "m")
    rows = write_csv(tmp_path / "in.csv", [{"text": text} for text in TEXTS])
    ran = cli("predict", tmp_path / "m", rows, "--out", tmp_path / "out.csv")
    assert ran.code == 4
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3
    (line,) = (tmp_path / "out.csv.errors.jsonl").read_text().splitlines()
    assert json.loads(line)["error"] == NOT_FINITE
    one = cli("predict", tmp_path / "m", "good 3 cat")
    assert (one.code, one.out) == (3, "")
    assert NOT_FINITE in one.err


def test_scores_of_such_a_row_are_refused_or_left_out_and_told(fit_toy, tmp_path, cli):
    model = berthead.load(fit_toy())
    spoilt(model).save(tmp_path / "m")
    rows = [{"text": text, "label": "positive"} for text in TEXTS]
    data = write_csv(tmp_path / "rows.csv", rows)
    ran = cli("eval", tmp_path / "m", data)
    assert ran.code == 3
    assert f"{data}:3: {NOT_FINITE} (1 of 3 rows)" in ran.err
    ran = cli("eval", tmp_path / "m", data, "--skip-bad-rows", "--json")
    assert ran.code == 4
    scores = json.loads(ran.out)
    assert (scores["rows"], scores["skipped"]) == (2, 1)
    assert f"left out: {data}:3: {NOT_FINITE}" in scores["warnings"]
    assert scores["accuracy"] == model.evaluate([rows[0], rows[2]])["accuracy"]
    with pytest.raises(DataError, match="can be scored"):
        spoilt(model).evaluate(rows[1:2], skip_bad_rows=True)
    with pytest.raises(DataError, match="not finite"):
        berthead.compare(model, spoilt(model), rows)


@pytest.mark.parametrize("kind", ["classify", "windows"])
def test_compare_leaves_such_rows_out_if_told_to(kind, fit_toy, tmp_path, cli):
    model = berthead.load(fit_toy(**TASKS[kind]))
    rows = [{"text": text, "label": "positive"} for text in [*TEXTS, "good red mat"]]
    broken = spoilt(model)
    with pytest.raises(DataError, match="row 2: the model's numbers for it are not finite"):
        berthead.compare(model, broken, rows)
    for both, which in (((model, broken), "B"), ((broken, model), "A"), ((broken, broken), "A and B")):
        found = berthead.compare(*both, rows, skip_bad_rows=True)
        without = berthead.compare(model, model, [rows[0], *rows[2:]])
        assert (found.rows, found.skipped, found.agreement) == (3, 1, 1.0)
        assert (found.right, found.metrics) == (without.right, without.metrics)
        assert f"left out: row 2: {which}: {in_python(NOT_FINITE)}" in found.notes
    with pytest.raises(DataError, match="holds no rows that can be compared; expected rows with finite logits"):
        berthead.compare(model, broken, rows[1:2], skip_bad_rows=True)
    broken.save(tmp_path / "m")
    model.save(tmp_path / "other")
    data = write_csv(tmp_path / "rows.csv", rows)
    ran = cli("compare", tmp_path / "other", tmp_path / "m", data, "--skip-bad-rows")
    assert (ran.code, f"left out: {data}:3: B: " in ran.err) == (4, True)


def test_probabilities_and_estimators_refuse_it(fit_toy, toy_csv, tiny_bert):
    model = spoilt(berthead.load(fit_toy()))
    with pytest.raises(DataError, match="input 2: the model's numbers for it are not finite"):
        model.predict_proba(TEXTS)
    estimator = berthead.TextClassifier(encoder=str(tiny_bert), epochs=1, valid=0, threads=1)
    estimator.fit(["good", "bad"] * 5, ["y", "n"] * 5)
    estimator.fitted_ = spoilt(estimator.fitted_)
    assert len(estimator.predict(TEXTS[::2])) == 2
    for method in (estimator.predict, estimator.predict_proba):
        with pytest.raises(DataError, match="not finite"):
            method(TEXTS)


def test_an_exported_and_a_joined_function_do_the_same(fit_toy, tmp_path):
    pytest.importorskip("onnxruntime")
    model = berthead.load(fit_toy())
    # ONNX Runtime's layer norm makes 0 of a vector that overflows, but not of an infinite one.
    infinite = berthead.load(fit_toy())
    with torch.no_grad():
        infinite.artifact.model.encoder.embeddings.word.weight[model.artifact.tokenizer.ids(["3"])[0][0]] = torch.inf
    infinite.export_onnx(tmp_path / "onnx")
    exported = berthead.load(tmp_path / "onnx").predict(TEXTS)
    assert [one.error for one in exported] == [None, NOT_FINITE, None]
    joined = berthead.join({"a": model, "b": spoilt(model)}).predict(TEXTS)
    assert [[one[name].error for one in joined] for name in "ab"] == [[None] * 3, [None, NOT_FINITE, None]]


def test_a_lower_precision_that_overflows_gives_no_answer(fit_toy):
    model = spoilt(berthead.load(fit_toy(), precision="int8"))
    assert model.predict(TEXTS)[1].error == NOT_FINITE


# Weights and records


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_when_they_are_loaded(value, fit_toy, tiny_bert, tmp_path):
    folder = Path(shutil.copytree(fit_toy(), tmp_path / "m"))

    def change(tensors):
        tensors["bert.encoder.layer.1.output.dense.bias"][3] = value

    edit_weights(folder, change, with_hashes=True)
    with pytest.raises(ModelError, match=r"layer\.1\.output\.dense\.bias holds a value that is not finite"):
        berthead.load(folder)
    encoder = Path(shutil.copytree(tiny_bert, tmp_path / "encoder"))
    tensors = load_file(encoder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][7, 2] = value
    save_file(tensors, encoder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="holds a value that is not finite; expected finite numbers"):
        berthead.fit(toy_rows(), out=tmp_path / "n", encoder=str(encoder), quiet=True)
    assert not (tmp_path / "n").exists()


NUMBERS = [
    ({}, "temperature", [1e-300, 1e300, 0, -1, float("inf"), float("nan"), True, "1", None, 10**400]),
    (TASKS["multilabel"], "thresholds", [[-0.1, 0.5, 0.5], [0.5, 1.1, 0.5], [0.5, float("nan"), 0.5]]),
    (TASKS["regress"], "deviation", [0, -1, float("inf"), float("nan"), 1e-320]),
    (TASKS["regress"], "mean", [float("inf"), float("nan"), "2"]),
    (TASKS["regress"], "low", [float("-inf"), float("nan"), 100]),
]


@pytest.mark.parametrize(("options", "name", "values"), NUMBERS, ids=[name for _, name, _ in NUMBERS])
def test_a_record_with_an_impossible_number_is_refused(options, name, values, fit_toy, tmp_path):
    folder = Path(shutil.copytree(fit_toy(**options), tmp_path / "m"))
    for value in values:
        edit_json(folder / "berthead.json", lambda record, value=value: record["task"].update({name: value}))
        with pytest.raises(ModelError, match=r"is not a whole record|finite number"):
            berthead.load(folder)


def test_a_golden_example_with_nan_is_refused(fit_toy, tmp_path):
    folder = Path(shutil.copytree(fit_toy(), tmp_path / "m"))
    edit_json(folder / "berthead.json", lambda record: record["golden"][0]["logits"].__setitem__(0, float("nan")))
    with pytest.raises(ModelError, match="expected 2 finite numbers"):
        berthead.load(folder)


def test_a_score_that_overflows_when_it_is_decoded_is_no_answer():
    from berthead.predict.answers import _is_finite

    task = find_task("classify").from_json({"labels": ["a", "b"], "temperature": 1e-4})
    with np.errstate(all="ignore"):
        fine, over = task.decode(np.array([[1, 0], [3e38, -3e38]], dtype=np.float32))
    assert _is_finite(fine)
    assert not _is_finite(over)


def test_a_fit_whose_last_step_overflows_says_so(tiny_bert, tmp_path, monkeypatch):
    from berthead.train.optim import Optimiser

    settle = Optimiser.settle

    def overflow(self):
        settle(self)
        with torch.no_grad():
            next(iter(self.adamw.param_groups[0]["params"])).fill_(float("inf"))

    monkeypatch.setattr(Optimiser, "settle", overflow)
    for valid in (0, 0.25):
        with pytest.raises(UsageError, match=r"a parameter is not finite in epoch 1; .*Lower lr"):
            berthead.fit(
                toy_rows(), out=tmp_path / "m", encoder=str(tiny_bert), epochs=1, valid=valid, quiet=True, threads=1
            )
    assert not (tmp_path / "m").exists()
