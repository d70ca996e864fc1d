"""SequenceLabeler, SpanExtractor and MultipleChoice: scikit-learn's conventions for rows that are no plain texts."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from toy_tasks import choose_rows, span_rows, tag_rows

import berthead
from berthead import MultipleChoice, SequenceLabeler, SpanExtractor
from berthead.errors import DataError

QUICK = {"epochs": 8, "batch": 8, "lr": 3e-3, "valid": 0, "threads": 1, "precision": "fp32", "random_state": 1}


def data(kind):
    """X and y of 80 toy rows."""
    if kind is SequenceLabeler:
        rows = tag_rows(80)
        return [row["tokens"] for row in rows], [row["tags"] for row in rows]
    if kind is SpanExtractor:
        rows = span_rows(80)
        return [(row["question"], row["context"]) for row in rows], [row["answers"][0]["text"] for row in rows]
    rows = choose_rows(80)
    return [(row["question"], row["choices"]) for row in rows], [row["label"] for row in rows]


KINDS = [SequenceLabeler, SpanExtractor, MultipleChoice]


@pytest.fixture(scope="module", params=KINDS)
def fitted(request, tiny_bert):
    return request.param(encoder=str(tiny_bert), **QUICK).fit(*data(request.param))


def test_it_learns_predicts_in_ys_terms_and_scores(fitted):
    X, y = data(type(fitted))
    assert fitted.predict(X) == y
    assert fitted.score(X, y) == 1.0


def test_its_folder_is_the_function_of_the_command_line(fitted, tmp_path):
    X, _ = data(type(fitted))
    fitted.save(tmp_path / "model")
    again = berthead.load(tmp_path / "model")
    rows = [{"tokens": row} for row in X] if isinstance(fitted, SequenceLabeler) else X
    answers = [one.tags if isinstance(fitted, SequenceLabeler) else one.answer for one in again.predict(rows)]
    assert answers == fitted.predict(X)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_cloned_and_searched_like_any_estimator(kind, tiny_bert):
    X, y = data(kind)
    estimator = kind(encoder=str(tiny_bert), **(QUICK | {"epochs": 1}))
    assert clone(estimator).get_params() == estimator.get_params()
    assert clone(estimator).set_params(head="linear").get_params()["head"] == "linear"
    with pytest.raises(NotFittedError):
        estimator.predict(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        # scikit-learn indexes X as a list; arrays of lists would be matrices.
        scores = cross_val_score(estimator, X[:20], y[:20], cv=2, error_score="raise")
        search = GridSearchCV(estimator, {"epochs": [1, 2]}, cv=2, error_score="raise").fit(X[:20], y[:20])
    assert ((scores >= 0) & (scores <= 1)).all()
    assert search.best_params_["epochs"] in (1, 2)


def test_texts_and_spans_can_be_labelled_too(tiny_bert):
    X = ["the good cat", "a bad dog sat", "the cat"] * 10
    y = [[{"start": 4, "end": 8, "label": "POS"}], [(2, 5, "NEG")], []] * 10
    spans = SequenceLabeler(encoder=str(tiny_bert), **QUICK).fit(X, y).predict(["a good dog", "the dog"])
    assert [(one.start, one.end, one.label, one.text) for one in spans[0]] == [(2, 6, "POS", "good")]
    assert spans[1] == []


def test_answers_can_be_missing_and_places_be_given(tiny_bert):
    rows = span_rows(60, unanswerable=True)
    X = [(row["question"], row["context"]) for row in rows]
    extractor = SpanExtractor(encoder=str(tiny_bert), **QUICK).fit(X, [row["answers"] for row in rows])
    plain = SpanExtractor(encoder=str(tiny_bert), **QUICK).fit(X, ["red" if row["answers"] else "" for row in rows])
    wanted = ["red" if row["answers"] else "" for row in rows]
    assert extractor.predict(X) == plain.predict(X) == wanted
    for (_, context), spans in zip(X, extractor.predict_spans(X), strict=True):
        assert all(context[span.start : span.end] == span.text for span in spans)


def test_a_wrong_place_that_is_mended_is_a_warning(tiny_bert):
    rows = span_rows(8)
    answers = [row["answers"] for row in rows]
    answers[3] = [{"text": "red", "answer_start": answers[3][0]["answer_start"] + 1}]
    X = [(row["question"], row["context"]) for row in rows]
    with pytest.warns(UserWarning, match=r"corrected: X\[3\]: answer_start .* is wrong"):
        SpanExtractor(encoder=str(tiny_bert), **(QUICK | {"epochs": 1})).fit(X, answers)


def test_probabilities_of_choices_are_an_array_a_question(tiny_bert):
    X, y = data(MultipleChoice)
    shares = MultipleChoice(encoder=str(tiny_bert), **QUICK).fit(X, y).predict_proba(X)
    assert [len(row) for row in shares] == [len(choices) for _, choices in X]
    np.testing.assert_allclose([row.sum() for row in shares], 1, atol=1e-6)
    assert [int(row.argmax()) for row in shares] == y


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_pandas_and_polars_are_rows(kind, tiny_bert):
    X, y = data(kind)
    plain = kind(encoder=str(tiny_bert), **QUICK).fit(X, y)
    names = ["tokens"] if kind is SequenceLabeler else ["question", "other"]
    columns = [X] if kind is SequenceLabeler else [list(part) for part in zip(*X, strict=True)]
    for table in (pd.DataFrame, pl.DataFrame):
        frame = table(dict(zip(names, columns, strict=True)))
        assert plain.predict(frame) == plain.predict(X)
        assert plain.score(frame, y) == 1.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("X", ["one text", {"tokens": ["a"]}, b"bytes"])
def test_what_is_no_list_of_rows_is_refused(kind, X, tiny_bert):
    with pytest.raises(DataError, match=r"X: is (str|dict|bytes); expected a list of rows"):
        kind(encoder=str(tiny_bert), **QUICK).fit(X, ["O"])


def test_rows_that_do_not_go_together_are_refused_with_their_place(tiny_bert):
    small = QUICK | {"epochs": 1, "encoder": str(tiny_bert)}
    with pytest.raises(DataError, match=r"X\[1\].*1 tag for 2 tokens"):
        SequenceLabeler(**small).fit([["a", "b"], ["a", "b"]], [["O", "B-X"], ["O"]])
    with pytest.raises(DataError, match=r"X\[1\].*is not in the context"):
        SpanExtractor(**small).fit([("a", "b c"), ("a", "b c")], ["b", "d"])
    with pytest.raises(DataError, match=r"X\[0\].*there are 2 choices"):
        MultipleChoice(**small).fit([("a", ["b", "c"])], [2])
    with pytest.raises(DataError, match="target y is None"):
        MultipleChoice(**small).fit([("a", ["b", "c"])], None)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        MultipleChoice(**small).fit([("a", ["b", "c"])], [0, 1])
    with pytest.raises(DataError, match="empty"):
        SequenceLabeler(**small).fit([], [])
    labeller = SequenceLabeler(**small).fit([["a", "b"]] * 4, [["O", "B-X"]] * 4)
    with pytest.raises(DataError, match=r'X\[0\]: the target holds "NEW"'):
        labeller.score([["a", "b"]], [["O", "B-NEW"]])
