"""Public data sets, a slice of each: every task learns, and is scored as scikit-learn and scipy score it."""

from __future__ import annotations

import csv
from itertools import islice

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score

import berthead

CASES = {
    "sentence-polarity": {"text": "text", "label": "label"},
    "medical-abstracts": {"text": "abstract", "label": "condition", "max_tokens": 128},
    "banking77": {"text": "text", "label": "category"},
    "sick": {"text": "sentence_A", "pair": "sentence_B", "label": "entailment"},
    "stsbenchmark": {"text": "sentence1", "pair": "sentence2", "label": "score", "task": "regress"},
    "goemotions": {"text": "text", "label": "emotions", "task": "multilabel"},
}


def slice_of(path, rows: int, seed: int) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        everything = list(csv.DictReader(file))
    order = np.random.default_rng(seed).permutation(len(everything))
    return [everything[row] for row in islice(order, rows)]


@pytest.mark.parametrize("name", CASES)
def test_a_frozen_fit_learns_and_scores_as_scikit_learn_does(name, shared_data):
    options = CASES[name]
    train = slice_of(shared_data / name / "train.csv", 600, seed=0)
    test = slice_of(shared_data / name / "test.csv", 200, seed=1)
    label, pair = options["label"], options.get("pair")
    known = {part for row in train for part in row[label].split("|")}
    if options.get("task") != "regress":
        test = [row for row in test if set(row[label].split("|")) <= known]

    fitted = berthead.fit(train, adapt="frozen", quiet=True, **options)
    scores = fitted.evaluate(test)
    answers = [one.answer for one in fitted.predict([(r[options["text"]], r[pair]) if pair else r[options["text"]] for r in test])]  # fmt: skip # noqa: E501
    gold = [row[label] for row in test]
    run = fitted.info()["run"]
    assert run["metrics"][run["settings"]["metric"]] > run["baselines"]["majority"]

    if options.get("task") == "regress":
        assert scores["pearson"] == pytest.approx(pearsonr([float(g) for g in gold], answers)[0], abs=1e-6)
        assert scores["pearson"] > 0.3
    elif options.get("task") == "multilabel":
        names = fitted.labels
        wanted = np.array([[one in g.split("|") for one in names] for g in gold])
        given = np.array([[one in answer for one in names] for answer in answers])
        assert scores["micro_f1"] == pytest.approx(f1_score(wanted, given, average="micro", zero_division=0), abs=1e-9)
        assert scores["micro_f1"] > 0.25
    else:
        majority = max(gold.count(one) for one in set(gold)) / len(gold)
        assert scores["accuracy"] == pytest.approx(accuracy_score(gold, answers), abs=1e-9)
        assert scores["accuracy"] > majority


def test_the_same_fit_twice_gives_the_same_bytes_with_two_threads(shared_data, tmp_path):
    train = slice_of(shared_data / "sentence-polarity" / "train.csv", 200, seed=0)
    for folder in ("first", "second"):
        berthead.fit(train, text="text", label="label", epochs=1, threads=2, seed=7, out=tmp_path / folder, quiet=True)
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
