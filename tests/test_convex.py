"""Heads of frozen encoders are solved: the same as scikit-learn's, judged by rows that they did not see."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from conftest import all_bytes, daily, toy_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

import berthead
from berthead.data.split import folds
from berthead.records import Example
from berthead.train import modes
from berthead.train.convex import FOLDS

FROZEN = {"adapt": "frozen", "threads": 1, "quiet": True}
TINY = FROZEN | {"pooling": "mean"}  # an encoder with BERT's own pooler: that one is no linear head


def vectors_of(encoder, texts: list[str]) -> np.ndarray:
    """The mean of each text's vectors by transformers, float64 [texts, width]."""
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    found = []
    for text in texts:
        with torch.no_grad():
            found.append(model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0))
    return torch.stack(found).double().numpy()


def seen(vectors: np.ndarray, how: str) -> np.ndarray:
    """Vectors as a record says that they were looked at."""
    if how == "normalised":
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    if how == "standardised":
        return (vectors - vectors.mean(0)) / vectors.std(0)
    assert how == "centred"
    return vectors


def noisy_rows(count: int, seed: int = 0) -> list[dict]:
    """Toy rows, some of them with another row's label, so that no head is right about all."""
    rows = toy_rows(-(-count // 14))[:count]
    draw = random.Random(seed)
    for row in draw.sample(rows, count // 2):
        row |= {name: draw.choice(rows)[name] for name in ("stars", "tags")} | {
            "label": draw.choice(["mixed", "positive"])
        }
    return rows


@pytest.mark.parametrize(("weight", "pooling"), [("none", "mean"), ("balanced", "mean"), ("none", "mean_normalised")])
def test_a_classifier_is_that_of_scikit_learn(tiny_bert, weight, pooling):
    from sklearn.linear_model import LogisticRegression

    rows = noisy_rows(80)
    fitted = berthead.fit(rows, encoder=str(tiny_bert), class_weight=weight, **TINY | {"pooling": pooling})
    solved = fitted.info()["run"]["solved"]
    vectors = vectors_of(tiny_bert, [row["text"] for row in rows])
    features = seen(seen(vectors, "normalised") if "_" in pooling else vectors, solved["vectors"])
    labels = [row["label"] for row in rows]
    theirs = LogisticRegression(
        C=1 / (len(rows) * solved["penalty"]), tol=1e-8, max_iter=5000,
        class_weight=None if weight == "none" else "balanced",
    ).fit(features, labels)  # fmt: skip
    wanted = theirs.decision_function(features)
    shares = np.exp(wanted / fitted.info()["task"]["temperature"])
    assert [str(label) for label in theirs.classes_] == fitted.labels
    ours = fitted.predict_proba([row["text"] for row in rows])
    np.testing.assert_allclose(ours, shares / shares.sum(1, keepdims=True), atol=2e-3)


def test_numbers_are_those_of_ridge_regression(tiny_bert):
    from sklearn.linear_model import Ridge

    rows = noisy_rows(60)
    fitted = berthead.fit(rows, task="regress", label="stars", encoder=str(tiny_bert), **TINY)
    solved = fitted.info()["run"]["solved"]
    features = seen(vectors_of(tiny_bert, [row["text"] for row in rows]), solved["vectors"])
    targets = np.array([float(row["stars"]) for row in rows])
    # Ours is the mean of squares in standard deviations, and half of the penalty.
    theirs = Ridge(alpha=solved["penalty"] * len(rows) / 2).fit(features, (targets - targets.mean()) / targets.std())
    wanted = theirs.predict(features) * targets.std() + targets.mean()
    ours = [one.answer for one in fitted.predict([row["text"] for row in rows])]
    np.testing.assert_allclose(ours, wanted.clip(targets.min(), targets.max()), atol=2e-3 * targets.std())
    # The heads without a fold answer in the same unit.
    told = fitted.info()["run"]["gate"]
    assert told["fp32"] == pytest.approx(fitted.metrics["pearson"], abs=1e-6)
    assert all(one["largest_drift"] < 0.5 for one in told["precisions"].values())


def test_each_label_has_a_logistic_regression(tiny_bert):
    from sklearn.linear_model import LogisticRegression

    rows = noisy_rows(80)
    fitted = berthead.fit(rows, task="multilabel", label="tags", encoder=str(tiny_bert), **TINY)
    solved = fitted.info()["run"]["solved"]
    features = seen(vectors_of(tiny_bert, [row["text"] for row in rows]), solved["vectors"])
    ours = fitted.predict_proba([row["text"] for row in rows])
    for number, label in enumerate(fitted.labels):
        has = [label in row["tags"].split("|") for row in rows]
        # Ours is the mean over rows and labels.
        strength = 1 / (len(rows) * len(fitted.labels) * solved["penalty"])
        theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(features, has)
        np.testing.assert_allclose(ours[:, number], theirs.predict_proba(features)[:, 1], atol=2e-3)


@pytest.mark.parametrize("seed", daily(range(3), 0))
def test_labels_by_chance_are_not_known_out_of_fold(seed):
    """Every text is there twice: in two folds, one would give the other away."""
    draw = random.Random(seed)
    words = ["van", "lamp", "card", "bell", "map", "app", "parcel", "invoice", "screen", "lock", "door", "price"]
    texts = list({" ".join(draw.sample(words, 4)) for _ in range(150)})[:100]
    rows = [{"text": text, "label": label} for text in texts for label in [draw.choice(["in", "out"])] * 2]
    fitted = berthead.fit(rows, seed=seed, **FROZEN)
    run = fitted.info()["run"]
    assert (run["rows"], run["held_out_rows"], run["solved"]["scored_rows"]) == (200, 0, 200)
    # Of a hundred coins so many fall on one side once in a thousand times.
    assert abs(run["metrics"]["accuracy"] - 0.5) < 0.16


def test_what_a_solved_fit_writes_down_is_enough(tiny_bert, tmp_path):
    rows, options = noisy_rows(100), TINY | {"encoder": str(tiny_bert)}
    fitted = berthead.fit(rows, out=tmp_path / "one", **options)
    berthead.fit(rows, out=tmp_path / "two", **options)
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "two")
    run = fitted.info()["run"]
    assert set(run["settings"]) == {"metric", "precision", "seed", "balanced", "device"}
    assert run["solved"]["folds"] == FOLDS
    assert set(run["baselines"]) == {"majority", "tfidf"}
    assert "compared" not in run  # the baselines answer all of so few rows
    assert run["gate"]["rows"] == 100
    assert f"accuracy {run['metrics']['accuracy']:.4f} on 100 rows out of fold" in repr(fitted)
    loaded = berthead.load(tmp_path / "one")
    assert loaded.verify() < 1e-4
    text = "the cat sat, fine"
    assert loaded.predict(text).probabilities == fitted.predict(text).probabilities


@pytest.mark.parametrize(
    "options",
    [{"epochs": 2}, {"lr": 1e-3}, {"batch": 8, "epochs": 1}, {"windows": "max"}, {"pooling": "pooler"}],
    ids=str,
)
def test_who_asks_for_steps_gets_steps(tiny_bert, options):
    run = berthead.fit(toy_rows(3), encoder=str(tiny_bert), **TINY | options).info()["run"]
    assert "solved" not in run
    assert run["best_epoch"] > 0
    assert run["settings"]["epochs"] > 0


def test_held_out_rows_are_kept_out_of_the_folds(tiny_bert):
    run = berthead.fit(noisy_rows(100), encoder=str(tiny_bert), valid=0.25, **TINY).info()["run"]
    assert (run["rows"] + run["held_out_rows"], run["solved"]["scored_rows"]) == (100, run["rows"])
    assert run["gate"]["rows"] == run["held_out_rows"] > 20


def test_too_many_vectors_for_the_memory_are_learnt_in_steps(tiny_bert, monkeypatch):
    monkeypatch.setattr(modes, "MOST_CACHED_BYTES", 1000)
    run = berthead.fit(toy_rows(20), encoder=str(tiny_bert), **TINY).info()["run"]
    assert "solved" not in run
    assert run["held_out_rows"] > 20


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz")), min_size=1, max_size=60),
    st.integers(2, 6),
    st.integers(0, 5),
)
@settings(deadline=None)
def test_folds_keep_equal_texts_together_and_are_even(pairs, count, seed):
    rows = [Example(text=text, target=label) for text, label in pairs]
    found = folds(rows, count, seed, lambda row: row.target)
    assert found.min() >= 0
    assert found.max() < count
    assert len({(row.text, fold) for row, fold in zip(rows, found, strict=True)}) == len({row.text for row in rows})
    texts = {row.text: fold for row, fold in zip(rows, found, strict=True)}
    sizes = np.bincount(list(texts.values()), minlength=count)
    assert sizes.max() - sizes.min() <= 1
    assert (found == folds(rows, count, seed, lambda row: row.target)).all()


def test_vectors_that_overflow_are_told(tiny_bert, monkeypatch):
    def overflown(self, normalised):
        return torch.full((len(self.train_vectors), 4), torch.inf)

    monkeypatch.setattr(modes.CachedFeatures, "unit_vectors", overflown)
    with pytest.raises(berthead.errors.ModelError, match=r"encoder.*gives vectors that are not finite"):
        berthead.fit(toy_rows(3), encoder=str(tiny_bert), **TINY)
