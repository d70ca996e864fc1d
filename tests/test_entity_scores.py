"""Scores of tagged words, against seqeval and, for plain tags, scikit-learn."""

from __future__ import annotations

import pytest
from conftest import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import (
    accuracy_score,
    classification_report,
    f1_score,
    precision_score,
    recall_score,
)
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES
from sklearn import metrics as sk

from berthead.data.entities import Entity, to_tags
from berthead.data.tag_schemes import from_bio
from berthead.tasks.entity_scores import entity_scores

QUICK = settings(max_examples=tries(200), deadline=None)
LETTERS = {"BIO": "BI", "IOB1": "BI", "BIOES": "BIES"}
THEIRS = {"BIO": IOB2, "IOB1": IOB1, "BIOES": IOBES}
PLAIN = ["DET", "NOUN", "VERB", "O"]


@st.composite
def tagged(draw, tag):
    """Rows of gold tags, and predicted ones that are often the same."""
    gold = draw(st.lists(st.lists(tag, max_size=8), min_size=1, max_size=5).filter(any))
    share = draw(st.sampled_from([0, 2, 9]))
    keep = st.integers(0, 9).map(lambda number: number < share)
    return gold, [[wanted if draw(keep) else draw(tag) for wanted in row] for row in gold]


def tag_of(letters):
    return st.one_of(st.just("O"), st.builds("{}-{}".format, st.sampled_from(letters), st.sampled_from("XYZ")))


def same_table(table, report):
    """Whether the table of labels is seqeval's report."""
    labels = [row["label"] for row in table]
    assert labels == sorted(set(report) - {"micro avg", "macro avg", "weighted avg"})
    for row in table:
        theirs = report[row["label"]]
        got = [row["precision"], row["recall"], row["f1"], row["support"]]
        assert got == pytest.approx([theirs[key] for key in ("precision", "recall", "f1-score", "support")], abs=1e-12)


@pytest.mark.parametrize("scheme", list(LETTERS))
@given(data=st.data())
@QUICK
def test_scores_are_those_of_seqeval(scheme, data):
    gold, predicted = data.draw(tagged(tag_of(LETTERS[scheme])))
    scores = entity_scores(gold, predicted, scheme)
    strict = {"mode": "strict", "scheme": THEIRS[scheme]}
    for name, theirs in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert scores[name] == pytest.approx(theirs(gold, predicted, zero_division=0), abs=1e-12)
        wanted = theirs(gold, predicted, zero_division=0, **strict)
        assert scores[f"strict_{name}"] == pytest.approx(wanted, abs=1e-12)
    assert scores["token_accuracy"] == pytest.approx(accuracy_score(gold, predicted), abs=1e-12)
    if scores["per_label"]:  # their mean over no label is NaN
        report = classification_report(gold, predicted, output_dict=True, zero_division=0)
        same_table(scores["per_label"], report)
        assert scores["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"], abs=1e-12)


@given(data=tagged(tag_of("BILU")))
@QUICK
def test_strict_scores_of_bilou_are_those_of_seqeval(data):
    gold, predicted = data
    scores = entity_scores(gold, predicted, "BIOES")
    wanted = f1_score(gold, predicted, zero_division=0, mode="strict", scheme=BILOU)
    assert scores["strict_f1"] == pytest.approx(wanted, abs=1e-12)


@given(data=tagged(tag_of("BI")), scheme=st.sampled_from(["IOB1", "BIOES"]))
@QUICK
def test_scores_do_not_depend_on_the_scheme(data, scheme):
    gold, predicted = data
    other = [[from_bio(row, scheme) for row in rows] for rows in data]
    names = ("precision", "recall", "f1", "macro_f1", "per_label")
    here, there = entity_scores(gold, predicted), entity_scores(*other, scheme)
    assert [here[name] for name in names] == [there[name] for name in names]


@given(data=tagged(st.sampled_from(PLAIN)))
@QUICK
def test_plain_tags_are_scored_as_scikit_learn_scores_words(data):
    gold, predicted = ([tag for row in rows for tag in row] for rows in data)
    scores = entity_scores(*data, "plain")
    assert scores.keys() == {"f1", "macro_f1", "token_accuracy", "per_label"}
    assert scores["token_accuracy"] == scores["f1"] == pytest.approx(sk.accuracy_score(gold, predicted))
    assert scores["f1"] == pytest.approx(sk.f1_score(gold, predicted, average="micro"))
    assert scores["macro_f1"] == pytest.approx(sk.f1_score(gold, predicted, average="macro", zero_division=0))
    report = sk.classification_report(gold, predicted, output_dict=True, zero_division=0)
    for row in scores["per_label"]:
        theirs = report[row["label"]]
        got = [row["precision"], row["recall"], row["f1"], row["support"]]
        assert got == pytest.approx([theirs[key] for key in ("precision", "recall", "f1-score", "support")])
    assert [row["label"] for row in scores["per_label"]] == sorted({*gold, *predicted})


def test_a_strict_score_is_lower_where_tags_are_ill_formed():
    scores = entity_scores([["B-X", "O", "B-Y"]], [["I-X", "O", "B-Y"]])
    assert scores["f1"] == 1.0
    assert scores["strict_recall"] == 0.5
    assert scores["token_accuracy"] == pytest.approx(2 / 3)


def test_a_wrong_end_is_two_mistakes():
    gold = [to_tags([Entity("X", 0, 2), Entity("Y", 3, 4)], 5)]
    predicted = [to_tags([Entity("X", 0, 3), Entity("Y", 3, 4)], 5)]
    scores = entity_scores(gold, predicted)
    assert (scores["precision"], scores["recall"], scores["macro_f1"]) == (0.5, 0.5, 0.5)
    assert scores["per_label"] == [
        {"label": "X", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1},
        {"label": "Y", "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1},
    ]


def test_nothing_to_find_and_nothing_found_is_zero():
    scores = entity_scores([["O", "O"]], [["O", "O"]])
    assert (scores["f1"], scores["macro_f1"], scores["strict_f1"], scores["token_accuracy"]) == (0.0, 0.0, 0.0, 1.0)
    assert scores["per_label"] == []


@pytest.mark.parametrize(
    ("gold", "predicted", "seen"),
    [
        ([["O"]], [["O"], ["O"]], "got 2 rows of predicted tags; expected 1"),
        ([["O"], ["O", "O"]], [["O"], ["O"]], "row 2 has 1 predicted tag; expected 2"),
        ([], [], "no word"),
        ([[]], [[]], "no word"),
    ],
)
@pytest.mark.parametrize("scheme", ["BIO", "plain"])
def test_what_cannot_be_scored_is_refused(gold, predicted, seen, scheme):
    with pytest.raises(ValueError, match=seen):
        entity_scores(gold, predicted, scheme)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match='"IOE2"'):
        entity_scores([["O"]], [["O"]], "IOE2")
