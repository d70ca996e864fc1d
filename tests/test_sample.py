"""The bundled sample is what its README says, and the product does on it what it promises."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLE, shell_env
from scipy.stats import pearsonr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MultiLabelBinarizer

import berthead

README = (SAMPLE / "README.md").read_text(encoding="utf-8")
FILES = {"train.csv": 555, "test.csv": 200, "new.csv": 12}


def rows_of(name: str) -> list[dict[str, str]]:
    with (SAMPLE / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table_in_readme(heading: str) -> dict[str, tuple[int, int, int]]:
    """A table of counts: name to train, test and total."""
    part = README.split(f"### {heading}\n")[1].split("\n### ")[0]
    return {
        name: tuple(map(int, numbers))
        for name, *numbers in re.findall(r"\| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \|", part)
    }


def tags_of(row: dict[str, str]) -> list[str]:
    return row["tags"].split("|") if row["tags"] else []


@pytest.mark.parametrize("name", FILES)
def test_rows_and_columns_are_as_told(name):
    rows = rows_of(name)
    assert len(rows) == FILES[name]
    assert f"`{name}` | {len(rows)} |" in README
    wanted = ["id", "text"] if name == "new.csv" else ["id", "text", "queue", "tags", "urgency"]
    assert all(list(row) == wanted for row in rows)
    assert all(row["text"].strip() for row in rows)


def test_ids_are_unique_over_all_files_and_texts_over_the_split():
    rows = {name: rows_of(name) for name in FILES}
    ids = [row["id"] for part in rows.values() for row in part]
    assert len(set(ids)) == len(ids)
    texts = {name: {" ".join(row["text"].lower().split()) for row in part} for name, part in rows.items()}
    assert not texts["train.csv"] & texts["test.csv"]
    assert not texts["new.csv"] & (texts["train.csv"] | texts["test.csv"])


@pytest.mark.parametrize(("heading", "labels"), [("queue", lambda row: [row["queue"]]), ("tags", tags_of)])
def test_label_counts_are_those_of_the_readme(heading, labels):
    train, test = (
        Counter(label for row in rows_of(name) for label in labels(row)) for name in ("train.csv", "test.csv")
    )
    told = table_in_readme(heading)
    assert told
    assert told == {label: (train[label], test[label], train[label] + test[label]) for label in train | test}


def test_urgency_is_a_number_from_0_to_10_in_halves():
    for name in ("train.csv", "test.csv"):
        for row in rows_of(name):
            urgency = float(row["urgency"])
            assert 0 <= urgency <= 10
            assert (urgency * 2).is_integer()


def test_our_reader_reads_the_files_as_the_csv_module_does():
    from berthead.formats.readers import open_rows

    for name in FILES:
        with open_rows(SAMPLE / name) as reader:
            assert [row.values for row in reader] == rows_of(name)


# All processors: the encoder is a real one.
EVERY_THREAD = {key: value for key, value in shell_env().items() if key != "OMP_NUM_THREADS"}


def fitted(shell, *options) -> Path:
    """A model fitted on the train file with the packaged encoder frozen."""
    fit = shell("fit", SAMPLE / "train.csv", "--out", "model", "--adapt", "frozen", *options, env=EVERY_THREAD)
    assert fit.code == 0, fit.err
    return Path("model")


def applied(shell, model, tmp_path) -> list[dict]:
    """The answers of a model to the test file, as a user gets them."""
    evaluation = shell("eval", model, SAMPLE / "test.csv", "--json", env=EVERY_THREAD)
    assert evaluation.code == 0, evaluation.err
    predict = shell(
        "predict", model, SAMPLE / "test.csv", "--out", "answers.jsonl", "--probabilities", env=EVERY_THREAD
    )
    assert predict.code == 0, predict.err
    new = shell("predict", model, SAMPLE / "new.csv", env=EVERY_THREAD)
    assert new.code == 0, new.err
    assert len(list(csv.DictReader(new.out.splitlines(keepends=True)))) == FILES["new.csv"]
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in rows_of("test.csv")]
    (tmp_path / "scores.json").write_text(evaluation.out)
    return rows


def test_frozen_minilm_beats_counting_words_by_8_points(sample_model, shell, tmp_path):
    rows = applied(shell, sample_model, tmp_path)
    gold = [row["queue"] for row in rows]
    accuracy = accuracy_score(gold, [row["prediction"] for row in rows])
    train = rows_of("train.csv")
    counting = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    counting.fit([row["text"] for row in train], [row["queue"] for row in train])
    baseline = counting.score([row["text"] for row in rows], gold)
    assert accuracy >= baseline + 0.08, f"{accuracy:.3f} against {baseline:.3f}"
    assert json.loads((tmp_path / "scores.json").read_text())["accuracy"] == pytest.approx(accuracy)
    model = berthead.load(sample_model)
    assert model.labels == sorted(table_in_readme("queue"))
    assert model.info()["parameters"]["theta_is_pretrained"] is True


@pytest.mark.exhaustive
def test_tags_are_learnt_as_many_labels(shell, tmp_path):
    rows = applied(shell, fitted(shell, "--task", "multilabel", "--label", "tags"), tmp_path)
    binarizer = MultiLabelBinarizer().fit([list(table_in_readme("tags"))])
    gold = binarizer.transform([tags_of(row) for row in rows])
    shares = np.array([[row[f"p({tag})"] for tag in binarizer.classes_] for row in rows])
    found = average_precision_score(gold.ravel(), shares.ravel())
    assert found > 3 * gold.mean(), "hardly better than chance"
    told = json.loads((tmp_path / "scores.json").read_text())
    assert told["average_precision"] == pytest.approx(found, abs=1e-4)
    thresholds = dict(
        zip(*(berthead.load(tmp_path / "model").info()["task"][key] for key in ("labels", "thresholds")), strict=True)
    )
    for row in rows:
        assert set(row["prediction"]) == {tag for tag in thresholds if row[f"p({tag})"] >= thresholds[tag]}


@pytest.mark.exhaustive
def test_urgency_is_learnt_as_a_number(shell, tmp_path):
    rows = applied(shell, fitted(shell, "--task", "regress", "--label", "urgency"), tmp_path)
    gold, answers = [float(row["urgency"]) for row in rows], [row["prediction"] for row in rows]
    assert pearsonr(gold, answers)[0] > 0.5
    assert np.abs(np.subtract(gold, answers)).mean() < np.abs(gold - np.mean(gold)).mean()
    told = json.loads((tmp_path / "scores.json").read_text())
    assert told["pearson"] == pytest.approx(pearsonr(gold, answers)[0], abs=1e-5)
