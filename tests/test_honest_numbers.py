"""Small numbers are told for what they are: few rows, sure answers, fits that learnt nothing."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import toy_rows, write_csv

import berthead
from berthead.cli.printing import as_line, share_text
from berthead.data.labels import Labels
from berthead.errors import UsageError
from berthead.function.precision_report import LEAST_ROWS, PrecisionReport, Verdict
from berthead.predict import precision as gate
from berthead.records import Prediction
from berthead.tasks import Classify, Multilabel


@pytest.mark.parametrize("rows", [1, 2, LEAST_ROWS - 1])
def test_a_few_rows_decide_nothing_about_a_precision(rows):
    report = PrecisionReport(rows, "held-out", "accuracy", 1.0, {"int8": Verdict(1.0, 0.0, 0.0, 0.0)})
    assert report.passes("int8") is None
    assert report.verdict("int8").startswith(
        f"is not decided, for which {LEAST_ROWS} rows are needed: 100.00 % of {rows} "
    )
    assert report.to_json()["precisions"]["int8"]["passed"] is False
    why = gate._refused({"": report}, "int8", "measure it")
    assert why.startswith("int8 is not decided")
    enough = PrecisionReport(LEAST_ROWS, "held-out", "accuracy", 1.0, report.verdicts)
    assert (enough.passes("int8"), gate._refused({"": enough}, "int8", "")) == (True, "")


def test_a_fit_on_few_rows_gives_no_verdict_and_auto_takes_fp32(fit, tmp_path, cli):
    data = write_csv(tmp_path / "a.csv", toy_rows(1))
    model = fit(data, out=tmp_path / "model", valid=0.2)
    assert model.artifact.run["held_out_rows"] < LEAST_ROWS
    said = cli("info", tmp_path / "model").out
    assert "passes" not in said
    loaded = berthead.load(tmp_path / "model", precision="auto")
    loaded.predict("good cat")
    assert loaded.choice.precision == "fp32"
    if gate.candidates(model.artifact.model):
        assert "is not decided" in said
        assert "is not decided" in loaded.choice.reason


def test_a_label_without_rows_is_not_called_never_predicted():
    names = Labels(["a", "b", "c"])
    scores = Classify(names).evaluate(np.eye(3, dtype=np.float32)[[0, 0]], np.array([0, 1]))
    assert scores["warnings"] == ['never predicted: "b"']
    task = Multilabel(names, (0.5,) * 3)
    gold = np.array([[1, 1, 0], [1, 0, 0]], dtype=np.float32)
    assert task.evaluate(np.full((2, 3), -9, dtype=np.float32), gold)["warnings"] == ['never predicted: "a", "b"']


@pytest.mark.parametrize("share", [1.0, 0.99996, float(np.float32(1))])
def test_no_probability_is_printed_as_one(share):
    assert share_text(share) == "0.9999"
    spans, shares = [berthead.Span(0, 1, "x", "x", share)], {"x": share}
    predictions = [
        Prediction("x", share, shares), Prediction(["x"], share, shares), Prediction([], spans=spans),
        Prediction("x", share, spans=spans), Prediction("x", share, shares, spans=spans),
    ]  # fmt: skip
    for prediction in predictions:
        assert "1.0000" not in as_line(prediction, False)
        assert "0.9999" in as_line(prediction, False)
        assert json.loads(as_line(prediction, True))["score"] == prediction.score  # stored numbers stay


def test_probabilities_of_labels_are_not_printed_as_one(toy_model, cli, monkeypatch):
    sure = Prediction("positive", 1.0, {"positive": 1.0, "negative": 0.0})
    monkeypatch.setattr(berthead.Fitted, "predict", lambda self, inputs: sure)
    assert "p(positive)  0.9999" in cli("predict", toy_model, "good cat", "--probabilities").out


def test_a_fit_that_learnt_nothing_says_so_and_names_flags(fit, toy_csv):
    notes = fit(toy_csv, valid=0.25, lr=1e-9, adapt="frozen").warnings
    note = next(one for one in notes if "no better than the answer of most rows" in one)
    assert re.search(r'accuracy 0\.\d+, 0\.\d+ without reading the text\); try epochs=3, adapt="full", lr=', note)
    assert 'class_weight="balanced"' in note
    good = fit(toy_csv, valid=0.25, lr=3e-3, epochs=8)
    assert good.artifact.run["metrics"]["accuracy"] > good.artifact.run["baselines"]["majority"]
    assert not any("no better" in one for one in good.warnings)


@pytest.mark.parametrize("share", [0.9999, 0.91])
def test_a_share_that_leaves_almost_nothing_is_refused(fit, toy_csv, cli, tmp_path, share):
    with pytest.raises(UsageError, match=r"leaves almost nothing to fit; expected a file, or a share from 0 to 0\.9"):
        fit(toy_csv, valid=share)
    with pytest.raises(UsageError, match="leaves almost nothing to fit"):
        berthead.TextClassifier(valid=share).fit(["a", "b"], ["x", "y"])
    assert cli("fit", toy_csv, "--valid", share, "--out", tmp_path / "m").code == 2


def test_without_held_out_rows_no_epoch_is_the_best(fit, toy_csv, tmp_path, cli, tiny_bert):
    options = ["--encoder", tiny_bert, "--epochs", "2", "--out", tmp_path / "m", "--overwrite"]
    assert cli("fit", toy_csv, *options, "--valid", "0").out.startswith("fitted 56 rows (full), 2 epochs\n")
    assert "best epoch" in cli("fit", toy_csv, *options, "--valid", "0.25").out


def test_a_column_that_is_taken_is_told(toy_model, tmp_path, cli):
    data = tmp_path / "in.csv"
    pd.DataFrame({"text": ["good cat"], "prediction": ["x"], "score": [1]}).to_csv(data, index=False)
    for out in (tmp_path / "out.csv", "-"):
        said = cli("predict", toy_model, data, "--out", out).err
        assert 'the input has a column "prediction": ours is "prediction_2"; ' in said
        assert '"score": ours is "score_2"' in said
    pd.DataFrame({"text": ["good cat"]}).to_csv(data, index=False)
    assert "ours is" not in cli("predict", toy_model, data, "--out", tmp_path / "other.csv").err
