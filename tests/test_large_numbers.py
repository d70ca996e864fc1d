"""Numbers that float32 does not tell apart, such as seconds since 1970, are learnt as well as small ones."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import BAD, GOOD, toy_rows, write_csv
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

import berthead
from berthead.errors import ModelError
from berthead.function.precision_report import PrecisionReport
from berthead.tasks import Regress

SHIFT = 1_700_000_000.0
ROWS = [
    {"text": row["text"], "label": (60.0 if row["label"] == "positive" else 0.0) + number / 4}
    for number, row in enumerate(toy_rows())
]
TEXTS = [row["text"] for row in ROWS]


def shifted(shift: float) -> list[dict]:
    return [row | {"label": row["label"] + shift} for row in ROWS]


@pytest.fixture(scope="module")
def fits(tiny_bert, tmp_path_factory):
    """The same rows as minutes, and as minutes behind a large number."""
    place = tmp_path_factory.mktemp("numbers")

    def fitted(name: str, shift: float, **options):
        defaults = {"encoder": str(tiny_bert), "epochs": 6, "batch": 8, "lr": 3e-3, "threads": 1, "valid": 0.25}
        berthead.fit(shifted(shift), out=place / name, task="regress", quiet=True, **(defaults | options))
        return berthead.load(place / name)

    return {
        "near": fitted("near", 0.0), "far": fitted("far", SHIFT), "other": fitted("other", SHIFT, lr=1e-3),
        "split": fitted("split", SHIFT, seed=1), "place": place,
    }  # fmt: skip


def answers(model, texts=TEXTS) -> np.ndarray:
    return np.array([one.answer for one in model.predict(texts)])


def test_large_numbers_are_learnt_as_well_as_small_ones(fits):
    near, far = fits["near"], fits["far"]
    np.testing.assert_allclose(answers(far) - SHIFT, answers(near), atol=1e-3)
    assert len(set(answers(far))) == len(set(answers(near))) > 20
    for name, value in near.artifact.run["metrics"].items():
        assert far.artifact.run["metrics"][name] == pytest.approx(value, abs=1e-4)
    for name, value in near.artifact.run["baselines"].items():
        assert far.artifact.run["baselines"][name] == pytest.approx(value, abs=1e-4)
    gates = [PrecisionReport.from_json(one.artifact.run["gate"]).verdicts["int8"] for one in (near, far)]
    assert gates[0].agreement == gates[1].agreement
    assert gates[0].largest_drift == pytest.approx(gates[1].largest_drift, abs=1e-3)


def test_scores_are_those_of_scikit_learn(fits):
    far, gold = fits["far"], [row["label"] for row in shifted(SHIFT)]
    scores = far.evaluate(shifted(SHIFT))
    assert scores["mae"] == pytest.approx(mean_absolute_error(gold, answers(far)), rel=1e-6)
    assert scores["rmse"] == pytest.approx(root_mean_squared_error(gold, answers(far)), rel=1e-6)
    minutes = np.array(gold) - SHIFT
    assert scores["pearson"] == pytest.approx(np.corrcoef(minutes, answers(far) - SHIFT)[0, 1], abs=1e-6)


@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet", "xlsx"])
def test_output_files_hold_all_digits(fits, tmp_path, end):
    write_csv(tmp_path / "in.csv", [{"text": text} for text in TEXTS])
    fits["far"].predict_file(tmp_path / "in.csv", tmp_path / f"out.{end}", quiet=True)
    readers = {"csv": pd.read_csv, "parquet": pd.read_parquet, "xlsx": pd.read_excel}
    table = (
        pd.read_json(tmp_path / "out.jsonl", lines=True) if end == "jsonl" else readers[end](tmp_path / f"out.{end}")
    )
    assert table["prediction"].tolist() == answers(fits["far"]).tolist()


def test_a_terminal_shows_all_digits(fits, cli):
    ran = cli("predict", fits["place"] / "far", "good cat")
    assert float(ran.out) == pytest.approx(answers(fits["far"], ["good cat"])[0], abs=1e-4)
    assert re.search(r"range +17000000\d\d[.\d]* to 17000000\d\d", cli("info", fits["place"] / "far").out)


def test_every_way_to_apply_it_gives_the_same_numbers(fits, tmp_path):
    far = fits["far"]
    far.export_onnx(tmp_path / "onnx")
    graph = berthead.load(tmp_path / "onnx")
    assert graph.verify() < 1e-4
    assert far.verify() < 1e-4
    np.testing.assert_allclose(answers(graph), answers(far), atol=1e-3)


def test_joined_functions_give_the_same_numbers(tiny_bert):
    options = {
        "encoder": str(tiny_bert),
        "epochs": 1,
        "threads": 1,
        "task": "regress",
        "adapt": "frozen",
        "quiet": True,
    }
    near, far = (berthead.fit(shifted(shift), **options) for shift in (0.0, SHIFT))
    both = berthead.join({"far": far, "near": near}).predict(TEXTS)
    assert [one["far"].answer for one in both] == answers(far).tolist()


def test_logits_are_in_standard_deviations_and_the_folder_says_so(fits):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = fits["place"] / "far"
    record = json.loads((folder / "berthead.json").read_text())
    scale = record["task"]["standardised"]
    assert f"{scale['mean']!r} + {scale['deviation']!r} times the logit" in record["transformers"]["note"]
    if record["transformers"]["class"].endswith("ForSequenceClassification"):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        logits = model(**AutoTokenizer.from_pretrained(folder)(["good cat"], return_tensors="pt")).logits
        wanted = scale["mean"] + scale["deviation"] * float(logits)
        assert answers(fits["far"], ["good cat"])[0] == pytest.approx(wanted, abs=1e-3)


def test_soups_need_one_unit_and_comparisons_tell_near_numbers_apart(fits):
    far, other = fits["far"], fits["other"]
    made = berthead.soup([far, other], uniform=True)
    assert made.artifact.task.scales[0].standardised
    assert np.ptp(answers(made)) > 1
    found = berthead.compare(far, other, shifted(SHIFT))
    assert found.agreement < 0.5
    with pytest.raises(ModelError, match="differ in the task's standardised"):
        berthead.soup([far, fits["split"]], uniform=True)


def test_estimators_learn_them_too(tiny_bert):
    texts, targets = GOOD + BAD, np.array([60.0] * len(GOOD) + [0.0] * len(BAD))
    regressor = berthead.TextRegressor(encoder=str(tiny_bert), adapt="frozen", epochs=30, lr=0.05, valid=0, threads=1)
    near = regressor.fit(texts, targets).predict(texts)
    far = regressor.fit(texts, targets + SHIFT).predict(texts)
    np.testing.assert_allclose(far - SHIFT, near, atol=1e-3)


@pytest.mark.parametrize("targets", [[0.0, 60.0], [1990.0, 2024.0], [1e6, 1.1e6], [-1e-6, 1e-6]])
def test_numbers_that_float32_holds_keep_their_unit(targets):
    task = Regress.from_targets(targets, "a.csv")
    assert not task.scales[0].standardised
    assert set(task.to_json()) == {"labels", "activation", "mean", "deviation", "low", "high"}


@pytest.mark.parametrize("targets", [[1.7e9, 1.7e9 + 60], [1e300, -1e300], [1e-300, 3e-300], [1e16, 1e16 + 2]])
def test_other_numbers_are_standardised_and_come_back(targets):
    task = Regress.from_targets(targets, "a.csv")
    assert task.scales[0].standardised
    assert Regress.from_json(json.loads(json.dumps(task.to_json()))) == task
    logits = task.targets(targets)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(
        [one.answer for one in task.decode(logits)], targets, rtol=1e-15 if targets[0] > 1e9 else 1e-6
    )
    assert task.evaluate(logits, task.targets(targets))["mae"] <= 1e-7 * task.scales[0].deviation
