"""TextClassifier and TextRegressor are scikit-learn estimators, in its own checks and beside its own tools."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from conftest import BAD, GOOD
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import DataConversionWarning, NotFittedError, SkipTestWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MultiLabelBinarizer
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import check_estimator

import berthead
from berthead import TextClassifier, TextRegressor
from berthead.errors import DataError, UsageError

X = GOOD + BAD
Y = ["positive"] * len(GOOD) + ["negative"] * len(BAD)
STARS = [4.0 + 0.1 * n for n in range(len(GOOD))] + [1.0 + 0.1 * n for n in range(len(BAD))]
PAIRS = [(text, "the dog") for text in X]


@pytest.fixture(scope="module")
def options(tiny_bert) -> dict:
    """A fit that takes a moment and learns its rows."""
    return {
        "encoder": str(tiny_bert), "adapt": "frozen", "epochs": 30, "lr": 0.05, "batch": 7, "valid": 0, "threads": 1,
        "precision": "fp32",
    }  # fmt: skip


@pytest.fixture(params=[TextClassifier, TextRegressor])
def estimator(request, options):
    return request.param(**options)


@pytest.fixture
def classifier(options) -> TextClassifier:
    return TextClassifier(**options)


def target(estimator) -> list:
    return Y if is_classifier(estimator) else STARS


def assert_same(one, other) -> None:
    np.testing.assert_array_equal(one, other)


# scikit-learn's own checks


def test_check_estimator_finds_nothing(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)  # it cannot make texts
        found = check_estimator(estimator, on_fail=None, on_skip=None)
    assert found
    assert [one["check_name"] for one in found if one["status"] == "failed"] == []


# Every check that gets by without a fit on numbers, or wants an error from it.
WITHOUT_NUMBERS = [
    "check_classifiers_regression_target", "check_complex_data", "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable", "check_estimator_repr", "check_estimator_tags_renamed", "check_estimators_unfitted",
    "check_fit1d", "check_get_params_invariance", "check_mixin_order", "check_no_attributes_set_in_init",
    "check_nonsquare_error", "check_parameters_default_constructible", "check_requires_y_none", "check_set_params",
    "check_supervised_y_no_nan", "check_valid_tag_types",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("check", WITHOUT_NUMBERS)
def test_every_check_of_scikit_learn_that_needs_no_numbers_passes(estimator, check):
    if check == "check_classifiers_regression_target":
        estimator = TextClassifier(**estimator.get_params())
    getattr(estimator_checks, check)(type(estimator).__name__, estimator)


# The same promises as its checks that fit, on texts


def test_they_are_what_scikit_learn_thinks(options):
    assert is_classifier(TextClassifier())
    assert is_regressor(TextRegressor())
    tags = TextClassifier().__sklearn_tags__()
    assert tags.input_tags.string
    assert tags.target_tags.required
    assert tags.classifier_tags.multi_label


def test_fit_returns_the_estimator_and_leaves_parameters_and_data_alone(estimator):
    texts, wanted = np.array(X, dtype=object), np.array(target(estimator))
    texts_before, wanted_before, parameters = texts.copy(), wanted.copy(), copy.deepcopy(estimator.get_params())
    assert estimator.fit(texts, wanted) is estimator
    estimator.predict(texts)
    assert estimator.get_params() == parameters
    assert_same(texts, texts_before)
    assert_same(wanted, wanted_before)
    public = {name for name in vars(estimator) if not name.endswith("_") and not name.startswith("_")}
    assert public == set(parameters)


def test_fit_twice_gives_the_same_function(estimator):
    first = estimator.fit(X, target(estimator)).predict(X)
    bias = estimator.fitted_.artifact.omega()["classifier.bias"]
    second = estimator.fit(X, target(estimator)).predict(X)
    assert_same(first, second)
    assert_same(bias, estimator.fitted_.artifact.omega()["classifier.bias"])


def test_another_seed_gives_another_function(classifier):
    one = clone(classifier).fit(X, Y).predict_proba(X)
    other = clone(classifier).set_params(random_state=1).fit(X, Y).predict_proba(X)
    assert np.abs(one - other).max() > 1e-4


def test_random_state_can_be_none_or_a_generator(classifier):
    seeded = [classifier.set_params(random_state=np.random.RandomState(5)).fit(X, Y).predict_proba(X) for _ in "ab"]
    assert_same(*seeded)
    drawn = [classifier.set_params(random_state=None).fit(X, Y).predict_proba(X) for _ in "ab"]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-4


def test_it_learns_its_rows_and_score_is_scikit_learns(estimator):
    wanted = target(estimator)
    estimator.set_params(epochs=150).fit(X, wanted)
    score = accuracy_score if is_classifier(estimator) else r2_score
    assert estimator.score(X, wanted) == pytest.approx(score(wanted, estimator.predict(X)))
    assert estimator.score(X, wanted) > 0.6


def test_before_fit_nothing_is_answered(estimator, tmp_path):
    names = ["predict", "predict_proba"] if is_classifier(estimator) else ["predict"]
    for name in names:
        with pytest.raises(NotFittedError):
            getattr(estimator, name)(X)
    with pytest.raises(NotFittedError):
        estimator.save(tmp_path / "model")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_pickle_and_deepcopy_keep_the_function(estimator, copied):
    estimator.fit(X, target(estimator))
    other = copied(estimator)
    assert_same(other.predict(X), estimator.predict(X))
    assert other.fitted_.info() == estimator.fitted_.info()


def test_a_clone_is_not_fitted_and_has_the_same_parameters(estimator):
    estimator.fit(X, target(estimator))
    other = clone(estimator)
    assert other.get_params() == estimator.get_params()
    with pytest.raises(NotFittedError):
        other.predict(X)


def test_answers_do_not_depend_on_order_or_company(classifier):
    classifier.fit(X, Y)
    whole, order = classifier.predict_proba(X), np.random.default_rng(0).permutation(len(X))
    np.testing.assert_allclose(classifier.predict_proba([X[n] for n in order]), whole[order], atol=1e-6)
    np.testing.assert_allclose(np.vstack([classifier.predict_proba([text]) for text in X]), whole, atol=1e-6)


def test_predict_is_the_likeliest_class_and_probabilities_sum_to_one(classifier):
    shares = classifier.fit(X, Y).predict_proba(X)
    assert shares.shape == (len(X), 2)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert_same(classifier.predict(X), classifier.classes_[shares.argmax(1)])


MISTAKES = {
    "lengths differ": (X, Y[:-1], "inconsistent numbers of samples"),
    "no texts": ([], [], "0 samples"),
    "NaN": ([float("nan"), *X[1:]], Y, r"X\[0\]: is blank or NaN"),
    "None": ([*X[:-1], None], Y, r"X\[13\]: is blank or NaN"),
    "blank": (["  ", *X[1:]], Y, r"X\[0\]: is blank"),
    "a number": ([5, *X[1:]], Y, r"X\[0\]: is int"),
    "one text": ("good cat", Y, "got one text; expected a list of texts"),
    "three columns": (np.array(X[:12], dtype=object).reshape(4, 3), Y[:4], "Reshape your data"),
    "pairs among texts": ([("a", "b"), *X[1:]], Y, r"X\[1\]: holds 1 text; expected a tuple of two texts"),
    "no y": (X, None, "requires y to be passed, but the target y is None"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_fitted_is_a_value_error_that_says_where(estimator, name):
    texts, wanted, message = MISTAKES[name]
    if is_regressor(estimator) and wanted is not None:
        wanted = STARS[: len(wanted)]
    with pytest.raises(ValueError, match=message):
        estimator.fit(texts, wanted)


def test_classes_that_cannot_be_learnt_are_value_errors(classifier):
    with pytest.raises(ValueError, match="holds only the class"):
        classifier.fit(X, ["positive"] * len(X))
    with pytest.raises(ValueError, match="Unknown label type"):
        classifier.fit(X, STARS)
    with pytest.raises(ValueError, match="contains NaN"):
        classifier.fit(X, [float("nan")] + [1.0, 2.0] * 6 + [1.0])
    for numbers in ((7, 7), (-1, 1), (1, 2), (0, 1, 2)):
        matrix = np.resize(numbers, (len(X), 3))
        with pytest.raises(DataError, match=r"matrix of shape .* 0 and 1 for each label"):
            classifier.fit(X, matrix)


@pytest.mark.parametrize("missing", [np.nan, None, pd.NA, float("nan"), " "], ids=repr)
@pytest.mark.parametrize("kind", [list, tuple, pd.Series])
def test_a_missing_label_is_never_a_class(classifier, missing, kind):
    with pytest.raises(DataError, match=r"y\[2\]: is missing"):
        classifier.fit(X, kind(["positive", "negative", missing, *Y[3:]]))


@pytest.mark.parametrize("other", [0, 1.5, True])
@pytest.mark.parametrize("kind", [list, tuple, pd.Series, lambda values: np.array(values, dtype=object)])
def test_labels_of_several_types_are_refused_and_not_turned_into_text(classifier, other, kind):
    with pytest.raises(DataError, match=r'y: mixes .* and texts, such as "positive"; expected labels of one type'):
        classifier.fit(X, kind([other, *["positive", "negative"] * 7][: len(X)]))
    with pytest.raises(DataError, match="mixes booleans, such as true and numbers, such as 2"):
        classifier.fit(X, [True, 2] * (len(X) // 2))


def test_numbers_that_cannot_be_learnt_are_value_errors(options):
    regressor = TextRegressor(**options)
    for wrong, message in ((np.nan, "NaN or infinity"), (np.inf, "NaN or infinity")):
        with pytest.raises(DataError, match=message):
            regressor.fit(X, [wrong, *STARS[1:]])
    with pytest.raises(DataError, match="only the number 3"):
        regressor.fit(X, [3] * len(X))
    with pytest.raises(ValueError, match="could not convert"):
        regressor.fit(X, Y)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"valid": 1.5}, {"valid": -0.1}, {"adapt": "some"},
                                   {"metric": "f2"}, {"class_weight": "heavy"}, {"max_tokens": 100}])  # fmt: skip
def test_wrong_parameters_are_refused_at_fit_and_not_before(options, wrong):
    classifier = TextClassifier(**(options | wrong))
    with pytest.raises(UsageError) as error:
        classifier.fit(X, Y)
    assert str(next(iter(wrong))) in str(error.value)


def test_predict_refuses_what_fit_did_not_see(classifier):
    classifier.fit(X, Y)
    with pytest.raises(DataError, match="X: holds pairs; expected single texts, as in fit"):
        classifier.predict(PAIRS)
    with pytest.raises(DataError, match=r"X\[1\]: is blank or NaN"):
        classifier.predict(["good", None])
    with pytest.raises(DataError, match="got one text"):
        classifier.predict("good cat")
    assert classifier.predict([]).shape == (0,)
    assert classifier.predict_proba([]).shape == (0, 2)


def test_a_column_vector_as_y_warns_and_is_read(estimator):
    wanted = np.array(target(estimator))
    straight = estimator.fit(X, wanted).predict(X)
    with pytest.warns(DataConversionWarning, match="column-vector y"):
        estimator.fit(X, wanted[:, None])
    assert_same(estimator.predict(X), straight)


# Labels


@pytest.mark.parametrize(
    ("names", "kind"),
    [(["b", "a"], "U"), ([3, -1], "i"), ([True, False], "b"), ([2.0, 1.0], "f"), (["1", "10"], "U")],
)
def test_classes_keep_their_type_and_are_sorted(classifier, names, kind):
    wanted = np.array([names[0]] * len(GOOD) + [names[1]] * len(BAD))
    classifier.fit(X, wanted)
    assert_same(classifier.classes_, np.unique(wanted))
    assert classifier.classes_.dtype.kind == kind
    answers = classifier.predict(X)
    assert answers.dtype == wanted.dtype
    assert set(answers) <= set(wanted)


def test_labels_of_pandas_and_polars_are_read(classifier):
    straight = classifier.fit(X, Y).predict_proba(X)
    for series in (pd.Series(Y), pd.Series(Y, dtype="category"), pl.Series(Y), np.array(Y, dtype=object)):
        assert_same(classifier.fit(X, series).predict_proba(X), straight)
        assert classifier.classes_.tolist() == ["negative", "positive"]


def test_balanced_classes_help_the_rare_one(classifier):
    texts, wanted = X + GOOD * 4, Y + ["positive"] * (4 * len(GOOD))
    rare = {}
    for weight in (None, "balanced"):
        fitted = clone(classifier).set_params(class_weight=weight, epochs=5).fit(texts, wanted)
        rare[weight] = fitted.predict_proba(BAD)[:, 0].mean()
    assert rare["balanced"] > rare[None] + 0.05


def test_held_out_rows_choose_the_epoch_and_are_scored(classifier):
    classifier.set_params(valid=0.3).fit(X * 3, Y * 3)
    run = classifier.fitted_.info()["run"]
    assert run["held_out_rows"] > 0
    assert run["rows"] + run["held_out_rows"] == 3 * len(X)
    scores = [epoch["accuracy"] for epoch in run["epochs"]]
    assert scores[run["best_epoch"] - 1] == max(scores)


# Multi-label

TAGS = [["nice", "short"] if n % 2 else ["nice"] for n in range(len(GOOD))] + [["nasty"], []] * 3 + [["nasty"]]


def test_a_matrix_of_zeros_and_ones_is_multi_label(classifier):
    hot = MultiLabelBinarizer().fit_transform(TAGS)
    classifier.fit(X, hot)
    assert classifier.classes_.tolist() == [0, 1, 2]
    shares, answers = classifier.predict_proba(X), classifier.predict(X)
    assert shares.shape == answers.shape == hot.shape
    assert_same(answers, (shares >= 0.5).astype(int))
    assert classifier.score(X, hot) == pytest.approx(accuracy_score(hot, answers))
    assert (answers == hot).mean() > 0.7


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_a_data_frame_of_zeros_and_ones_names_the_labels(classifier, frame):
    binarizer = MultiLabelBinarizer(classes=["short", "nasty", "nice"])
    hot = binarizer.fit_transform(TAGS)
    straight = clone(classifier).fit(X, hot).predict_proba(X)
    classifier.fit(X, frame({name: hot[:, n] for n, name in enumerate(binarizer.classes_)}))
    assert classifier.classes_.tolist() == ["short", "nasty", "nice"]
    # The columns are the user's, although the labels inside are sorted by name.
    assert classifier.fitted_.labels == ["nasty", "nice", "short"]
    assert classifier.predict(X).shape == hot.shape
    assert ((classifier.predict_proba(X) - 0.5) * (straight - 0.5) > 0).mean() > 0.9
    answers = classifier.fitted_.predict(X)
    assert_same(classifier.predict(X), binarizer.transform([one.answer for one in answers]))


def test_a_label_that_no_row_has_gets_probability_zero(classifier):
    hot = np.column_stack([MultiLabelBinarizer().fit_transform(TAGS), np.zeros(len(X), dtype=int)])
    classifier.fit(X, hot)
    assert_same(classifier.predict_proba(X)[:, 3], 0)
    assert_same(classifier.predict(X)[:, 3], 0)


# Shapes of X

SHAPES = {
    "list": X,
    "tuple": tuple(X),
    "object array": np.array(X, dtype=object),
    "text array": np.array(X),
    "one column": np.array(X, dtype=object)[:, None],
    "pandas": pd.Series(X, index=range(100, 100 + len(X))),
    "pandas text": pd.Series(X, dtype="string"),
    "pandas column": pd.DataFrame({"text": X}),
    "polars": pl.Series(X),
    "polars column": pl.DataFrame({"text": X}),
}
PAIR_SHAPES = {
    "tuples": PAIRS,
    "lists": [list(pair) for pair in PAIRS],
    "array": np.array(PAIRS, dtype=object),
    "text array": np.array(PAIRS),
    "pandas": pd.DataFrame(PAIRS, columns=["premise", "hypothesis"], index=range(9, 9 + len(X))),
    "polars": pl.DataFrame(PAIRS, schema=["premise", "hypothesis"], orient="row"),
}


@pytest.fixture(scope="module")
def on_texts(options):
    return TextClassifier(**options).fit(X, Y)


@pytest.fixture(scope="module")
def on_pairs(options):
    return TextClassifier(**options).fit(PAIRS, Y)


@pytest.mark.parametrize("shape", SHAPES)
def test_texts_come_in_every_usual_shape(options, on_texts, shape):
    fitted = TextClassifier(**options).fit(SHAPES[shape], Y)
    assert_same(fitted.predict_proba(SHAPES[shape]), on_texts.predict_proba(X))


@pytest.mark.parametrize("shape", PAIR_SHAPES)
def test_pairs_come_as_tuples_and_as_two_columns(options, on_pairs, shape):
    fitted = TextClassifier(**options).fit(PAIR_SHAPES[shape], Y)
    assert_same(fitted.predict_proba(PAIR_SHAPES[shape]), on_pairs.predict_proba(PAIRS))


def test_the_second_text_of_a_pair_counts(on_pairs, on_texts):
    other = [(text, "bad bad mat") for text in X]
    assert np.abs(on_pairs.predict_proba(PAIRS) - on_pairs.predict_proba(other)).max() > 1e-4
    assert on_pairs.fitted_.info()["columns"]["pair"] == "pair"
    assert on_texts.fitted_.info()["columns"]["pair"] is None


@pytest.mark.parametrize("nothing", [None, float("nan"), pd.NA])
def test_missing_texts_in_frames_are_refused_by_row(classifier, nothing):
    with pytest.raises(ValueError, match=r"X\[2\]: is blank or NaN"):
        classifier.fit(pd.Series([*X[:2], nothing, *X[3:]], dtype=object), Y)


# Beside scikit-learn's tools


def test_cross_val_score_and_predict(estimator):
    wanted = target(estimator)
    estimator.set_params(epochs=3)
    assert np.isfinite(cross_val_score(estimator, X * 2, wanted * 2, cv=2, error_score="raise")).all()
    if is_classifier(estimator):
        shares = cross_val_predict(estimator, X * 2, wanted * 2, cv=2, method="predict_proba")
        assert shares.shape == (2 * len(X), 2)
        np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_grid_search_finds_that_learning_is_better_than_not(classifier, jobs):
    search = GridSearchCV(classifier, {"epochs": [1, 30], "lr": [1e-9, 0.05]}, cv=2, n_jobs=jobs, error_score="raise")
    search.fit(np.array(X * 2), np.array(Y * 2))
    assert search.best_params_ == {"epochs": 30, "lr": 0.05}
    assert search.predict(X).shape == (len(X),)


def test_a_pipeline_prepares_texts_before(classifier, on_texts):
    pipeline = make_pipeline(FunctionTransformer(lambda texts: [text.removeprefix("x ") for text in texts]), classifier)
    pipeline.fit([f"x {text}" for text in X], Y)
    assert_same(pipeline.predict_proba(X), on_texts.predict_proba(X))
    assert pipeline.set_params(textclassifier__epochs=1).get_params()["textclassifier__epochs"] == 1


def test_calibration_and_voting_build_on_it(classifier):
    texts, wanted = np.array(X * 2, dtype=object), np.array(Y * 2)
    for built in (
        CalibratedClassifierCV(classifier, cv=2),
        VotingClassifier([("a", classifier), ("b", clone(classifier).set_params(random_state=1))], voting="soft"),
    ):
        shares = built.fit(texts, wanted).predict_proba(texts)
        np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
        assert built.score(texts, wanted) > 0.6


# The model folder


def test_a_saved_estimator_is_a_model_that_gives_the_same_answers(estimator, tmp_path):
    estimator.fit(X, target(estimator)).save(tmp_path / "model")
    model = berthead.load(tmp_path / "model")
    answers = [one.answer for one in model.predict(X)]
    assert_same(answers, estimator.predict(X))
    if is_classifier(estimator):
        assert model.labels == estimator.classes_.tolist()
        assert_same(model.predict_proba(X), estimator.predict_proba(X))
    with pytest.raises(berthead.OutputError, match="holds a model already"):
        estimator.save(tmp_path / "model")
    estimator.save(tmp_path / "model", overwrite=True)


def test_saved_pairs_are_read_as_pairs(on_pairs, tmp_path):
    on_pairs.save(tmp_path / "model")
    assert_same(berthead.load(tmp_path / "model").predict_proba(PAIRS), on_pairs.predict_proba(PAIRS))


def test_fitting_the_same_rows_from_python_gives_the_same_function(classifier, options):
    same = berthead.fit(
        [{"text": text, "label": label} for text, label in zip(X, Y, strict=True)],
        quiet=True, **(options | {"valid": 0}),
    )  # fmt: skip
    assert_same(same.predict_proba(X), classifier.fit(X, Y).predict_proba(X))


def test_regression_answers_stay_in_the_fitted_range(options):
    regressor = TextRegressor(**options).fit(X, STARS)
    answers = regressor.predict(["the", "good good good good", "awful awful awful"])
    assert answers.dtype == np.float64
    assert ((answers >= min(STARS)) & (answers <= max(STARS))).all()


def test_ctrl_c_ends_a_search_and_is_not_taken_for_a_bad_candidate(tiny_bert, monkeypatch):
    from dataclasses import replace

    from berthead.estimators import base

    real = base.fit_examples

    def interrupted(*args, **kwargs):
        result = real(*args, **kwargs)
        return replace(result, history=replace(result.history, interrupted=True))

    monkeypatch.setattr(base, "fit_examples", interrupted)
    search = GridSearchCV(
        TextClassifier(encoder=str(tiny_bert), adapt="frozen", epochs=1, valid=0), {"lr": [0.1, 0.2]}, cv=2
    )
    with pytest.raises(KeyboardInterrupt):
        search.fit(["good", "fine", "bad", "poor"] * 3, ["+", "+", "-", "-"] * 3)


def test_texts_that_are_cut_are_told(tiny_bert):
    classifier = TextClassifier(encoder=str(tiny_bert), adapt="frozen", epochs=1, valid=0, max_tokens=4)
    with pytest.warns(UserWarning, match=r"12 of 12 rows \(100.0 %\) have over 4 tokens"):
        classifier.fit(["the good cat sat", "the bad dog ran"] * 6, ["+", "-"] * 6)
    assert any("over 4 tokens" in line for line in classifier.fitted_.warnings)


@pytest.mark.parametrize("nothing", [None, float("nan"), pd.NA])
def test_a_missing_label_is_named(tiny_bert, nothing):
    y = pd.Series(["+", "-", nothing, "+"], dtype=object)
    with pytest.raises(ValueError, match=r"y\[2\]: is missing"):
        TextClassifier(encoder=str(tiny_bert)).fit(["a", "b", "c", "d"], y)
