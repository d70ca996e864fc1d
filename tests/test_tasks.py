"""Targets, losses, decisions and metrics of each task, against scikit-learn, scipy and torch."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special, stats
from sklearn import metrics as sk
from sklearn.utils.class_weight import compute_class_weight

from berthead.data.labels import Labels
from berthead.errors import DataError, UsageError
from berthead.tasks import TASKS, Classify, Multilabel, Regress, choose_metric
from berthead.tasks.label_scores import calibration_error, nll
from berthead.tasks.multilabel import best_threshold
from berthead.tasks.scale import Scale

QUICK = settings(max_examples=tries(60), deadline=None)
LOGIT = st.integers(-96, 96).map(lambda number: number / 8)  # with ties; exact in float32
NOTHINGS = [None, math.nan, np.float32("nan"), pd.NA, pd.NaT, "", " \t\n"]
LABEL = st.one_of(st.text(max_size=4), st.integers(-3, 3), st.booleans(), st.sampled_from([0.0, 1.0, 0.5, 1e16]))


def classify(labels=3):
    return Classify(Labels([f"l{number}" for number in range(labels)]))


def multilabel(labels=3, threshold=0.5):
    return Multilabel(Labels([f"l{number}" for number in range(labels)]), (threshold,) * labels)


@st.composite
def classified(draw, most=5):
    """Logits and label numbers, with labels without rows and labels never answered among them."""
    rows, labels = draw(st.integers(1, 30)), draw(st.integers(2, most))
    logits = draw(arrays(np.float32, (rows, labels), elements=LOGIT))
    return logits, draw(arrays(np.int64, rows, elements=st.integers(0, labels - 1)))


@st.composite
def marked(draw, least=1):
    """Logits and 0/1 marks, with labels that no row has and rows without a label among them."""
    shape = draw(st.integers(1, 25)), draw(st.integers(least, 5))
    logits = draw(arrays(np.float32, shape, elements=LOGIT))
    return logits, draw(arrays(np.float32, shape, elements=st.sampled_from([0.0, 1.0])))


def rng(seed=0):
    return np.random.default_rng(seed)


def reported(table, wanted, names):
    """Whether a table of labels is scikit-learn's classification_report."""
    assert [row["label"] for row in table] == list(names)
    for row, name in zip(table, names, strict=True):
        theirs = wanted[str(name)]
        got = [row["precision"], row["recall"], row["f1"], row["support"]]
        assert got == pytest.approx([theirs[key] for key in ("precision", "recall", "f1-score", "support")], abs=1e-12)


# Classify


@QUICK
@given(data=classified())
def test_classify_metrics_are_those_of_scikit_learn(data):
    logits, gold = data
    task = classify(logits.shape[1])
    scores = task.evaluate(logits, gold)
    predicted = logits.argmax(1)
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(gold, predicted))
    assert scores["macro_f1"] == pytest.approx(sk.f1_score(gold, predicted, average="macro", zero_division=0))
    assert scores["micro_f1"] == pytest.approx(sk.f1_score(gold, predicted, average="micro"))
    shares = special.softmax(logits.astype(np.float64), axis=1)
    assert scores["loss"] == pytest.approx(sk.log_loss(gold, shares, labels=range(task.outputs)), rel=1e-6, abs=1e-9)
    names = task.labels.names
    report = sk.classification_report(
        gold, predicted, labels=range(task.outputs), target_names=names, output_dict=True, zero_division=0
    )
    reported(scores["per_label"], report, names)
    assert set(task.metrics) <= set(scores)
    json.dumps(scores)


def test_classify_names_the_labels_that_are_never_predicted():
    task = Classify(Labels(["bad", "good", 3]))
    logits = np.array([[1, 0, 0], [2, 0, 0]], dtype=np.float32)
    assert task.evaluate(logits, np.array([1, 2]))["warnings"] == ['never predicted: "good", 3']
    assert task.evaluate(logits, np.array([0, 1]))["warnings"] == ['never predicted: "good"']  # no row is a 3
    assert task.evaluate(np.eye(3, dtype=np.float32), np.array([0, 0, 0]))["warnings"] == []


@QUICK
@given(data=classified())
def test_classify_loss_is_torch_s_cross_entropy_row_by_row(data):
    logits, gold = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    losses = classify(logits.shape[1]).loss(logits, gold, None)
    shares = special.log_softmax(data[0].astype(np.float64), axis=1)
    np.testing.assert_allclose(losses.numpy(), -shares[np.arange(len(gold)), data[1]], atol=2e-5)


def test_balanced_class_weights_are_those_of_scikit_learn_and_weigh_the_loss():
    gold = rng().choice(3, size=200, p=[0.9, 0.08, 0.02])
    task = classify()
    weights = task.weights(gold)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(3), y=gold), rtol=1e-6)
    logits = rng(1).normal(size=(200, 3)).astype(np.float32)
    losses = task.loss(torch.from_numpy(logits), torch.from_numpy(gold), torch.from_numpy(weights))
    shares = special.softmax(logits.astype(np.float64), axis=1)
    wanted = sk.log_loss(gold, shares, sample_weight=weights[gold].astype(np.float64))
    # Balanced weights have the mean 1, so that the mean loss is the weighted mean.
    assert losses.mean().item() == pytest.approx(wanted, rel=1e-5)


def test_a_class_without_fitted_rows_gets_a_finite_weight():
    weights = classify().weights(np.array([0, 0, 0, 1]))
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights[:2], [4 / 9, 4 / 3], rtol=1e-6)


def held_out(rows=400, labels=4, sharpness=3.0, seed=0):
    """Logits that are `sharpness` times too sure of themselves, and gold drawn from the honest ones."""
    random = rng(seed)
    honest = random.normal(size=(rows, labels)) * 1.5
    gold = np.array([random.choice(labels, p=special.softmax(row)) for row in honest])
    return (honest * sharpness).astype(np.float32), gold


@pytest.mark.parametrize(
    "sharpness", [0.3, 8.0, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in (1.0, 3.0))]
)
def test_the_temperature_is_the_one_that_a_grid_search_finds(sharpness):
    logits, gold = held_out(sharpness=sharpness)
    task = classify(4).tuned(logits, gold)
    grid = np.exp(np.linspace(-3, 3, 601))
    losses = [sk.log_loss(gold, special.softmax(logits.astype(np.float64) / t, axis=1)) for t in grid]
    assert task.temperature == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)
    assert task.temperature == pytest.approx(sharpness, rel=0.2)
    assert task.evaluate(logits, gold)["loss"] == pytest.approx(min(losses), abs=1e-4)


def test_the_temperature_calibrates_and_keeps_the_answers():
    logits, gold = held_out(rows=2000)
    before = classify(4)
    after = before.tuned(logits, gold)
    was, now = before.evaluate(logits, gold), after.evaluate(logits, gold)
    assert now["loss"] < was["loss"] - 0.1
    assert now["calibration_error"] < was["calibration_error"] / 3
    assert (now["accuracy"], now["macro_f1"]) == (was["accuracy"], was["macro_f1"])
    assert [one.answer for one in after.decode(logits)] == [one.answer for one in before.decode(logits)]


@QUICK
@given(data=st.data())
def test_tuning_never_raises_the_held_out_loss(data):
    rows = data.draw(st.integers(50, 70))
    logits = data.draw(arrays(np.float32, (rows, 3), elements=LOGIT))
    gold = data.draw(arrays(np.int64, rows, elements=st.integers(0, 2)))
    task = classify().tuned(logits, gold)
    assert nll(logits, gold, task.temperature) <= nll(logits, gold, 1.0)
    assert math.exp(-3) - 1e-6 <= task.temperature <= math.exp(3) + 1e-6


def test_few_held_out_rows_leave_the_temperature_at_one():
    logits, gold = held_out(rows=50)
    assert classify(4).tuned(logits[:49], gold[:49]).temperature == 1.0
    assert classify(4).tuned(logits, gold).temperature != 1.0


@QUICK
@given(data=classified())
def test_the_calibration_error_is_the_weighted_gap_of_ten_bins(data):
    logits, gold = data
    shares = special.softmax(logits, axis=1)
    bins = [[] for _ in range(10)]
    for row, number in zip(shares, gold, strict=True):
        # The bins are [0, .1), [.1, .2), ..., [.9, 1].
        bins[min(int(np.float32(row.max()) * 10), 9)].append((row.max(), row.argmax() == number))
    gaps = [len(b) * abs(np.mean([s for s, _ in b]) - np.mean([r for _, r in b])) for b in bins if b]
    edges = np.abs(shares.max(1) * 10 - np.round(shares.max(1) * 10))
    if edges.min() > 1e-5 or shares.max(1).max() > 0.99:  # a share on the edge of two bins may round to either
        on_edge = (edges <= 1e-5) & (shares.max(1) < 0.99)
        assert calibration_error(logits, gold) == pytest.approx(sum(gaps) / len(gold), abs=1e-5 + on_edge.mean())


def test_the_calibration_error_of_known_cases():
    sure = np.array([[50, 0]] * 4, dtype=np.float32)
    assert calibration_error(sure, np.zeros(4, dtype=int)) == pytest.approx(0)
    assert calibration_error(sure, np.ones(4, dtype=int)) == pytest.approx(1)
    # 70 % sure and right in 3 of 4; 95 % sure and right in 1 of 4.
    logits = np.log([[0.7, 0.3]] * 4 + [[0.95, 0.05]] * 4).astype(np.float32)
    gold = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    assert calibration_error(logits, gold) == pytest.approx((0.05 + 0.7) / 2, abs=1e-6)


@QUICK
@given(logits=arrays(np.float32, (4, 3), elements=st.floats(-1e4, 1e4, width=32)), t=st.sampled_from([0.05, 1.0, 7.0]))
def test_probabilities_are_the_softmax_and_sum_to_one_without_overflow(logits, t):
    with np.errstate(all="raise", under="ignore"):
        answers = Classify(Labels(["a", "b", "c"]), t).decode(logits)
    wanted = special.softmax(logits.astype(np.float64) / t, axis=1)
    for answer, row in zip(answers, wanted, strict=True):
        assert list(answer.probabilities) == ["a", "b", "c"]
        # Logits of 1e4 have a spacing of 1e-3 in float32, so that compared shares are those of the same float32.
        np.testing.assert_allclose(
            list(answer.probabilities.values()), row, atol=1e-6 + 1e-6 * np.abs(logits).max() / t
        )
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert answer.score == max(answer.probabilities.values()) == answer.probabilities[answer.answer]


def test_decoded_answers_are_plain_python():
    labels = ["é", 2, 0.5, True]
    one = Classify(Labels(labels)).decode(np.eye(4, dtype=np.float32))
    assert [(type(a.answer), a.answer) for a in one] == [(type(label), label) for label in labels]
    assert all(type(a.score) is float and all(type(p) is float for p in a.probabilities.values()) for a in one)
    many = Multilabel(Labels(labels), (0.5,) * 4).decode(np.ones((1, 4), dtype=np.float32))[0]
    number = Regress((Scale(0, 1, -1, 1),)).decode(np.zeros((1, 1), dtype=np.float32))[0]
    assert many.answer == labels
    assert type(many.score) is float
    assert type(number.answer) is float
    for answer in (*one, many, number):
        json.dumps([answer.answer, answer.score, answer.probabilities])


def test_every_label_has_its_own_probability_even_if_python_finds_them_equal():
    labels = Labels(["0", 0, False, 0.0])
    for task in (Classify(labels), Multilabel(labels, (0.5,) * 4)):
        (answer,) = task.decode(np.array([[1, 2, 3, 4]], dtype=np.float32))
        assert len(answer.probabilities) == 4
        assert list(answer.probabilities.values()) == sorted(answer.probabilities.values())


# Labels


def test_labels_keep_their_types_through_json():
    names = [False, 0, "0", 0.0, True, 1, "é😀", "ー", "None", "a|b", '"', "1"]
    for task in (Classify(Labels(names), 1.7), Multilabel(Labels(names), tuple(np.linspace(0.1, 0.9, len(names))))):
        again = type(task).from_json(json.loads(json.dumps(task.to_json())))
        assert [(type(name), name) for name in again.labels.names] == [(type(name), name) for name in names]
        assert again.to_json() == task.to_json()
        wanted = np.arange(len(names))
        if isinstance(task, Classify):
            assert again.targets(names).tolist() == wanted.tolist()
            assert again.temperature == 1.7
        else:
            assert again.targets([[name] for name in names]).tolist() == np.eye(len(names)).tolist()
            assert again.thresholds == task.thresholds


def test_regress_keeps_its_numbers_through_json():
    task = Regress.from_targets([0.1, 0.2, 1 / 3, 1e-7], "a.csv")
    assert Regress.from_json(json.loads(json.dumps(task.to_json()))) == task
    assert task.to_json()["labels"] == []


@QUICK
@given(values=st.lists(LABEL, min_size=2, max_size=12))
def test_labels_do_not_depend_on_the_order_of_the_rows(values):
    typed = [(type(name), name) for name in Labels.from_values(values).names]
    assert typed == [(type(name), name) for name in Labels.from_values(values[::-1]).names]
    assert set(typed) == {(type(value), value) for value in values}


@QUICK
@given(values=st.lists(LABEL | st.sampled_from(["0", "0 (int)", "True (bool)", "True"]), min_size=1, max_size=12))
def test_label_texts_are_unique_and_labels_of_text_read_as_they_are(values):
    labels = Labels.from_values(values)
    texts = Multilabel(labels, (0.5,) * len(labels)).label_texts
    assert len(texts) == len(set(texts)) == len(labels)
    for name, text in zip(labels.names, texts, strict=True):
        assert isinstance(text, str)
        assert text.startswith(str(name)) or not str(name)
        assert text == name or not isinstance(name, str)


def test_two_to_a_thousand_classes_are_accepted():
    assert Classify.from_targets(["a", "b", "a"], "a.csv").outputs == 2
    assert Classify.from_targets(list(range(1000)), "a.csv").outputs == 1000
    assert Multilabel.from_targets([["a"], []], "a.csv").outputs == 1
    assert Multilabel.from_targets([list(range(1000))], "a.csv").outputs == 1000


@pytest.mark.parametrize(
    ("task", "targets", "message"),
    [
        (
            "classify",
            ["a"] * 5,
            'a.csv: holds only the class "a"; expected 2 to 1,000 classes. Add rows of another class.',
        ),
        ("classify", [0] * 5, "a.csv: holds only the class 0; expected 2 to 1,000 classes. Add rows of another class."),
        ("classify", [], "a.csv: holds no labelled row; expected 2 to 1,000 classes. Add rows of another class."),
        (
            "classify",
            list(range(1001)),
            "a.csv: holds 1,001 classes; expected 2 to 1,000 classes. "
            "Is this the right column? To predict numbers, use --task regress.",
        ),
        ("multilabel", [[], []], 'a.csv: holds 0 labels; expected 1 to 1,000 labels. Write them as "a|b".'),
        (
            "multilabel",
            [[n] for n in range(1001)],
            'a.csv: holds 1,001 labels; expected 1 to 1,000 labels. Write them as "a|b".',
        ),
        (
            "regress",
            [2.5, 2.5],
            "a.csv: holds only the number 2.5; expected at least two different numbers. Add rows with",
        ),
        (
            "regress",
            [0.1] * 3,
            "a.csv: holds only the number 0.1; expected at least two different numbers. Add rows with",
        ),
        (
            "regress",
            [],
            "a.csv: holds no labelled row; expected at least two different numbers. Add rows with other targets.",
        ),
    ],
)
def test_targets_that_nothing_can_be_learnt_from_are_refused(task, targets, message):
    with pytest.raises(DataError) as error:
        TASKS[task].from_targets(targets, "a.csv")
    assert str(error.value).startswith(message)


def test_a_label_that_was_not_there_at_fit_is_named_with_the_known_ones():
    task = Classify(Labels(["negative", "neutral", "positive"]))
    wanted = 'is "neutal"; expected one of 3 known labels: "negative", "neutral", "positive". Did you mean "neutral"?'
    with pytest.raises(ValueError, match="neutal") as error:
        task.check("neutal")
    assert str(error.value) == wanted
    with pytest.raises(ValueError, match="neutal") as error:
        Multilabel(task.labels, (0.5,) * 3).check(["positive", "neutal"])
    assert str(error.value) == wanted
    with pytest.raises(
        ValueError, match=r"is 2 \(integer; the labels are of type text\); expected one of 2 known labels"
    ):
        Classify(Labels(["0", "1"])).check(2)
    task.check("neutral")


# Cells


@pytest.mark.parametrize("word", ["None", "NA", "null", "nan", "NaN", "n/a", "0", " padded "])
def test_words_for_nothing_are_labels(word):
    assert Classify.read(word) == word
    assert Multilabel.read(word) == [word.strip()]


@pytest.mark.parametrize("value", NOTHINGS, ids=repr)
def test_nothing_is_an_error_for_one_label_and_for_numbers_and_no_label_for_many(value):
    with pytest.raises(ValueError, match=r"^is blank; expected a label$"):
        Classify.read(value)
    with pytest.raises(ValueError, match=r"^is blank; expected a number$"):
        Regress.read(value)
    assert Multilabel.read(value) == []


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(np.int64(3), 3), (np.float32(0.5), 0.5), (np.bool_(True), True), (np.str_("a"), "a"), (0, 0), (False, False)],
)
def test_a_label_from_numpy_becomes_plain_python(value, wanted):
    read = Classify.read(value)
    assert (read, type(read)) == (wanted, type(wanted)) or (isinstance(value, str) and read == wanted)
    assert json.loads(json.dumps(read)) == wanted


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a", {1}])
def test_a_cell_that_is_no_single_label_is_refused(value):
    with pytest.raises(ValueError, match="expected a text or a number"):
        Classify.read(value)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("a|b", ["a", "b"]),
        (" a | b ", ["a", "b"]),
        ("a||b|", ["a", "b"]),
        ("|", []),
        ('["a", "b|c"]', ["a", "b|c"]),
        (' ["é"]', ["é"]),
        ("[1, true, 0.5]", [1, True, 0.5]),
        ("[]", []),
        ("[draft] note|b", ["[draft] note", "b"]),
        (["a", "b|c"], ["a", "b|c"]),
        (("a", "b"), ["a", "b"]),
        ([], []),
        ([np.int64(1), np.str_("a")], [1, "a"]),
        (np.array(["a", "b"], dtype=object), ["a", "b"]),
        (np.array(["a|b"], dtype=object), ["a|b"]),
        (np.array([1, 2]), [1, 2]),
        (np.array([7]), [7]),
        (np.array([], dtype=object), []),
    ],
    ids=repr,
)
def test_a_multilabel_cell_is_a_list_a_json_list_or_divided_by_bars(value, wanted):
    got = Multilabel.read(value)
    assert got == wanted
    assert [type(one) for one in json.loads(json.dumps(got))] == [type(one) for one in wanted]


@pytest.mark.parametrize(
    "value", [5, {"a": 1}, [["a"]], ["a", None], '["a", null]', '["a", NaN]', ["a", math.nan], ["a", ""]], ids=repr
)
def test_a_multilabel_cell_that_is_no_list_of_labels_is_refused(value):
    with pytest.raises(ValueError, match="expected labels as a JSON list"):
        Multilabel.read(value)


@pytest.mark.parametrize(("value", "wanted"), [("3.5", 3.5), (" -1e3 ", -1000.0), (np.float32(0.5), 0.5), (7, 7.0)])
def test_a_number_is_read_from_text_and_from_numpy(value, wanted):
    assert (Regress.read(value), type(Regress.read(value))) == (wanted, float)


@pytest.mark.parametrize(
    "value", ["abc", "1,5", "inf", "-Infinity", math.inf, True, [1.0], {}, 10**400], ids=lambda v: str(v)[:9]
)
def test_a_cell_that_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match=r"expected a finite number such as 3\.5, for --task regress"):
        Regress.read(value)


# Multilabel


@QUICK
@given(data=marked(least=2))
def test_multilabel_metrics_are_those_of_scikit_learn(data):
    logits, gold = data
    thresholds = tuple(np.linspace(0.2, 0.7, logits.shape[1]))
    task = Multilabel(multilabel(logits.shape[1]).labels, thresholds)
    scores = task.evaluate(logits, gold)
    shares = special.expit(logits)
    predicted = (shares >= np.array(thresholds)).astype(int)
    if np.abs(shares - np.array(thresholds)).min() < 1e-6:
        return  # a share on its threshold may round to either side
    whole = gold.astype(int)
    for average in ("micro", "macro"):
        wanted = sk.f1_score(whole, predicted, average=average, zero_division=0)
        assert scores[f"{average}_f1"] == pytest.approx(wanted)
    assert scores["exact_match"] == pytest.approx(sk.accuracy_score(whole, predicted))
    if gold.any():
        wanted = sk.average_precision_score(whole, logits, average="micro")
        assert scores["average_precision"] == pytest.approx(wanted)
    else:
        assert scores["average_precision"] == 0
    each = [sk.log_loss(whole.ravel(), special.expit(logits.astype(np.float64)).ravel(), labels=[0, 1])]
    assert scores["loss"] == pytest.approx(np.mean(each), rel=1e-5, abs=1e-6)
    report = sk.classification_report(
        whole, predicted, target_names=task.labels.names, output_dict=True, zero_division=0
    )
    reported(scores["per_label"], report, task.labels.names)
    counts = zip(task.labels.names, whole.sum(0), predicted.sum(0), strict=True)
    never = [name for name, rows, answers in counts if rows and not answers]
    assert all(f'"{name}"' in scores["warnings"][0] for name in never)
    assert bool(scores["warnings"]) == bool(never)
    assert set(task.metrics) <= set(scores)
    json.dumps(scores)


@QUICK
@given(data=marked())
def test_one_label_of_multilabel_is_scored_as_a_yes_or_no(data):
    logits, gold = data[0][:, :1], data[1][:, :1]
    scores = multilabel(1).evaluate(logits, gold)
    yes, predicted = gold[:, 0].astype(int), (logits[:, 0] >= 0).astype(int)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(yes, predicted, average="binary", zero_division=0)
    (row,) = scores["per_label"]
    assert (row["label"], row["support"]) == ("l0", yes.sum())
    assert [row["precision"], row["recall"], row["f1"]] == pytest.approx([precision, recall, f1])
    assert [scores["micro_f1"], scores["macro_f1"]] == pytest.approx([f1, f1])
    assert scores["exact_match"] == pytest.approx((yes == predicted).mean())
    if yes.any():
        assert scores["average_precision"] == pytest.approx(sk.average_precision_score(yes, logits[:, 0]))


@QUICK
@given(data=marked())
def test_multilabel_loss_is_torch_s_binary_cross_entropy(data):
    logits, gold = data
    task = multilabel(logits.shape[1])
    losses = task.loss(torch.from_numpy(logits), torch.from_numpy(gold), None)
    criterion = torch.nn.BCEWithLogitsLoss(reduction="none")
    wanted = criterion(torch.from_numpy(logits).double(), torch.from_numpy(gold).double()).mean(1)
    np.testing.assert_allclose(losses.numpy(), wanted.numpy(), atol=2e-6)
    assert task.evaluate(logits, gold)["loss"] == pytest.approx(wanted.mean().item(), abs=1e-6)


def test_balanced_multilabel_weights_make_both_sides_of_a_label_count_the_same():
    gold = (rng().random((500, 4)) < [0.3, 0.1, 0.7, 0.0]).astype(np.float32)
    gold[0, 3] = 1
    task = multilabel(4)
    weights = task.weights(gold)
    for number in (0, 1):
        by_class = compute_class_weight("balanced", classes=np.array([0, 1]), y=gold[:, number].astype(int))
        assert weights[number] == pytest.approx(by_class[1] / by_class[0], rel=1e-6)
    assert weights[2:].tolist() == [1, 100]  # never below 1, at most 100
    logits = rng(1).normal(size=gold.shape).astype(np.float32)
    losses = task.loss(torch.from_numpy(logits), torch.from_numpy(gold), torch.from_numpy(weights))
    shares = special.expit(logits.astype(np.float64))
    wanted = -(weights * gold * np.log(shares) + (1 - gold) * np.log(1 - shares)).mean(1)
    np.testing.assert_allclose(losses.numpy(), wanted, rtol=1e-5)


@st.composite
def cells(draw):
    """Probabilities with many ties, neighbouring floats, 0 and 1; and marks with at least one 1."""
    some = st.sampled_from([0.0, 0.25, 0.5, float(np.nextafter(np.float32(0.5), np.float32(1))), 1.0, 1e-30])
    count = draw(st.integers(1, 14))
    shares = draw(arrays(np.float32, count, elements=some | st.floats(0, 1, width=32)))
    gold = draw(arrays(np.float32, count, elements=st.sampled_from([0.0, 1.0])))
    gold[draw(st.integers(0, count - 1))] = 1
    return shares, gold


@settings(max_examples=tries(300), deadline=None)
@given(data=cells())
def test_the_threshold_reaches_the_best_f1_of_all_cuts(data):
    shares, gold = data

    def f1(threshold):
        return sk.f1_score(gold, shares.astype(float) >= threshold, zero_division=0)

    cuts = sorted({float(share) for share in shares})
    between = [(low + high) / 2 for low, high in pairwise(cuts)]
    found = best_threshold(shares, gold)
    assert f1(found) == pytest.approx(max(map(f1, [*cuts, *between, -1.0, 2.0])), abs=1e-6)
    assert 0 <= found <= 1


def test_the_threshold_lies_half_way_to_the_next_cell():
    shares = np.array([0.9, 0.6, 0.4, 0.1], dtype=np.float32)
    assert best_threshold(shares, np.array([1, 1, 0, 0])) == pytest.approx(0.5)
    assert best_threshold(shares, np.array([1, 1, 1, 1])) == pytest.approx(0.05)
    assert best_threshold(shares, np.array([1, 0, 0, 0])) == pytest.approx(0.75)


def test_the_threshold_separates_neighbouring_probabilities():
    low = np.float32(0.5)
    high = np.nextafter(low, np.float32(1))
    threshold = best_threshold(np.array([high, low]), np.array([1, 0]))
    assert float(low) < threshold <= float(high)


def tagged(rows=300, seed=0):
    """Two common labels that need different thresholds, and one with 9 rows."""
    random = rng(seed)
    gold = (random.random((rows, 3)) < [0.4, 0.3, 0.0]).astype(np.float32)
    gold[:9, 2] = 1
    logits = (gold * 2 - 1) * 1.5 + random.normal(size=gold.shape) + [-2.0, 1.5, -1.0]
    return logits.astype(np.float32), gold


def test_a_labels_threshold_is_its_own_and_a_rare_ones_nearer_to_that_of_all():
    logits, gold = tagged()
    shares = special.expit(logits)

    def best(column, marks):
        precision, recall, thresholds = sk.precision_recall_curve(marks, column)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        return thresholds[f1[:-1].argmax()]

    common = best(shares.ravel(), gold.ravel())
    tuned = multilabel().tuned(logits, gold).thresholds
    for number in range(3):
        rows = gold[:, number].sum()
        wanted = (rows * special.logit(best(shares[:, number], gold[:, number])) + 20 * special.logit(common)) / (
            rows + 20
        )
        assert special.logit(tuned[number]) == pytest.approx(wanted, abs=0.05)
    assert tuned[0] < 0.4 < 0.6 < tuned[1]
    # Without a row it is that of all, which has the best F1 of all cells.
    none = gold.copy()
    none[:, 2] = 0
    common = multilabel().tuned(logits, none).thresholds[2]
    precision, recall, _ = sk.precision_recall_curve(none.ravel(), shares.ravel())
    f1 = sk.f1_score(none.ravel(), shares.ravel() >= common)
    assert f1 == pytest.approx((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max())


def test_thresholds_that_are_tuned_are_applied_when_decoding():
    logits, gold = tagged()
    tuned = multilabel().tuned(logits, gold)
    names = np.array(tuned.labels.names)
    for answer, row in zip(tuned.decode(logits), special.expit(logits), strict=True):
        assert set(answer.answer) == set(names[row >= np.array(tuned.thresholds)])
        given = [answer.probabilities[name] for name in answer.answer]
        assert given == sorted(given, reverse=True)  # surest first
        assert answer.score == max(answer.probabilities.values())
        np.testing.assert_allclose(list(answer.probabilities.values()), row, atol=1e-6)


def test_held_out_rows_without_any_label_leave_the_thresholds():
    task = multilabel(2, 0.3)
    assert task.tuned(np.zeros((5, 2), dtype=np.float32), np.zeros((5, 2), dtype=np.float32)) == task


def test_a_row_of_multilabel_may_have_no_label():
    with np.errstate(all="raise", under="ignore"):
        (answer,) = multilabel().decode(np.array([[-1e4, -2, -1]], dtype=np.float32))
        (every,) = multilabel().decode(np.array([[1e4, 2, 1]], dtype=np.float32))
    assert answer.answer == []
    assert answer.probabilities == pytest.approx({"l0": 0, "l1": special.expit(-2), "l2": special.expit(-1)}, abs=1e-6)
    assert every.answer == ["l0", "l1", "l2"]


# Regress


@QUICK
@given(
    answers=st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=30),
    data=st.data(),
)
def test_regress_metrics_are_those_of_scipy_and_scikit_learn(answers, data):
    gold = np.array(
        data.draw(st.lists(st.sampled_from([-2.0, 0.5, 1.0, 4.0]), min_size=len(answers), max_size=len(answers)))
    )
    logits = np.array(answers, dtype=np.float32)[:, None]
    task = Regress((Scale(mean=1, deviation=2, low=-3, high=4),))
    scores = task.evaluate(logits, gold[:, None].astype(np.float32))
    kept = np.clip(logits[:, 0].astype(np.float64), -3, 4)
    assert scores["mae"] == pytest.approx(sk.mean_absolute_error(gold, kept))
    assert scores["rmse"] == pytest.approx(sk.root_mean_squared_error(gold, kept))
    assert scores["loss"] == pytest.approx(sk.mean_squared_error(gold / 2, kept / 2))
    if np.ptp(kept) == 0 or np.ptp(gold) == 0:
        assert (scores["pearson"], scores["spearman"]) == (0, 0)
        assert len(scores["warnings"]) == 1
    else:
        assert scores["warnings"] == []
        assert scores["spearman"] == pytest.approx(stats.spearmanr(kept, gold).statistic)
        if np.ptp(kept) > 1e-6:
            assert scores["pearson"] == pytest.approx(stats.pearsonr(kept, gold).statistic, abs=1e-6)
    assert set(task.metrics) <= set(scores)
    json.dumps(scores)


@pytest.mark.parametrize("constant", [0.1, 1.0, 3.3, 0.7])
@pytest.mark.parametrize("side", ["answers", "targets"])
def test_equal_answers_or_targets_have_no_correlation_and_say_so(constant, side):
    flat, varied = np.full((11, 1), constant, dtype=np.float32), np.arange(11, dtype=np.float32)[:, None]
    pair = (flat, varied) if side == "answers" else (varied, flat)
    scores = Regress((Scale(mean=0, deviation=1, low=-20, high=20),)).evaluate(*pair)
    assert (scores["pearson"], scores["spearman"]) == (0, 0)
    assert scores["warnings"] == ["correlation is not defined: all answers or all targets are equal"]
    assert scores["mae"] == pytest.approx(np.abs(flat - varied).mean())


def test_answers_keep_to_the_range_of_the_fitted_targets():
    task = Regress.from_targets([1, 2, 5], "a.csv")
    answers = task.decode(np.array([[-1e4], [1.5], [1e4]], dtype=np.float32))
    assert [one.answer for one in answers] == [1.0, 1.5, 5.0]
    assert all(one.score is None and one.probabilities is None for one in answers)


def test_a_head_learns_standardised_numbers():
    targets = [10.0, 20.0, 60.0, 30.0]
    task = Regress.from_targets(targets, "a.csv")
    assert task.affine() == pytest.approx((np.std(targets), np.mean(targets)))
    assert (task.scales[0].low, task.scales[0].high) == (10, 60)
    scale, shift = task.affine()
    raw = torch.randn(4, 1, generator=torch.Generator().manual_seed(0))
    wanted = torch.from_numpy(task.targets(targets))
    losses = task.loss(raw * scale + shift, wanted, None)
    standard = torch.from_numpy(stats.zscore(targets)).float()[:, None]
    torch.testing.assert_close(losses, torch.nn.functional.mse_loss(raw, standard, reduction="none")[:, 0])
    assert task.weights(wanted.numpy()) is None


# All tasks


def test_the_first_metric_of_a_task_is_its_own():
    assert {name: choose_metric(task, None) for name, task in TASKS.items()} == {
        "classify": "accuracy", "multilabel": "average_precision", "regress": "pearson", "tag": "f1", "span": "f1",
        "choose": "accuracy", "joint": "exact_match",
    }  # fmt: skip
    assert choose_metric(Classify, "macro_f1") == "macro_f1"


def test_an_unknown_metric_is_named_with_the_known_ones():
    with pytest.raises(UsageError) as error:
        choose_metric(Classify, "macro-f1")
    assert str(error.value) == (
        '--metric: is "macro-f1"; expected a metric of classify: accuracy, macro_f1, micro_f1, loss. '
        'Did you mean "macro_f1"?'
    )


@pytest.mark.parametrize("task", [Classify, Multilabel, Regress], ids=lambda task: task.name)
def test_better_scores_have_the_sign_that_the_metric_says(task):
    if task is Regress:
        gold = np.linspace(-1, 1, 12, dtype=np.float32)[:, None]
        made, right, wrong = Regress((Scale(0, 1, -2, 2),)), gold, -gold
    elif task is Classify:
        gold = np.arange(12) % 3
        made, right, wrong = classify(), np.eye(3, dtype=np.float32)[gold], np.eye(3, dtype=np.float32)[(gold + 1) % 3]
    else:
        gold = np.eye(3, dtype=np.float32)[np.arange(12) % 3]
        made, right, wrong = multilabel(), gold * 4 - 2, 2 - gold * 4
    good, bad = made.evaluate(right, gold), made.evaluate(wrong, gold)
    for name, sign in made.metrics.items():
        assert good[name] * sign > bad[name] * sign


def test_the_prior_is_what_the_targets_shares_say():
    task = Classify(Labels(["a", "b", "c"]))
    shares = np.exp(task.prior(np.array([0, 0, 0, 1])))
    np.testing.assert_allclose(shares, [4 / 7, 2 / 7, 1 / 7], rtol=1e-6)
    many = Multilabel(Labels(["a", "b"]), (0.5, 0.5))
    odds = np.exp(many.prior(np.array([[1, 0], [1, 0], [0, 0]], dtype=np.float32)))
    np.testing.assert_allclose(odds, [3 / 2, 1 / 4], rtol=1e-6)
    values = np.array([[1.0], [4.0]], dtype=np.float32)
    assert Regress.from_targets([1.0, 4.0], "y").prior(values).tolist() == [2.5]


@pytest.mark.parametrize(("task", "label"), [("classify", "label"), ("multilabel", "tags"), ("regress", "stars")])
def test_a_new_head_begins_with_the_prior(monkeypatch, tiny_bert, task, label):
    from conftest import toy_rows

    import berthead
    from berthead.train import learn as fitting

    seen = {}

    def spy(model, made, train, *args, **kwargs):
        scale, shift = made.affine()
        seen["start"] = (model.head.out.bias * scale + shift).tolist()
        seen["prior"] = made.prior(train.targets).tolist()
        return real(model, made, train, *args, **kwargs)

    real = fitting.fit_model
    monkeypatch.setattr(fitting, "fit_model", spy)
    rows = toy_rows(2)[3:]
    berthead.fit(rows, task=task, text="text", label=label, encoder=str(tiny_bert), epochs=1, valid=0, quiet=True)
    assert seen["start"] == pytest.approx(seen["prior"], rel=1e-5)
