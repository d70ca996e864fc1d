"""Data in the forms that Python has for tables: frames, Arrow, dicts of columns, matrices, lists; and their names."""

import datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
from conftest import write_csv
from sklearn.base import clone
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import MultiLabelBinarizer

import berthead
from berthead import MultipleChoice, SequenceLabeler, TextClassifier, TextRegressor
from berthead.data.column_names import find_column
from berthead.errors import DataError, UsageError

X = ["good cat", "bad dog", "fine mat", "poor cat", "great dog", "awful mat"] * 2
Y = ["p", "n"] * 6
TABLE = pd.DataFrame({"text": X, "label": Y})
LISTS = [["a"], ["b"], ["a", "b"], [], ["b", "c"], ["c"]] * 2
MATRIX = MultiLabelBinarizer().fit_transform(LISTS)


@pytest.fixture
def fit(tiny_bert):
    def fitted(data, **options):
        return berthead.fit(data, **({"encoder": str(tiny_bert), "epochs": 1, "threads": 1, "quiet": True} | options))

    return fitted


@pytest.fixture
def classifier(tiny_bert):
    return TextClassifier(encoder=str(tiny_bert), adapt="frozen", epochs=2, valid=0, threads=1)


FORMS = {
    "pandas": lambda: TABLE,
    "polars": lambda: pl.from_pandas(TABLE),
    "lazy": lambda: pl.from_pandas(TABLE).lazy(),
    "arrow": lambda: pa.Table.from_pandas(TABLE),
    "batch": lambda: pa.RecordBatch.from_pandas(TABLE),
    "dict of lists": lambda: {"text": X, "label": Y},
    "dict of arrays": lambda: {"text": np.array(X), "label": pd.Series(Y)},
    "dicts": lambda: TABLE.to_dict("records"),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_table_is_fitted_scored_and_answered_alike(fit, name):
    data, wanted = FORMS[name](), fit(TABLE)
    model = fit(data)
    assert model.omega == wanted.omega
    assert model.evaluate(data)["accuracy"] == wanted.evaluate(TABLE)["accuracy"]
    assert [one.answer for one in model.predict(data)] == [one.answer for one in wanted.predict(X)]


def test_a_dict_of_one_input_stays_one_input(fit):
    assert fit(TABLE).predict({"text": "good cat"}).answer in ("n", "p")
    rows = [{"tokens": ["the", "cat"], "tags": ["O", "B-X"]}] * 4
    model = fit(rows, task="tag")
    assert len(model.predict({"tokens": ["the", "cat"]}).tags) == 2
    questions = {"question": ["who", "what"], "choices": [["a", "b"], ["c", "d"]], "label": [0, 1]}
    chooser = fit(questions, task="choose")
    assert chooser.predict({"question": "who", "choices": ["a", "b"]}).answer in (0, 1)
    assert len(chooser.predict({name: questions[name] for name in ("question", "choices")})) == 2


def test_columns_of_different_lengths_are_refused(fit):
    with pytest.raises(DataError, match=r"columns of 12 \(text\), 3 \(label\) values; expected columns of one length"):
        fit({"text": X, "label": Y[:3]})


@pytest.mark.parametrize("names", [("Text", "Label"), ("TEXT", "LABEL"), (" text", "label "), ("Sentence", "Category")])
def test_headers_are_found_whatever_their_case(fit, tmp_path, names):
    data = write_csv(tmp_path / "a.csv", [dict(zip(names, row, strict=True)) for row in zip(X, Y, strict=True)])
    model = fit(data, out=tmp_path / "model")
    assert model.omega == fit(TABLE).omega
    lower = write_csv(
        tmp_path / "b.csv", [dict(zip(("text", "label"), row, strict=True)) for row in zip(X, Y, strict=True)]
    )
    again = berthead.load(tmp_path / "model")
    assert again.evaluate(data)["rows"] == 12
    if names[0].strip().lower() == "text":
        assert again.evaluate(lower)["rows"] == 12
        assert again.predict({"Text": "good cat"}).answer == again.predict("good cat").answer
        assert again.predict_file(lower, tmp_path / "out.csv", quiet=True).failed == 0


def test_an_exact_name_wins_and_two_like_names_are_none():
    assert find_column("text", None, ["TEXT", "text"], "a") == "text"
    assert find_column("text", None, ["Text", "sentence"], "a") == "sentence"  # written as usual
    with pytest.raises(DataError, match="no column for the text"):
        find_column("text", None, ["Text", "TEXT"], "a")


@pytest.mark.parametrize("names", [{"text": 0, "label": 1}, {"text": "0", "label": "1"}])
def test_numbers_as_column_names_work(fit, names, tmp_path):
    TABLE.to_csv(tmp_path / "a.csv", index=False, header=False)
    table = pd.read_csv(tmp_path / "a.csv", header=None)
    model = fit(table, **names)
    assert model.omega == fit(TABLE).omega
    assert [one.answer for one in model.predict(table)] == [one.answer for one in model.predict(X)]
    assert fit(table.to_dict("records"), **names).evaluate(table)["rows"] == 12


@pytest.mark.parametrize("dtype", ["Int64", "boolean", "string", "category", "Float64", "object"])
def test_nullable_and_other_dtypes_of_labels_are_plain_labels(fit, classifier, dtype):
    plain = {"Int64": [1, 2], "boolean": [True, False], "Float64": [1.0, 2.0]}.get(dtype, ["p", "n"]) * 6
    column = pd.Series(plain, dtype=dtype)
    assert fit(TABLE.assign(label=column)).labels == sorted(set(plain))
    assert classifier.fit(X, column).classes_.tolist() == sorted(set(plain))
    frame = pd.DataFrame(MATRIX, columns=["a", "b", "c"])
    if dtype in ("Int64", "boolean", "Float64"):
        assert classifier.fit(X, frame.astype(dtype)).fitted_.omega == clone(classifier).fit(X, frame).fitted_.omega
        with pytest.raises(DataError, match=r"y\[1\]: holds a missing value; expected 0 or 1"):
            classifier.fit(
                X, frame.astype(dtype).mask(pd.DataFrame(np.arange(36).reshape(12, 3) == 4, columns=frame.columns))
            )


def test_columns_of_several_levels_and_of_one_name_are_refused_with_what_to_do(fit, classifier):
    levels = pd.DataFrame({("a", "text"): X, ("a", "label"): Y})
    model = fit(TABLE)
    for call in (lambda: fit(levels), lambda: model.predict(levels), lambda: model.evaluate(levels)):
        with pytest.raises(DataError, match=r"columns of several levels, such as \('a', 'text'\); .*Join them"):
            call()
    with pytest.raises(DataError, match="y: has columns of several levels"):
        classifier.fit(X, pd.DataFrame(MATRIX, columns=pd.MultiIndex.from_product([["a"], ["x", "y", "z"]])))
    with pytest.raises(DataError, match="2 columns or more named text; expected different names"):
        fit(pd.DataFrame([["a", "b", "c"]] * 4, columns=["text", "text", "label"]))


@pytest.mark.parametrize("kind", [pd.to_datetime, lambda days: np.array(days, dtype="datetime64[D]"),
                                  lambda days: [datetime.date.fromisoformat(day) for day in days],
                                  lambda days: pl.Series(days).str.to_date()])  # fmt: skip
def test_dates_are_no_labels_and_no_numbers(fit, classifier, tiny_bert, kind):
    days = kind(["2020-01-01", "2021-01-01"] * 6)
    for estimator in (classifier, TextRegressor(encoder=str(tiny_bert))):
        with pytest.raises(DataError, match=r'y: holds dates or times; .*astype\("str"\)'):
            estimator.fit(X, days)
    with pytest.raises(DataError, match='column "label" is "2020-01-01'):
        fit([{"text": text, "label": day} for text, day in zip(X, days, strict=True)])


# Several labels a row


@pytest.mark.parametrize("kind", [scipy.sparse.csr_matrix, scipy.sparse.coo_array, pl.DataFrame, np.ndarray.tolist,
                                  lambda matrix: matrix.astype(bool)])  # fmt: skip
def test_matrices_of_any_kind_are_fitted_alike(classifier, kind):
    straight = clone(classifier).fit(X, MATRIX)
    y = kind(MATRIX)
    assert classifier.fit(X, y).fitted_.omega == straight.fitted_.omega
    if not isinstance(y, pl.DataFrame):
        assert classifier.score(X, y) == straight.score(X, MATRIX)


@pytest.mark.parametrize("kind", [list, lambda lists: pd.Series(lists), lambda lists: [tuple(one) for one in lists],
                                  lambda lists: [set(one) for one in lists], lambda lists: pa.array(lists),
                                  lambda lists: pl.Series(lists)])  # fmt: skip
def test_lists_of_labels_are_fitted_as_their_matrix(classifier, kind):
    y = kind(LISTS)
    assert classifier.fit(X, y).classes_.tolist() == ["a", "b", "c"]
    frame = pd.DataFrame(MATRIX, columns=["a", "b", "c"])
    assert classifier.fitted_.omega == clone(classifier).fit(X, frame).fitted_.omega
    assert classifier.score(X, y) == accuracy_score(MATRIX, classifier.predict(X))
    with pytest.raises(DataError, match='holds "zzz"; expected labels of the fit'):
        classifier.score(X[:2], [["a", "b"], ["zzz"]])


def test_a_missing_label_in_a_list_is_refused(classifier):
    with pytest.raises(DataError, match=r"y\[1\]: is \[NaN\]; expected a list of labels"):
        classifier.fit(X, [["a", "b"], [float("nan")], *LISTS[2:]])


# Estimators


def test_log_probabilities_are_the_logarithms(classifier):
    classifier.fit(X, Y)
    np.testing.assert_array_equal(classifier.predict_log_proba(X), np.log(classifier.predict_proba(X)))


def test_columns_of_arrow_and_polars_are_texts_and_labels(classifier, tiny_bert):
    straight = clone(classifier).fit(X, Y)
    for kind in (pa.array, lambda values: pa.chunked_array([values]), pl.Series):
        assert classifier.fit(kind(X), kind(Y)).predict(kind(X)).tolist() == straight.predict(X).tolist()
    numbers = [float(number) for number in range(12)]
    regressor = TextRegressor(encoder=str(tiny_bert), adapt="frozen", epochs=1, valid=0, threads=1)
    assert regressor.fit(pa.table({"a": X, "b": X}), pa.array(numbers)).fitted_.artifact.columns["pair"] == "pair"


def test_held_out_rows_of_estimators_are_given_as_rows(classifier, tiny_bert):
    other = ["good dog", "bad mat", "fine cat"]
    told = classifier.set_params(valid=(other, ["p", "n", "p"])).fit(X, Y).fitted_.artifact.run
    assert (told["rows"], told["held_out_rows"]) == (12, 3)
    assert told["metrics"]["accuracy"] == pytest.approx(accuracy_score(["p", "n", "p"], classifier.predict(other)))
    assert clone(classifier).get_params()["valid"] == (other, ["p", "n", "p"])
    assert (
        clone(classifier).set_params(valid=(X[:2], LISTS[1:3])).fit(X, LISTS).fitted_.artifact.run["held_out_rows"] == 2
    )
    regressor = TextRegressor(encoder=str(tiny_bert), adapt="frozen", epochs=1, threads=1, valid=(other, [1, 2, 3]))
    assert regressor.fit(X, range(12)).fitted_.artifact.run["held_out_rows"] == 3
    tagger = SequenceLabeler(encoder=str(tiny_bert), adapt="frozen", epochs=1, threads=1, valid=([["a"]], [["O"]]))
    assert tagger.fit([["a", "b"]] * 4, [["O", "B-X"]] * 4).fitted_.artifact.run["held_out_rows"] == 1
    questions = [("who", ["a", "b"])] * 4
    chooser = MultipleChoice(encoder=str(tiny_bert), epochs=1, threads=1, valid=(questions[:1], [1]))
    assert chooser.fit(questions, [0, 1] * 2).fitted_.artifact.run["held_out_rows"] == 1


@pytest.mark.parametrize(
    ("valid", "error", "message"),
    [
        ((X, Y, Y), UsageError, r"valid: is a tuple of 3; expected \(X, y\)"),
        ((X[:2], ["p", "zzz"]), DataError, r'valid X\[1\]: the target is "zzz"; expected one of 2 known labels'),
        ((X[:2], ["p"]), ValueError, "inconsistent numbers of samples"),
        (([("a", "b")], ["p"]), DataError, "valid X: holds pairs; expected single texts, as X"),
        (("good", ["p"]), DataError, "got one text"),
        ([X, Y], UsageError, r"valid: is list; expected None, \(X, y\), or a share"),
        ("file.csv", UsageError, r"valid: is str; expected None, \(X, y\), or a share"),
    ],
)
def test_held_out_rows_that_cannot_be_used_are_refused(classifier, valid, error, message):
    with pytest.raises(error, match=message):
        classifier.set_params(valid=valid).fit(X, Y)
