"""Labels that are known by texts about them: without rows nothing is learnt, with rows they are rows too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import toy_rows, write_csv
from test_convex import seen, vectors_of

import berthead
from berthead.data.descriptions import read_descriptions
from berthead.errors import DataError, UsageError
from berthead.train.described import SCALE

YAML = """\
late: the parcel has not come yet
broken:
  description: it arrived damaged
  examples: ["the lamp has a crack", it does not work]
yes: [you are right]
"""
TEXTS = ["my van is late", "there is a crack in the glass", "the cat sat on the mat"]


@pytest.fixture
def described(tmp_path):
    path = tmp_path / "labels.yaml"
    path.write_text(YAML)
    return path


def test_a_file_of_descriptions_is_read_as_rows(described):
    rows = read_descriptions(described)
    assert [(row.target, row.text) for row in rows] == [
        ("late", "the parcel has not come yet"), ("broken", "it arrived damaged"), ("broken", "the lamp has a crack"),
        ("broken", "it does not work"), ("yes", "you are right"),
    ]  # fmt: skip


@pytest.mark.parametrize("pooling", ["mean", "auto"])
def test_answers_are_cosines_with_the_descriptions(described, tiny_bert, tmp_path, pooling):
    fitted = berthead.fit(labels=str(described), encoder=str(tiny_bert), pooling=pooling, out=tmp_path / "model")
    rows = read_descriptions(described)
    labels = sorted({row.target for row in rows})
    assert fitted.labels == labels
    about = {label: [row.text for row in rows if row.target == label] for label in labels}
    means = np.stack([seen(vectors_of(tiny_bert, about[label]), "normalised").sum(0) for label in labels])
    cosines = seen(vectors_of(tiny_bert, TEXTS), "normalised") @ seen(means, "normalised").T
    wanted = torch.softmax(torch.from_numpy(SCALE * cosines), 1).numpy()
    np.testing.assert_allclose(fitted.predict_proba(TEXTS), wanted, atol=1e-4)
    loaded = berthead.load(tmp_path / "model")
    assert loaded.verify() < 1e-4
    assert loaded.info()["run"]["rows"] == 0
    assert loaded.theta.sha256 == loaded.info()["parameters"]["pretrained"]["theta_sha256"]
    assert loaded.export_onnx(tmp_path / "onnx") < 1e-4


def test_the_command_line_says_that_nothing_was_learnt(described, tiny_bert, tmp_path, cli):
    out = tmp_path / "model"
    done = cli("fit", "--labels", described, "--encoder", tiny_bert, "--out", out)
    assert done.code == 0, done.err
    assert "nothing was learnt: 3 labels by 5 texts about them" in done.out
    assert "nothing was learnt" in cli("info", out).out
    rows = write_csv(tmp_path / "rows.csv", [{"text": "it is late", "label": "late"}] * 2)
    assert "accuracy" in cli("eval", out, rows).out


def test_descriptions_are_rows_beside_others(tmp_path, tiny_bert):
    path = tmp_path / "labels.yaml"
    path.write_text("positive: good\nstrange: ran\n")
    rows = toy_rows(2)
    quick = {"encoder": str(tiny_bert), "adapt": "frozen", "pooling": "mean", "quiet": True}
    fitted = berthead.fit(rows, labels=str(path), **quick)
    assert fitted.info()["run"]["rows"] == len(rows) + 2
    assert fitted.labels == ["negative", "positive", "strange"]
    notes = "\n".join(fitted.warnings)
    assert 'labels without a description: "negative"' in notes
    assert 'labels with a description and without a row: "strange"' in notes
    numbers = [row | {"label": int(row["label"] == "positive")} for row in rows]
    path.write_text("1: good\n0: bad\n")
    assert berthead.fit(numbers, labels=str(path), **quick).labels == [0, 1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("late:\nbroken: it is\n", "late: has no description"),
        ("late: {description: '', examples: []}\nb: c\n", "late: has no description"),
        ("'': the parcel\nb: c\n", "has a description without a label, .the parcel"),
        ("late: {descripton: x}\nb: c\n", "late: descripton: is not known; expected description or examples"),
        ("late: {examples: x}\nb: c\n", "late: examples: is .x.; expected a list of texts"),
        ("late: [[x]]\nb: c\n", "late: holds .* expected a text"),
        ("late: x\nlate: y\n", 'line 2 holds "late", which is there twice'),
        ("late: &a x\nb: *a\n", r"line 2 refers to another value by \*"),
        ("- late\n", "does not hold a mapping; expected lines such as `late: "),
        ("late: x\n", "holds only the class .late.; expected 2 to"),
        ("", "does not hold a mapping"),
    ],
)
def test_what_is_wrong_in_a_file_is_told(tmp_path, text, told):
    path = tmp_path / "labels.yaml"
    path.write_text(text)
    with pytest.raises((UsageError, DataError), match=told):
        berthead.fit(labels=str(path))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"task": "regress"}, "labels: is given, but task=.*regress.* has no labels to describe"),
        ({"epochs": 3}, "epochs: has no effect without rows: nothing is learnt"),
        ({"valid": "0.1"}, "valid: has no effect without rows"),
        ({"pooling": "pooler"}, "pooling=.*pooler.* does not compare texts; expected mean or cls"),
    ],
)
def test_what_needs_rows_is_refused_without_them(described, tiny_bert, options, told):
    with pytest.raises(UsageError, match=told):
        berthead.fit(labels=str(described), encoder=str(tiny_bert), **options)


def test_no_rows_and_no_labels_are_refused(tmp_path, cli):
    with pytest.raises(DataError, match="data: is None; expected rows, or labels="):
        berthead.fit()
    done = cli("fit", "--out", tmp_path / "model")
    assert done.code == 2
    assert "got no data; expected a file of rows, or --labels FILE" in done.err
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        berthead.fit(labels=str(tmp_path / "missing.yaml"))
