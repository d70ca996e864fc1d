"""Several numbers a row: `regress` with a column for each, from files to transformers and scikit-learn."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sklearn.metrics as sk
import torch
from conftest import toy_rows, write_csv, write_jsonl
from scipy import sparse, stats
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score

import berthead
from berthead import TextRegressor
from berthead.cli.printing import as_line
from berthead.data.examples import Columns, TargetCells, to_example
from berthead.errors import DataError, ModelError, OutputError, UsageError
from berthead.records import Prediction, Row
from berthead.tasks import Answer, Regress
from berthead.tasks.linear import ridge
from berthead.tasks.scale import Scale

NAMES = ("urgency", "price")
ROWS = [
    {"text": row["text"], "urgency": float(row["stars"]), "price": 10.0 * number, "late": number % 2}
    for number, row in enumerate(toy_rows())
]
TEXTS = [row["text"] for row in ROWS]
GOLD = np.array([[row[name] for name in NAMES] for row in ROWS])
QUICK = {"epochs": 3, "batch": 8, "lr": 3e-3, "threads": 1, "valid": 0.25}


@pytest.fixture
def fit_two(once, tiny_bert):
    """Fits of both columns, once for each set of options."""

    def fitted(**options) -> Path:
        def make(folder: Path) -> None:
            chosen = QUICK | {"encoder": str(tiny_bert), "label": "urgency,price"} | options
            berthead.fit(pd.DataFrame(ROWS), task="regress", out=folder, quiet=True, **chosen)

        return once("two numbers", options, make)

    return fitted


@pytest.fixture
def model(fit_two):
    return berthead.load(fit_two(pooling="pooler", windows="mean"))


def matrix(predictions) -> np.ndarray:
    return np.array([[one.answer[name] for name in NAMES] for one in predictions])


def two(*scales: Scale) -> Regress:
    return Regress(scales or (Scale(1, 2, -3, 4), Scale(10, 5, 0, 30)), NAMES)


# Metrics, loss, answers


def test_metrics_are_those_of_scikit_learn_for_several_outputs(model):
    found = model.evaluate(pd.DataFrame(ROWS))
    answers = matrix(model.predict(TEXTS))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(GOLD, answers), rel=1e-6)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(GOLD, answers), rel=1e-6)
    deviations = np.array([scale.deviation for scale in model.artifact.task.scales])
    assert found["loss"] == pytest.approx(sk.mean_squared_error(GOLD / deviations, answers / deviations), rel=1e-6)
    for place, row in enumerate(found["per_target"]):
        pair = GOLD[:, place], answers[:, place]
        assert (row["target"], row["rows"]) == (NAMES[place], len(ROWS))
        assert row["mae"] == pytest.approx(sk.mean_absolute_error(*pair), rel=1e-6)
        assert row["rmse"] == pytest.approx(sk.root_mean_squared_error(*pair), rel=1e-6)
        assert row["pearson"] == pytest.approx(stats.pearsonr(*pair).statistic, abs=1e-6)
        assert row["spearman"] == pytest.approx(stats.spearmanr(*pair).statistic, abs=1e-3)
    for name in ("pearson", "spearman"):
        assert found[name] == pytest.approx(np.mean([row[name] for row in found["per_target"]]))


def test_unknown_numbers_count_in_no_metric_and_in_no_loss():
    draw = np.random.default_rng(0)
    gold = draw.normal(size=(40, 2)).astype(np.float32)
    gold[::3, 0] = np.nan
    gold[1::3, 1] = np.nan
    logits = draw.normal(size=(40, 2)).astype(np.float32)
    task = two(Scale(0, 2, -9, 9), Scale(0, 0.5, -9, 9))
    found = task.evaluate(logits, gold)
    for place, row in enumerate(found["per_target"]):
        known = ~np.isnan(gold[:, place])
        assert row["rows"] == known.sum()
        assert row["mae"] == pytest.approx(sk.mean_absolute_error(gold[known, place], logits[known, place]), rel=1e-5)
    outputs = torch.from_numpy(logits).requires_grad_()
    losses = task.loss(outputs, torch.from_numpy(gold), None)
    squares = ((logits - gold) / np.array([2, 0.5])) ** 2
    np.testing.assert_allclose(losses.detach().numpy(), np.nanmean(squares, axis=1), rtol=1e-5)
    assert found["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    losses.sum().backward()
    assert torch.equal(outputs.grad == 0, torch.from_numpy(np.isnan(gold)))


def test_a_target_without_a_number_is_said_not_to_be_scored():
    gold = np.array([[1.0, np.nan], [2.0, np.nan]], dtype=np.float32)
    found = two().evaluate(np.ones((2, 2), dtype=np.float32), gold)
    assert [row["target"] for row in found["per_target"]] == ["urgency"]
    assert found["warnings"] == [
        'target "urgency": correlation is not defined: all answers or all targets are equal',
        'target "price": no row has a number: it is not scored',
    ]
    assert found["mae"] == found["per_target"][0]["mae"]


def test_answers_keep_to_the_range_of_each_target():
    (answer,) = two().decode(np.array([[1e4, -1e4]], dtype=np.float32))
    assert answer.answer == {"urgency": 4.0, "price": 0.0}
    assert answer.numbers == [4.0, 0.0]


def test_the_window_nearest_to_the_answer_decides():
    windows = np.array([[1, 30], [2, 11], [2, 0]], dtype=np.float32)
    assert two().window_scores(np.array([2, 12], dtype=np.float32), windows).argmax() == 1


def test_the_baseline_is_ridge_of_each_target_on_its_rows():
    draw = np.random.default_rng(1)
    features, unseen = sparse.csr_array(draw.normal(size=(20, 4))), draw.normal(size=(5, 4))
    targets = draw.normal(size=(20, 2)).astype(np.float32)
    whole = ridge(features, targets, unseen, 2)
    np.testing.assert_allclose(whole, Ridge().fit(features, targets).predict(unseen), rtol=1e-4)
    targets[:7, 1] = np.nan
    found = ridge(features, targets, unseen, 2)
    np.testing.assert_array_equal(found[:, 0], whole[:, 0])
    np.testing.assert_allclose(found[:, 1], Ridge().fit(features[7:], targets[7:, 1]).predict(unseen), rtol=1e-4)


# Reading rows


@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet", "frame", "dicts"])
def test_every_form_of_rows_gives_the_same_fit(fit_two, tiny_bert, tmp_path, end):
    table = pd.DataFrame(ROWS)
    table.loc[3, "price"] = None
    data = {"frame": table, "dicts": table.to_dict("records")}.get(end, tmp_path / f"rows.{end}")
    if end == "csv":
        table.to_csv(data, index=False)
    elif end == "jsonl":
        table.to_json(data, orient="records", lines=True)
    elif end == "parquet":
        table.to_parquet(data)
    options = QUICK | {"encoder": str(tiny_bert), "adapt": "frozen", "label": list(NAMES)}
    made = berthead.fit(data, task="regress", quiet=True, **options)
    assert made.warnings[0] == 'target "price" is blank in 1 of 56 rows: they count for the others only'
    assert [scale.high for scale in made.artifact.task.scales] == [4.5, 550.0]
    assert made.info()["columns"]["label"] == "urgency,price"


@pytest.mark.parametrize(
    ("cells", "error"),
    [
        (
            {"urgency": "soon", "price": 1},
            'column "urgency" is "soon"; expected a finite number such as 3.5, for --task regress',
        ),
        (
            {"urgency": 1, "price": float("inf")},
            'column "price" is Infinity; expected a finite number such as 3.5, for --task regress',
        ),
        ({"urgency": "", "price": None}, 'column "urgency,price" is blank; expected a number for one target at least'),
        ({"urgency": True, "price": 1}, 'column "urgency" is true; expected a finite number'),
    ],
)
def test_a_bad_cell_is_told_with_its_column(cells, error):
    columns = Columns.find("text", {"label": "urgency,price"}, ["text", *cells], "a.csv", numbers=True)
    found = to_example(Row({"text": "x", **cells}, "a.csv:2"), columns, Regress.read).error
    assert found is not None
    assert found.startswith(error)


def test_a_blank_cell_of_a_row_is_no_number():
    cells = TargetCells({"urgency": " ", "price": "2"})
    assert Regress.read(cells) == {"urgency": None, "price": 2.0}


def test_a_dict_in_a_cell_is_no_target():
    with pytest.raises(ValueError, match="expected a finite number"):
        Regress.read({"urgency": 1.0})


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([{"a": 1.0, "b": 2.0}, {"a": 2.0, "b": None}], 'y: target "b" holds only the number 2; expected at least two'),
        ([{"a": 1.0, "b": None}, {"a": 2.0, "b": None}], 'y: target "b" holds no labelled row; expected at least two'),
        ([{"a": 1.0, "b": 2.0}, {"a": 2.0}], "y: holds numbers for a; expected a number for each of a, b"),
        ([{"a": 1.0, "b": 2.0}, 3.0], "y: holds one number; expected a number for each of a, b"),
        ([3.0, {"a": 1.0, "b": 2.0}], "y: holds numbers for a, b; expected a number"),
    ],
)
def test_targets_that_cannot_be_learnt_are_refused(targets, message):
    with pytest.raises(DataError) as error:
        Regress.from_targets(targets, "y")
    assert str(error.value).startswith(message)


def test_other_tasks_name_the_one_that_reads_several_numbers(tmp_path, cli):
    data = write_csv(tmp_path / "rows.csv", ROWS)
    ran = cli("fit", data, "--label", "urgency,price", "--out", tmp_path / "m")
    assert "For several labels a row: --task multilabel; for several numbers: --task regress." in ran.err
    ran = cli("fit", data, "--task", "multilabel", "--label", "late,urgency", "--out", tmp_path / "m")
    assert ran.code == 3
    assert "expected 0 or 1: whether the row has this label; for numbers: --task regress" in ran.err
    words = write_csv(tmp_path / "words.csv", [{"text": "a", "late": "no"}, {"text": "b", "late": "yes"}])
    ran = cli("fit", words, "--task", "multilabel", "--label", "late,text", "--out", tmp_path / "m")
    assert "--task regress" not in ran.err


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("price", "holds one number; expected numbers for urgency, price, as at the fit"),
        ("price,late", "holds numbers for price, late; expected numbers for urgency, price"),
        ("price,urgency", None),
    ],
)
def test_targets_are_scored_by_their_names(model, label, message):
    if message is None:
        assert model.evaluate(ROWS, label=label) == model.evaluate(ROWS)
    else:
        with pytest.raises(DataError) as error:
            model.evaluate(ROWS, label=label)
        assert message in str(error.value)


def test_one_number_is_not_scored_against_several(fit_two):
    single = berthead.load(fit_two(label="urgency", adapt="frozen"))
    with pytest.raises(DataError, match="holds numbers for urgency, price; expected one number, as at the fit"):
        single.evaluate(ROWS, label="urgency,price")


def test_held_out_rows_may_lack_numbers_too(tiny_bert, tmp_path):
    blank = [row | ({"price": ""} if number < 4 else {}) for number, row in enumerate(ROWS)]
    held_out = write_csv(tmp_path / "valid.csv", blank)
    made = berthead.fit(
        ROWS, task="regress", label="urgency,price", quiet=True, **(QUICK | {"valid": str(held_out), "epochs": 1}),
        encoder=str(tiny_bert), adapt="frozen",
    )  # fmt: skip
    assert [row["rows"] for row in made.artifact.run["metrics"]["per_target"]] == [56, 52]
    assert np.isfinite(made.metrics["loss"])


# Ways to apply it


@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet", "xlsx"])
def test_output_files_have_a_column_for_each_target(model, tmp_path, end):
    source = write_csv(tmp_path / "in.csv", [{"text": text, "prediction_price": "mine"} for text in TEXTS])
    model.predict_file(source, tmp_path / f"out.{end}", quiet=True)
    read = {
        "csv": pd.read_csv, "parquet": pd.read_parquet, "xlsx": partial(pd.read_excel, engine="openpyxl"),
        "jsonl": lambda path: pd.read_json(path, lines=True),
    }[end]  # fmt: skip
    table = read(tmp_path / f"out.{end}")
    assert list(table) == ["text", "prediction_price", "prediction_urgency", "prediction_price_2"]
    found = table[["prediction_urgency", "prediction_price_2"]].to_numpy(dtype=np.float64)
    np.testing.assert_allclose(found, matrix(model.predict(TEXTS)), rtol=1e-6)


def test_a_json_file_of_one_answer_a_row_is_refused(model, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "text": "good cat"}])
    with pytest.raises(OutputError, match="prediction_urgency, prediction_price"):
        model.predict_file(source, tmp_path / "out.json", quiet=True)
    assert not (tmp_path / "out.json").exists()


def test_a_prediction_maps_targets_to_numbers(model, cli, fit_two):
    one = model.predict("good cat")
    assert list(one.answer) == list(NAMES)
    assert one.score is None
    assert json.loads(json.dumps(one.to_dict()))["answer"] == one.answer
    ran = cli("predict", fit_two(pooling="pooler", windows="mean"), "good cat")
    assert ran.out.split() == ["urgency", f"{one.answer['urgency']:.6g}", "price", f"{one.answer['price']:.6g}"]


def test_reports_name_the_targets(model, fit_two, tmp_path, cli):
    folder = fit_two(pooling="pooler", windows="mean")
    assert "2 targets     urgency 1.5 to 4.5, price 0 to 550" in cli("info", folder).out
    assert "regress: urgency from 1.5 to 4.5, price from 0 to 550" in repr(model)
    lines = cli("eval", folder, write_csv(tmp_path / "rows.csv", ROWS)).out.splitlines()
    assert lines[0].split() == ["target", "pearson", "spearman", "mae", "rmse", "rows"]
    assert [line.split()[0] for line in lines[1:4]] == ["urgency", "price", "rows"]
    assert lines[1].split()[-1] == str(len(ROWS))


def test_transformers_gives_the_same_numbers(model, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    lines = model.export_hf(tmp_path / "hf")
    assert "berthead keeps its answers for price between 0 and 550." in lines
    theirs, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values())
    assert (theirs.config.problem_type, theirs.config.num_labels) == ("regression", 2)
    assert theirs.config.id2label == {0: "urgency", 1: "price"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in TEXTS[:6]:
        with torch.no_grad():
            logits = theirs.eval()(**tokenizer(text, return_tensors="pt")).logits.numpy()[0]
        wanted = np.clip(logits, [1.5, 0], [4.5, 550])
        np.testing.assert_allclose(matrix([model.predict(text)])[0], wanted, rtol=1e-4)


def test_a_graph_an_adapter_and_joined_functions_give_the_same_numbers(model, fit_two, tmp_path):
    model.export_onnx(tmp_path / "onnx")
    graph = berthead.load(tmp_path / "onnx")
    assert graph.verify() < 1e-4
    np.testing.assert_allclose(matrix(graph.predict(TEXTS)), matrix(model.predict(TEXTS)), rtol=1e-4)
    changed, frozen = (berthead.load(fit_two(adapt=adapt, on_long="window")) for adapt in ("lora:2", "frozen"))
    merged = changed.merged()
    np.testing.assert_allclose(matrix(merged.predict(TEXTS)), matrix(changed.predict(TEXTS)), rtol=1e-5)
    both = berthead.join({"a": frozen, "b": model})
    both.save(tmp_path / "both")
    found = berthead.load(tmp_path / "both").predict(TEXTS)
    np.testing.assert_allclose(matrix(one["a"] for one in found), matrix(frozen.predict(TEXTS)), rtol=1e-5)
    write_csv(tmp_path / "in.csv", [{"text": "good cat"}])
    both.predict_file(tmp_path / "in.csv", tmp_path / "out.csv", quiet=True)
    header = (tmp_path / "out.csv").read_text().splitlines()[0]
    assert header == "text,a_prediction_urgency,a_prediction_price,b_prediction_urgency,b_prediction_price"


def test_long_texts_are_read_in_windows(fit_two):
    made = berthead.load(fit_two(max_tokens=8, stride=2))
    one = made.predict("good cat " * 20)
    assert one.n_windows > 1
    assert one.window in range(one.n_windows)
    assert list(one.answer) == list(NAMES)


def test_soups_and_comparisons(model, fit_two):
    other = berthead.load(fit_two(pooling="pooler", windows="mean", seed=1))
    made = berthead.soup([model, other], ROWS, metric="rmse")
    assert made.metrics["rmse"] <= min(one.evaluate(ROWS)["rmse"] for one in (model, other)) + 1e-9
    mean = berthead.soup([model, other], uniform=True)
    assert [scale.high for scale in mean.artifact.task.scales] == [4.5, 550]
    found = berthead.compare(model, other, ROWS)
    assert found.metrics["price: mae"]["b"] == pytest.approx(other.evaluate(ROWS)["per_target"][1]["mae"])
    assert found.test.name == "Wilcoxon signed-rank"
    assert set(found.flips[0].target) == set(NAMES)
    assert berthead.compare(model, model, ROWS).agreement == 1
    single = berthead.load(fit_two(label="price,urgency", pooling="pooler"))
    with pytest.raises(ModelError, match="differ in the task's targets"):
        berthead.soup([model, single], uniform=True)


def test_several_numbers_are_as_far_apart_as_the_furthest_in_standard_deviations():
    task = two()
    one, other = ({"urgency": 1.0, "price": 10.0}, {"urgency": 2.0, "price": 20.0})
    assert task.distance(Answer(one), Answer(other)) == 2.0
    assert task.distance(Answer(one), Answer({"urgency": 2.0, "price": None})) == 0.5
    assert task.distance(Answer(one), Answer({"urgency": 2.0})) is None
    assert task.identity(Answer(one)) == task.identity(Answer({"urgency": 1.0, "price": 10.000001}))
    assert task.identity(Answer(one)) != task.identity(Answer(other))


def test_a_dict_of_another_task_may_hold_other_things():
    assert Answer({"urgency": 1.5, "queue": "billing"}).numbers == [1.5]
    assert as_line(Prediction({"urgency": 1.5, "queue": "billing"}), as_json=False) == "urgency 1.5  queue billing"


def test_a_row_with_infinite_numbers_has_no_answer(model):
    from berthead.predict.answers import _is_finite

    assert not _is_finite(Answer({"urgency": 1.0, "price": float("nan")}))
    assert _is_finite(model.artifact.task.decode(np.zeros((1, 2), dtype=np.float32))[0])


def test_large_numbers_beside_small_ones_keep_all_digits(tiny_bert, tmp_path):
    shift = 1.7e9
    rows = [row | {"price": shift + row["price"]} for row in ROWS]
    options = QUICK | {"encoder": str(tiny_bert), "adapt": "frozen", "epochs": 40, "lr": 0.05, "quiet": True}
    near, far = (
        berthead.fit(data, task="regress", label="urgency,price", **options, out=tmp_path / name)
        for name, data in (("near", ROWS), ("far", rows))
    )
    assert [scale.standardised for scale in far.artifact.task.scales] == [False, True]
    np.testing.assert_allclose(matrix(far.predict(TEXTS)) - [0, shift], matrix(near.predict(TEXTS)), atol=1e-2)
    assert "The answer for price is 1700000" in far.info()["transformers"]["note"]
    assert berthead.load(tmp_path / "far").verify() < 1e-4
    assert far.evaluate(rows)["mae"] == pytest.approx(near.evaluate(ROWS)["mae"], abs=1e-2)


# The folder


def test_older_versions_refuse_the_folder_and_that_of_one_number_is_as_it_was(fit_two):
    several, single = (fit_two(pooling="pooler", windows="mean", **more) for more in ({}, {"label": "urgency"}))
    record = json.loads((several / "berthead.json").read_text())
    assert record["format_version"] == 6
    assert set(record["task"]) == {"name", "labels", "activation", "targets"}
    assert [set(one) for one in record["task"]["targets"]] == [{"name", "mean", "deviation", "low", "high"}] * 2
    record = json.loads((single / "berthead.json").read_text())
    assert record["format_version"] == 2
    assert set(record["task"]) == {"name", "labels", "activation", "mean", "deviation", "low", "high"}


@pytest.mark.parametrize(
    "scales", [(Scale(1, 2, -3, 4), Scale(10, 5, 0, 30)), (Scale(1.7e9, 60, 1.7e9, 1.8e9, True), Scale(0, 1, -1, 1))]
)
def test_the_task_comes_back_from_its_json(scales):
    task = two(*scales)
    assert Regress.from_json(json.loads(json.dumps(task.to_json()))) == task


@pytest.mark.parametrize(
    "targets",
    [
        [], [{"name": "a", **Scale(0, 1, 0, 1).to_json()}], [{"name": "a", **Scale(0, 1, 0, 1).to_json()}] * 2,
        [{"name": 1, **Scale(0, 1, 0, 1).to_json()}, {"name": "a", **Scale(0, 1, 0, 1).to_json()}], "ab", None, 3,
        [{"name": "a"}, {"name": "b"}], [{"name": "a", **Scale(0, 1, 2, 1).to_json()}, {"name": "b"}],
    ],
)  # fmt: skip
def test_a_record_of_targets_that_cannot_be_is_refused(targets):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Regress.from_json({"labels": [], "activation": "none", "targets": targets})


# scikit-learn


@pytest.fixture(scope="module")
def regressor(tiny_bert):
    return TextRegressor(encoder=str(tiny_bert), adapt="frozen", epochs=20, lr=0.05, valid=0, threads=1)


FORMS = {
    "array": lambda: GOLD, "lists": GOLD.tolist, "frame": lambda: pd.DataFrame(GOLD, columns=NAMES),
    "nullable": lambda: pd.DataFrame(GOLD, columns=NAMES).convert_dtypes(),
    "polars": lambda: pl.DataFrame(GOLD, schema=list(NAMES), orient="row"),
    "lazy": lambda: pl.LazyFrame(GOLD, schema=list(NAMES), orient="row"),
    "arrow": lambda: pa.table({name: GOLD[:, place] for place, name in enumerate(NAMES)}),
}  # fmt: skip


@pytest.mark.parametrize("form", list(FORMS))
def test_estimators_learn_a_matrix_of_numbers(regressor, form):
    y = FORMS[form]()
    answers = regressor.fit(TEXTS, y).predict(TEXTS)
    assert (answers.shape, answers.dtype) == (GOLD.shape, np.float64)
    names = ("0", "1") if form in ("array", "lists") else NAMES
    assert regressor.fitted_.artifact.task.names == names
    if form == "array":
        assert regressor.score(TEXTS, y) == pytest.approx(sk.r2_score(GOLD, answers))
        assert regressor.score(TEXTS, y) > 0.3
    kept = regressor.fitted_.artifact.task.targets([dict(zip(names, row, strict=True)) for row in GOLD.tolist()])
    np.testing.assert_array_equal(kept, GOLD.astype(np.float32))
    assert [scale.high for scale in regressor.fitted_.artifact.task.scales] == GOLD.max(0).tolist()


def test_scikit_learns_own_tools_take_it(regressor):
    assert regressor.__sklearn_tags__().target_tags.multi_output
    frame = pd.DataFrame(GOLD, columns=NAMES)
    assert cross_val_score(regressor, TEXTS, frame, cv=2).shape == (2,)
    search = GridSearchCV(regressor, {"lr": [0.05, 0.001]}, cv=2).fit(TEXTS, GOLD)
    assert search.best_params_ == {"lr": 0.05}


def test_a_saved_estimator_is_scored_by_its_columns(regressor, tmp_path, cli):
    regressor.fit(TEXTS, pd.DataFrame(GOLD, columns=NAMES)).save(tmp_path / "model")
    ran = cli("eval", tmp_path / "model", write_csv(tmp_path / "rows.csv", ROWS), "--json")
    answers = regressor.predict(TEXTS)
    assert json.loads(ran.out)["mae"] == pytest.approx(sk.mean_absolute_error(GOLD, answers), rel=1e-5)


def test_rows_held_out_by_the_user_have_the_same_columns(regressor):
    frame = pd.DataFrame(GOLD, columns=NAMES)
    made = TextRegressor(**(regressor.get_params() | {"valid": (TEXTS[:9], frame[:9])})).fit(TEXTS, frame)
    assert made.fitted_.artifact.run["held_out_rows"] == 9
    other = TextRegressor(**(regressor.get_params() | {"valid": (TEXTS[:9], GOLD[:9, 0])}))
    with pytest.raises(DataError, match="holds one number; expected numbers for urgency, price"):
        other.fit(TEXTS, frame)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.where(GOLD == 30, np.nan, GOLD), "NaN or infinity"),
        (pd.DataFrame(GOLD, columns=NAMES).convert_dtypes().mask(GOLD == 30), r"y\[3\]: holds a missing value"),
        (pd.DataFrame(GOLD, columns=["urgency", "price, net"]), 'the column "price, net"'),
        (np.stack([GOLD, GOLD], axis=2), "dim 3"),
        (np.column_stack([GOLD[:, 0], np.ones(len(GOLD))]), 'target "1" holds only the number 1'),
        (np.full(GOLD.shape, "x"), "could not convert"),
    ],
)
def test_matrices_that_cannot_be_learnt_are_refused(regressor, y, message):
    with pytest.raises(ValueError, match=message):
        TextRegressor(**regressor.get_params()).fit(TEXTS, y)


def test_several_names_for_one_number_are_refused(tmp_path):
    with pytest.raises(UsageError, match="each column once"):
        berthead.fit(ROWS, task="regress", label="price,price")
    with pytest.raises(DataError, match='no column "prize"'):
        berthead.fit(ROWS, task="regress", label="urgency,prize")
