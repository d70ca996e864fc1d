"""berthead in Python: fit from anything, one in one out, scores that scikit-learn agrees with."""

from __future__ import annotations

import copy
import doctest
import importlib
import json
import pickle
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from conftest import all_bytes, make_bert, toy_rows, unsealed, write_csv, write_jsonl
from sklearn import metrics

import berthead
from berthead.errors import DataError, GateError, Interrupted, ModelError, OutputError, UsageError
from berthead.function.artifact import Artifact

KINDS = {
    "classify": {},
    "multilabel": {"task": "multilabel", "label": "tags"},
    "regress": {"task": "regress", "label": "stars"},
}


@pytest.fixture(scope="module")
def model(fit_toy):
    return berthead.load(fit_toy(epochs=6))


@pytest.fixture(scope="module")
def pair_model(fit_toy):
    return berthead.load(fit_toy(epochs=6, pair="pair"))


@pytest.fixture
def quick(tiny_bert):
    """Options of a fit that takes a moment."""
    return {"encoder": str(tiny_bert), "epochs": 1, "lr": 3e-3, "threads": 1, "quiet": True}


def hashes(fitted) -> tuple[str, str]:
    said = fitted.info()["parameters"]
    return said["theta_sha256"], said["omega_sha256"]


def numbers(fitted, texts) -> list[list[float]]:
    return [list(one.probabilities.values()) for one in fitted.predict(texts)]


# Data from anywhere


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_give_the_same_weights_from_wherever_they_come(kind, quick, tmp_path):
    rows = toy_rows()
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "toy.parquet")
    frame.to_csv(tmp_path / "toy.tsv", sep="\t", index=False)
    frame.to_csv(tmp_path / "toy.csv.gz", index=False)
    sources = [
        write_csv(tmp_path / "toy.csv", rows), str(tmp_path / "toy.csv"), tmp_path / "toy.tsv", tmp_path / "toy.csv.gz",
        write_jsonl(tmp_path / "toy.jsonl", rows), tmp_path / "toy.parquet", frame, pl.DataFrame(rows), rows,
        iter(rows), tuple(rows),
    ]  # fmt: skip
    fitted = [berthead.fit(source, **quick, **KINDS[kind]) for source in sources]
    assert {hashes(one) for one in fitted} == {hashes(fitted[0])}
    assert {one.info()["run"]["data_sha256"] for one in fitted} == {fitted[0].info()["run"]["data_sha256"]}
    assert {one.info()["run"]["rows"] for one in fitted} != {0}


def test_other_rows_give_other_weights(quick):
    one, two = berthead.fit(toy_rows(), **quick), berthead.fit(toy_rows()[::-1], **quick)
    assert hashes(one) != hashes(two)
    assert one.info()["run"]["data_sha256"] != two.info()["run"]["data_sha256"]


def test_numbers_from_pandas_and_polars_are_the_same_labels(quick):
    rows = [{"text": row["text"], "label": n % 2, "stars": (n % 4) / 2} for n, row in enumerate(toy_rows())]
    for frame in (pd.DataFrame(rows), pl.DataFrame(rows), rows):
        assert [(type(one), one) for one in berthead.fit(frame, **quick).labels] == [(int, 0), (int, 1)]
        regression = berthead.fit(frame, task="regress", label="stars", **quick)
        assert regression.artifact.task.scales[0].low == 0
        assert regression.artifact.task.scales[0].high == 1.5


def test_missing_values_of_pandas_are_bad_rows(quick):
    frame = pd.DataFrame(toy_rows())
    frame.loc[3, "text"] = None
    frame.loc[5, "label"] = np.nan
    with pytest.raises(DataError, match=r'row 4: column "text" is blank.*2 such rows: row 4, row 6'):
        berthead.fit(frame, **quick)
    fitted = berthead.fit(frame, skip_bad_rows=True, **quick)
    left_out = [line.split(":")[1].strip() for line in fitted.warnings if line.startswith("left out")]
    assert left_out == ["row 4", "row 6"]


def test_a_column_that_looks_like_the_second_text_is_not_left_unread_silently(quick):
    note = 'column "pair" is not read; to fit on pairs: pair="pair"'
    assert note in berthead.fit(toy_rows(), **quick).warnings
    assert note not in berthead.fit(toy_rows(), pair="pair", **quick).warnings


@pytest.mark.parametrize("data", [[], pd.DataFrame(), pl.DataFrame(), 5, None, ["text"], [("a", "b")], [[1]]], ids=str)
def test_what_is_no_data_is_a_data_error(data, quick):
    with pytest.raises(DataError, match="data"):
        berthead.fit(data, **quick)


def test_held_out_rows_may_be_a_file(quick, tmp_path):
    held_out = write_csv(tmp_path / "valid.csv", toy_rows(1))
    fitted = berthead.fit(toy_rows(), valid=str(held_out), **quick)
    assert fitted.info()["run"]["held_out_rows"] == 14
    assert fitted.info()["run"]["metrics"]["accuracy"] == fitted.evaluate(held_out)["accuracy"]
    write_csv(held_out, [{"text": "good", "label": "unheard"}])
    with pytest.raises(DataError, match=r'valid\.csv:2: .*"unheard"'):
        berthead.fit(toy_rows(), valid=held_out, **quick)


# One in, one out


def test_one_text_gives_one_answer_and_a_list_a_list(model):
    one = model.predict("good cat")
    assert isinstance(one, berthead.Prediction)
    assert model.predict(["good cat"]) == [
        berthead.Prediction(**{name: getattr(one, name) for name in berthead.Prediction.__slots__})
    ]
    for many in (["good cat", "bad dog"], ("good", "bad", "cat"), (t for t in ["good", "bad"]), {"good": 1}.keys(),
                 np.array(["good", "bad"]), pd.Series(["good", "bad"]), pl.Series(["good", "bad"])):  # fmt: skip
        answers = model.predict(many)
        assert isinstance(answers, list)
        assert all(one.answer in model.labels for one in answers)
    assert len(model.predict(["good", "bad"])) == 2


def test_a_tuple_is_a_pair_and_a_list_of_tuples_many(pair_model):
    one = pair_model.predict(("good cat", "the dog"))
    many = pair_model.predict([("good cat", "the dog"), ("bad cat", "the cat"), ["good cat", "the dog"]])
    assert one.answer in pair_model.labels
    # One row and three are other matrices to multiply: float32 noise.
    assert many[0].probabilities == pytest.approx(one.probabilities, abs=1e-6)
    assert many[0].n_tokens == one.n_tokens
    assert many[2].probabilities == pytest.approx(one.probabilities, abs=1e-5)
    assert one.n_tokens == 7
    other = pair_model.predict(("the dog", "good cat"))
    assert abs(other.score - one.score) > 1e-6 or other.answer != one.answer


def test_a_model_of_texts_refuses_pairs_and_the_other_way_round(model, pair_model):
    for given in (("good cat", "the dog"), [("good cat", "the dog")], ["good", ["a", "b"]]):
        with pytest.raises(DataError, match=r"input \d.*reads single texts"):
            model.predict(given)
        with pytest.raises(DataError):
            model.predict_proba(given)
    for given in ("good cat", ["good cat"], [("a", "b", "c")], [("a",)], ["good cat", "the dog"]):
        with pytest.raises(DataError, match=r"input 1.*reads pairs"):
            pair_model.predict(given)


NO_TEXTS = [5, None, b"good cat", object()]


@pytest.mark.parametrize("given", NO_TEXTS, ids=lambda given: type(given).__module__ + type(given).__name__)
def test_what_is_no_text_is_refused_and_not_read_as_something_else(given, model):
    """Iterating bytes or a table gives numbers and columns: answers about those would be nonsense."""
    for ask in (model.predict, model.predict_proba):
        with pytest.raises(DataError, match=f"got {type(given).__name__}; expected a list of texts"):
            ask(given)


def test_probabilities_of_one_text_are_asked_in_a_list(model, pair_model):
    with pytest.raises(DataError, match=r"got one input; expected a list of inputs\. Pass \[input\]"):
        model.predict_proba("good cat")
    with pytest.raises(DataError, match=r"got one input; expected a list of inputs\. Pass \[input\]"):
        pair_model.predict_proba(("good cat", "the dog"))


def test_probabilities_are_rows_of_labels_in_order(model):
    texts = [row["text"] for row in toy_rows(1)]
    shares = model.predict_proba(texts)
    assert shares.shape == (14, 2)
    assert shares.dtype == np.float32
    assert model.labels == ["negative", "positive"]
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert shares.tolist() == numbers(model, texts)
    assert [model.labels[n] for n in shares.argmax(1)] == [one.answer for one in model.predict(texts)]
    assert model.predict_proba([]).shape == (0, 2)
    with pytest.raises(DataError, match=r"input 2.*expected a text"):
        model.predict_proba(["good", ""])


def test_a_regression_has_no_probabilities(fit_toy):
    regression = berthead.load(fit_toy(**KINDS["regress"]))
    assert regression.labels == []
    with pytest.raises(UsageError, match="no probabilities"):
        regression.predict_proba(["good"])


@pytest.mark.parametrize("labels", [[0, False], [1, 1.0, "1"], [True, 1]], ids=str)
def test_labels_that_python_calls_equal_are_told_apart(labels, quick):
    """1 == True in Python: probabilities by label must not lose one of them without a word."""
    rows = [{"text": row["text"], "label": labels[n % len(labels)]} for n, row in enumerate(toy_rows())]
    fitted = berthead.fit(rows, **quick)
    assert sorted(map(repr, fitted.labels)) == sorted(map(repr, labels))
    assert len(fitted.predict("good cat").probabilities) == len(labels)
    assert fitted.predict_proba(["good cat"]).shape == (1, len(labels))
    assert fitted.predict("good cat").score == fitted.predict_proba(["good cat"]).max()


# Scores


def mixed_rows() -> list[dict[str, str]]:
    """Rows of which some have a wrong target, so that no score is perfect."""
    rows = [dict(row) for row in toy_rows(2)]
    for row, other in zip(rows[::5], rows[1::5], strict=False):
        for name in ("label", "tags", "stars"):
            row[name], other[name] = other[name], row[name]
    rows[3]["tags"] = ""
    return rows


def test_evaluate_of_a_classifier_equals_scikit_learn(model, tmp_path):
    rows = mixed_rows()
    scores = model.evaluate(rows)
    gold, texts = [row["label"] for row in rows], [row["text"] for row in rows]
    answers = [one.answer for one in model.predict(texts)]
    assert scores["rows"] == len(rows)
    assert 0 < scores["accuracy"] < 1
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(gold, answers))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(gold, answers, average="macro"))
    assert scores["micro_f1"] == pytest.approx(metrics.f1_score(gold, answers, average="micro"))
    assert scores["loss"] == pytest.approx(
        metrics.log_loss(gold, model.predict_proba(texts).astype(float), labels=model.labels), abs=1e-5
    )
    table = metrics.classification_report(gold, answers, output_dict=True)
    for row in scores["per_label"]:
        theirs = table[row["label"]]
        ours = [row["precision"], row["recall"], row["f1"], row["support"]]
        assert ours == pytest.approx([theirs[name] for name in ("precision", "recall", "f1-score", "support")])
    assert model.evaluate(write_csv(tmp_path / "rows.csv", rows)) == scores
    assert model.evaluate(pd.DataFrame(rows)) == scores
    assert json.loads(json.dumps(scores)) == scores


def test_evaluate_of_a_multilabel_model_equals_scikit_learn(fit_toy):
    fitted = berthead.load(fit_toy(epochs=6, **KINDS["multilabel"]))
    rows = mixed_rows()
    scores = fitted.evaluate(rows)
    texts = [row["text"] for row in rows]
    gold = np.array([[label in row["tags"].split("|") for label in fitted.labels] for row in rows], dtype=int)
    answers = np.array([[label in one.answer for label in fitted.labels] for one in fitted.predict(texts)], dtype=int)
    shares = fitted.predict_proba(texts).astype(float)
    assert scores["micro_f1"] == pytest.approx(metrics.f1_score(gold, answers, average="micro"))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(gold, answers, average="macro"))
    assert scores["exact_match"] == pytest.approx(metrics.accuracy_score(gold, answers))
    assert scores["average_precision"] == pytest.approx(
        metrics.average_precision_score(gold, shares, average="micro"), abs=1e-6
    )
    assert scores["loss"] == pytest.approx(metrics.log_loss(gold.ravel(), shares.ravel()), abs=1e-5)
    assert 0 < scores["exact_match"] < 1


def test_evaluate_of_a_regression_equals_scipy_and_scikit_learn(fit_toy):
    from scipy.stats import pearsonr, spearmanr

    fitted = berthead.load(fit_toy(epochs=6, **KINDS["regress"]))
    rows = mixed_rows()
    scores = fitted.evaluate(rows)
    gold = [float(row["stars"]) for row in rows]
    answers = [one.answer for one in fitted.predict([row["text"] for row in rows])]
    assert scores["pearson"] == pytest.approx(pearsonr(gold, answers)[0], abs=1e-5)
    assert scores["spearman"] == pytest.approx(spearmanr(gold, answers)[0], abs=1e-2)
    assert scores["mae"] == pytest.approx(metrics.mean_absolute_error(gold, answers), abs=1e-5)
    assert scores["rmse"] == pytest.approx(metrics.root_mean_squared_error(gold, answers), abs=1e-5)
    assert scores["mae"] > 0.1


def test_a_label_that_was_not_fitted_is_named_with_its_row_and_the_known_ones(model, tmp_path):
    rows = [{"text": "good", "label": "positive"}, {"text": "bad", "label": "negativ"}, {"text": "c", "label": "x"}]
    path = write_csv(tmp_path / "rows.csv", rows)
    with pytest.raises(DataError) as caught:
        model.evaluate(path)
    message = str(caught.value)
    assert message.startswith(f'{path}:3: column "label" is "negativ"; expected one of 2 known labels: ')
    assert '"negative", "positive"' in message
    assert 'Did you mean "negative"?' in message
    assert "2 such rows" in message
    assert caught.value.exit_code == 3
    scores = model.evaluate(path, skip_bad_rows=True)
    assert (scores["rows"], scores["skipped"]) == (1, 2)
    assert [line.split(": ")[:2] for line in scores["warnings"] if line.startswith("left out")] == [
        ["left out", f"{path}:3"], ["left out", f"{path}:4"]
    ]  # fmt: skip
    with pytest.raises(DataError, match="no rows that can be scored"):
        model.evaluate(rows[1:], skip_bad_rows=True)


def test_a_label_of_another_type_is_the_one_that_reads_the_same(quick):
    rows = [{"text": row["text"], "label": n % 2} for n, row in enumerate(toy_rows())]
    fitted = berthead.fit(rows, **quick)
    scores = fitted.evaluate([row | {"label": str(row["label"])} for row in rows])
    assert scores["accuracy"] == fitted.evaluate(rows)["accuracy"]
    with pytest.raises(
        DataError, match=r'is "2" \(text; the labels are of type integer\); expected one of 2 known labels'
    ):
        fitted.evaluate([{"text": "good", "label": "2"}])


def test_evaluate_reads_other_columns_and_names_a_mistyped_one(model):
    rows = [{"body": row["text"], "queue": row["label"]} for row in toy_rows(1)]
    renamed = model.evaluate(rows, text="body", label="queue")
    assert renamed == model.evaluate([{"text": row["body"], "label": row["queue"]} for row in rows])
    with pytest.raises(DataError, match=r'has no column "bodi".*Did you mean "body"\?'):
        model.evaluate(rows, text="bodi", label="queue")


# Copies


def test_pickle_and_deepcopy_give_the_same_answers(pair_model, fit_toy):
    texts = [row["text"] for row in toy_rows(1)]
    for options in KINDS.values():
        fitted = berthead.load(fit_toy(**options))
        for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted), copy.copy(fitted)):
            assert other.predict(texts) == fitted.predict(texts)
            assert other.info() == fitted.info()
            assert other.verify() < 1e-5
    again = pickle.loads(pickle.dumps(pair_model))
    assert again.predict(("good", "bad")) == pair_model.predict(("good", "bad"))


def test_a_pickle_keeps_precision_budget_and_warnings(fit_toy):
    fitted = berthead.load(fit_toy(), precision="bf16", token_budget=77)
    fitted.warnings = ["of the fit"]
    again = pickle.loads(pickle.dumps(fitted))
    assert (again.predictor.engine.precision, again.predictor.token_budget) == ("bf16", 77)
    assert again.warnings == ["of the fit"]


def test_a_deep_copy_shares_no_weights(fit_toy):
    fitted = berthead.load(fit_toy())
    other = copy.deepcopy(fitted)
    before = fitted.predict("good cat")
    with torch.no_grad():
        for parameter in other.artifact.model.parameters():
            parameter.zero_()
    assert fitted.predict("good cat") == before


def test_a_fitted_function_saves_itself_whenever_asked(quick, tmp_path):
    fitted = berthead.fit(toy_rows(), **quick)
    assert not any(tmp_path.iterdir())
    fitted.save(tmp_path / "new" / "model")
    loaded = berthead.load(tmp_path / "new" / "model")
    texts = [row["text"] for row in toy_rows(1)]
    np.testing.assert_allclose(loaded.predict_proba(texts), fitted.predict_proba(texts), rtol=0, atol=1e-6)
    assert hashes(loaded) == hashes(fitted)
    with pytest.raises(OutputError, match="holds a model already"):
        fitted.save(tmp_path / "new" / "model")
    fitted.save(tmp_path / "new" / "model", overwrite=True)


# Options


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("epoch", 3, 'epoch: is not an option; .*Did you mean "epochs"'),
        ("learning_rate", 1, "learning_rate: is not an option; expected one of task, "),
        (
            "pooling",
            "poler",
            'pooling: is "poler"; expected one of auto, .*, mean_normalised. Did you mean "pooler"',
        ),
        ("task", "classification", 'task: is "classification".*Did you mean "classify"'),
        ("metric", "acuracy", 'metric: is "acuracy"; expected a metric of classify: .*Did you mean "accuracy"'),
        ("epochs", 0, "epochs: is 0; expected at least 1"),
        ("epochs", 1.5, "epochs.*a whole number"),
        ("lr", -1, "lr: is -1.*above 0"),
        ("lr", float("nan"), "lr.*a number"),
        ("valid", 1.5, "valid: is 1.5; expected a file, or a share"),
        ("max_tokens", 4096, "max_tokens: is 4096; expected at most 64, the tokens"),
        ("class_weight", "balance", 'Did you mean "balanced"'),
        ("skip_bad_rows", "maybe", "expected true or false"),
    ],
)
def test_an_option_that_cannot_be_is_a_usage_error_before_training(option, value, message, quick, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was trained")

    monkeypatch.setattr("berthead.train.learn.fit_model", refuse)
    with pytest.raises(UsageError, match=message) as caught:
        berthead.fit(toy_rows(), **(quick | {option: value}))
    assert caught.value.exit_code == 2


def test_unknown_options_of_load_and_evaluate_are_errors(fit_toy, model):
    with pytest.raises(UsageError, match=r'tokens_budget: is not an option; .*Did you mean "token_budget"'):
        berthead.load(fit_toy(), tokens_budget=3)
    with pytest.raises(UsageError, match=r'lable: is not an option; .*Did you mean "label"'):
        model.evaluate(toy_rows(), lable="label")
    with pytest.raises(UsageError, match='precision: is "int3"'):
        berthead.load(fit_toy(), precision="int3")
    with pytest.raises(ModelError, match="does not exist"):
        berthead.load("no/such/folder")


def test_pooler_is_refused_where_the_checkpoint_has_none(quick, tmp_path):
    encoder = make_bert(tmp_path / "no-pooler", model_class="BertForMaskedLM")
    with pytest.raises(UsageError, match="has no pooler weights"):
        berthead.fit(toy_rows(), **(quick | {"encoder": str(encoder), "pooling": "pooler"}))
    assert berthead.fit(toy_rows(), **(quick | {"encoder": str(encoder)})).info()["head"]["pooling"] == "mean"


def test_options_come_from_yaml_and_keywords_win(quick, tmp_path):
    (tmp_path / "fit.yaml").write_text("epochs: 2\nmax-tokens: 20\nseed: 5\n", encoding="utf-8")
    fitted = berthead.fit(toy_rows(), config=tmp_path / "fit.yaml", **(quick | {"seed": 9}))
    assert fitted.artifact.max_tokens == 20
    assert fitted.info()["run"]["seed"] == 9


# Importing


def test_importing_berthead_imports_no_torch_and_reads_no_network():
    script = (
        "import sys, berthead\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'numpy', 'pyarrow', 'tokenizers', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "names = dir(berthead)\n"
        "assert set(berthead.__all__) <= set(names), names\n"
        "assert 'torch' not in sys.modules\n"
        "values = {name: getattr(berthead, name) for name in berthead.__all__}\n"
        "assert 'transformers' not in sys.modules\n"
        "print(len(values), *sorted(k for k, v in values.items() if v.__name__ != k or not v.__doc__))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(len(berthead.__all__))]


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'fitt'"):
        berthead.fitt  # noqa: B018
    assert not hasattr(berthead, "predict_all")


SOURCE = Path(berthead.__file__).parent
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages([str(SOURCE)], "berthead.")
    if not name.endswith(("__main__", "_native"))
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    module = importlib.import_module(name)
    examples = sum(len(one.examples) for one in doctest.DocTestFinder(exclude_empty=True).find(module))
    written = Path(module.__file__).read_text(encoding="utf-8").count(">>> ")
    assert examples == written  # none is hidden from doctest
    failed, _ = doctest.testmod(module)
    assert failed == 0


def test_there_are_docstring_examples():
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(name) for name in MODULES]
    examples = [example for module in modules for one in finder.find(module) for example in one.examples]
    run = [example for example in examples if not example.options.get(doctest.SKIP)]
    assert len(run) >= 20


# Ctrl-C


@pytest.mark.parametrize("adapt", ["full", "frozen"])
def test_an_interrupted_fit_keeps_the_best_epoch_beside_the_target(adapt, quick, tmp_path, monkeypatch):
    from berthead.train import steps

    options = quick | {"epochs": 5, "batch": 8, "adapt": adapt, "valid": 0.1}
    passes, count = steps._passes, 0

    def interrupted(*args):
        nonlocal count
        count += 1
        if count == 16:  # 51 rows in parts of 8: in the third epoch
            raise KeyboardInterrupt
        return passes(*args)

    monkeypatch.setattr(steps, "_passes", interrupted)
    with pytest.raises(
        (Interrupted, KeyboardInterrupt), match=r"stopped after 2 whole epochs.*toy\.interrupted"
    ) as caught:
        berthead.fit(toy_rows(), out=tmp_path / "toy", **options)
    assert caught.value.exit_code == 130
    assert str(caught.value).endswith("To continue, run the same command with resume=True.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.fit", "toy.interrupted"]
    kept = berthead.load(tmp_path / "toy.interrupted")
    assert kept.verify() < 1e-5
    run = kept.info()["run"]
    assert run["interrupted"] is True
    assert len(run["epochs"]) == 2
    assert run["best_epoch"] in (1, 2)
    best = run["epochs"][run["best_epoch"] - 1]
    assert kept.info()["run"]["metrics"]["accuracy"] == best["accuracy"] == max(e["accuracy"] for e in run["epochs"])
    monkeypatch.undo()
    berthead.fit(toy_rows(), out=tmp_path / "toy", resume=True, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy", "toy.interrupted"]
    berthead.fit(toy_rows(), out=tmp_path / "whole", **options)
    assert all_bytes(tmp_path / "toy") == all_bytes(tmp_path / "whole")


def test_a_fit_interrupted_twice_keeps_the_later_one(quick, tmp_path, monkeypatch):
    from berthead.train import steps

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "_passes", interrupted)
    for seed in (1, 2):
        with pytest.raises((Interrupted, KeyboardInterrupt), match=r"stopped after 0 whole epochs.*weights so far"):
            berthead.fit(toy_rows(), out=tmp_path / "toy", **(quick | {"seed": seed}))
    assert berthead.load(tmp_path / "toy.interrupted").info()["run"]["seed"] == 2
    with pytest.raises((Interrupted, KeyboardInterrupt)) as caught:
        berthead.fit(toy_rows(), **quick)
    assert "kept" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.interrupted"]


def test_ctrl_c_after_the_last_epoch_does_not_lose_the_fitted_weights(quick, tmp_path, monkeypatch):
    def interrupted(*args):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr("berthead.train.fit.baseline_logits", interrupted)
    with pytest.raises((Interrupted, KeyboardInterrupt), match="kept in"):
        berthead.fit(toy_rows(), out=tmp_path / "toy", valid=0.1, **quick)
    assert berthead.load(tmp_path / "toy.interrupted").verify() < 1e-5


def test_a_fitted_function_is_made_of_its_artifact(model):
    """What the documentation names: an Artifact can be wrapped by hand."""
    assert isinstance(model.artifact, Artifact)
    assert berthead.Fitted(model.artifact).predict("good cat") == model.predict("good cat")


def test_cut_rows_are_counted_over_fitted_and_held_out_rows_together(quick, tmp_path):
    held_out = write_csv(tmp_path / "valid.csv", toy_rows(2))
    fitted = berthead.fit(toy_rows(1), valid=str(held_out), **(quick | {"max_tokens": 4}))
    (note,) = [line for line in fitted.warnings if "over 4 tokens" in line]
    cut, rows = re.match(r"(\d+) of (\d+) rows", note).groups()
    assert int(cut) <= int(rows) == 14 + 28


def test_the_range_of_a_regression_is_that_of_its_fitted_rows(quick):
    rows = [row | {"stars": str(number)} for number, row in enumerate(toy_rows(4))]
    options = {key: value for key, value in quick.items() if key != "label"}
    for seed in range(3):
        fitted = berthead.fit(rows, task="regress", label="stars", valid="0.25", **(options | {"seed": seed}))
        task = fitted.info()["task"]
        seen = fitted.info()["run"]["rows"]
        assert seen == 42
        # 56 numbers from 0 to 55, a quarter held out: mean and deviation are of 42 of them, not of all
        assert task["mean"] != pytest.approx(27.5, abs=1e-9)


@pytest.mark.parametrize("unit", [1e-5, 1.0, 1e6])
def test_verify_notices_another_tokenizer_whatever_the_targets_unit_is(quick, tmp_path, unit):
    rows = [row | {"stars": str(unit * float(row["stars"]))} for row in toy_rows(2)]
    options = {key: value for key, value in quick.items() if key != "label"} | {"epochs": 8, "lr": 3e-3}
    folder = tmp_path / "model"
    berthead.fit(rows, task="regress", label="stars", out=folder, **options)
    assert berthead.load(folder).verify() < 1e-5
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    words["good"], words["bad"], words["cat"], words["dog"] = words["bad"], words["good"], words["dog"], words["cat"]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"tokenizer.json: does not match the sha256 in berthead.json"):
        berthead.load(folder)
    record = json.loads((folder / "berthead.json").read_text())
    (folder / "berthead.json").write_text(json.dumps(unsealed(record)))  # of an older berthead, which kept no hash
    with pytest.raises(GateError):
        berthead.load(folder).verify()


def test_labels_that_python_finds_equal_are_printed(quick):
    from berthead.cli.printing import as_line

    rows = [row | {"tags": [1, True] if row["label"] == "positive" else [2]} for row in toy_rows(1)]
    options = {key: value for key, value in quick.items() if key != "label"}
    fitted = berthead.fit(rows, task="multilabel", label="tags", **options)
    for one in fitted.predict(["good cat", "bad dog"]):
        as_line(one, as_json=False)
        assert len(json.loads(as_line(one, as_json=True))["probabilities"]) == 3


@pytest.mark.parametrize(("precision", "fast", "told"), [("bf16", False, 1), ("bf16", True, 0), ("fp32", False, 0)])
def test_a_precision_that_the_processor_lacks_is_told(precision, fast, told, quick, monkeypatch):
    monkeypatch.setattr("berthead.train.learn.has_fast_bf16", lambda device: fast)
    fitted = berthead.fit(toy_rows(4), **quick | {"precision": precision})
    assert sum("this processor has no bfloat16 arithmetic" in line for line in fitted.warnings) == told


def test_baselines_have_a_decision_of_their_own(monkeypatch, quick):
    import numpy as np

    from berthead.data.labels import Labels
    from berthead.records import Example
    from berthead.tasks import Multilabel
    from berthead.train.baselines import baseline_logits
    from berthead.train.fit import _score
    from berthead.train.fold import Fold

    rows = toy_rows(4)
    task = Multilabel(Labels(["nasty", "nice", "short"]), (0.999, 0.999, 0.999))
    examples = [Example(row["text"]) for row in rows]
    targets = task.targets([row["tags"].split("|") for row in rows])
    fold = Fold(examples, [], targets)
    answers = baseline_logits(task, fold, fold)
    assert _score(task, answers["tfidf"], fold, "micro_f1", tuned=True) == 1
    assert np.all(np.array(task.thresholds) == 0.999)
