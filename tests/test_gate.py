"""The gate: what it measures, what it lets through, what `auto` takes and says, and where measurements are kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SAMPLE, toy_rows, unsealed, write_csv
from toy_tasks import fit_task

import berthead
from berthead.engine import machine
from berthead.engine.cpu import use_threads
from berthead.errors import UsageError
from berthead.function.precision_report import PrecisionReport, Verdict
from berthead.kernels import library
from berthead.predict import precision as gate
from berthead.predict.predictor import Predictor
from berthead.records import Example
from berthead.tasks import Batch

needs_int8 = pytest.mark.skipif(not library.kernels(), reason="no kernels that compute int8")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """What is measured is kept there, and one thread computes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("BERTHEAD_HOME", raising=False)
    monkeypatch.delenv(library.SWITCH, raising=False)
    use_threads(1)
    return tmp_path / "cache" / "berthead" / "measured"


def batch_of(artifact, texts) -> Batch:
    examples = [Example(*(text if isinstance(text, tuple) else (text,))) for text in texts]
    return Batch(examples, artifact.task.encode(artifact.tokenizer, examples, artifact.policy))


def with_outliers(fitted, size: float = 1e4, pairs: int = 6):
    """The function with channels of each inner layer that are large for every token, in pairs that cancel each other.

    In float32 they change nothing but their own absence; bytes hold nothing else, and there are more of them than stay
    float32.
    """
    theta = {name: tensor.clone() for name, tensor in fitted.theta.items()}
    for name, tensor in theta.items():
        if name.endswith("intermediate.dense.weight"):
            tensor[: 2 * pairs] = 0
        if name.endswith("intermediate.dense.bias"):
            tensor[: 2 * pairs] = size
        if name.endswith("output.dense.weight") and "attention" not in name:
            tensor[:, 1 : 2 * pairs : 2] = -tensor[:, 0 : 2 * pairs : 2]
    return fitted.with_parameters(theta=theta)


def edit(folder: Path, change) -> None:
    path = folder / "berthead.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record["run"])
    path.write_text(json.dumps(unsealed(record)), encoding="utf-8")


def copied(folder: Path, tmp_path: Path, change=None) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    if change:
        edit(tmp_path / "copy", change)
    return tmp_path / "copy"


def fast(*precisions):
    """Speeds as if they had been measured: these precisions are twice as fast as float32."""
    return lambda engines, one: {name: 2.0 + name.startswith("int8") if name in precisions else 1.0 for name in engines}


# What is measured


def test_agreement_drift_and_metric_are_what_they_say(toy_model):
    artifact = berthead.load(toy_model).artifact
    batch = batch_of(artifact, ["good cat", "bad dog", "great mat", "awful mat"])
    exact = np.array([[3, 0], [0, 3], [0.1, 0], [2, 0]], dtype=np.float32)
    low = np.array([[3, 0], [0, 3], [-0.1, 0], [2, 0]], dtype=np.float32)
    artifact = replace(artifact, task=replace(artifact.task, temperature=1.0))
    points = gate._points(1, 0.75, 0.5)
    verdict = gate._verdict(artifact.task, batch, exact, low, points)
    share = 1 / (1 + np.exp(-0.1))
    drifts = [pytest.approx(one * (2 * share - 1), abs=1e-5) for one in (1, 0.25)]
    assert verdict == Verdict(0.75, *drifts, -25)
    assert not verdict.passed
    assert gate._points(-1, 0.5, 0.505) == pytest.approx(-1)  # a loss that rises by a hundredth of itself


@pytest.mark.parametrize(
    ("agreement", "points", "passed"),
    [(1, 0, True), (0.995, -0.3, True), (0.9949, 0, False), (1, -0.31, False), (0.995, None, True), (0.9, 5, False)],
)
def test_the_bounds_of_the_gate(agreement, points, passed):
    assert Verdict(agreement, 0.0, 0.0, points).passed is passed


def test_a_precision_report_is_written_and_read(toy_model):
    written = berthead.load(toy_model).info()["run"]["gate"]
    assert PrecisionReport.from_json(written).to_json() == written
    assert (written["of"], written["metric"], written["rows"]) == ("held-out", "accuracy", 14)
    assert list(written["precisions"]) == gate.candidates(berthead.load(toy_model).artifact.model)


OPTIONS = {
    "regress": {"label": "stars"}, "multilabel": {"label": "tags"}, "pairs": {"pair": "pair"},
}  # fmt: skip


@needs_int8
@pytest.mark.parametrize("kind", OPTIONS)
def test_every_kind_of_answer_is_compared(fit_toy, kind):
    task = {"pairs": "classify"}.get(kind, kind)
    artifact = berthead.load(fit_toy(task=task, precision="fp32", **OPTIONS[kind])).artifact
    report = PrecisionReport.from_json(artifact.run["gate"])
    assert report.metric == next(iter(artifact.task.metrics))
    assert report.exact == pytest.approx(artifact.run["metrics"][report.metric], abs=1e-6)
    for one in report.verdicts.values():
        assert 0 <= one.mean_drift <= one.largest_drift
        assert 0 < one.largest_drift < 0.2  # another arithmetic, and near


@needs_int8
@pytest.mark.parametrize("task", ["tag", "span", "choose", "joint"])
def test_answers_with_several_units_are_compared(task, tiny_bert):
    fitted = fit_task(tiny_bert, task, valid=0.25)
    report = PrecisionReport.from_json(fitted.info()["run"]["gate"])
    assert report.of == "held-out"
    assert report.rows == fitted.info()["run"]["held_out_rows"]
    assert report.metric == next(iter(fitted.artifact.task.metrics))
    # A choice between good and bad can be so sure that its probability does not move.
    assert all(one.largest_drift > 0 for one in report.verdicts.values()) or task == "choose"
    assert all(one.agreement > 0.9 for one in report.verdicts.values())


def test_a_fit_measures_at_most_so_many_rows_evenly_spread(tiny_bert, monkeypatch):
    monkeypatch.setattr(gate, "MOST_ROWS", 5)
    options = {"encoder": str(tiny_bert), "adapt": "frozen", "epochs": 1, "threads": 1, "quiet": True}
    fitted = berthead.fit(toy_rows(), valid=0.5, **options)
    assert fitted.info()["run"]["gate"]["rows"] == 5
    assert fitted.info()["run"]["held_out_rows"] == 28
    assert "gate" not in berthead.fit(toy_rows(), valid=0, **options).info()["run"]  # there is nothing to measure on


def test_two_fits_keep_the_same_precision_report(tiny_bert):
    options = {"encoder": str(tiny_bert), "epochs": 2, "threads": 1, "quiet": True, "valid": 0.25}
    one, two = (berthead.fit(toy_rows(), **options).info() for _ in range(2))
    assert one == two
    assert "gate" in one["run"]


def test_a_head_of_another_package_that_reads_no_bfloat16_ends_no_fit(toy_model, monkeypatch):
    artifact = berthead.load(toy_model).artifact
    batch, real = batch_of(artifact, ["good cat"]), Predictor.compute

    def compute(self, inputs):
        if self.engine.precision != "fp32":
            raise RuntimeError("mat1 and mat2 must have the same dtype")
        return real(self, inputs)

    monkeypatch.setattr(Predictor, "compute", compute)
    assert gate.measure(replace(artifact, own_head="theirs"), batch, None, "given").verdicts == {}
    if gate.candidates(artifact.model):
        with pytest.raises(RuntimeError):  # of ours it would be a mistake
            gate.measure(artifact, batch, None, "given")


# Outliers


@needs_int8
def test_outlier_channels_are_refused_and_float32_does_not_feel_them(toy_model, tmp_path):
    fitted = with_outliers(berthead.load(toy_model))
    texts = [row["text"] for row in toy_rows()]
    batch = batch_of(fitted.artifact, texts)
    # Large or not, float32 answers the same.
    np.testing.assert_allclose(fitted.predict_proba(texts), with_outliers(fitted, 0.0).predict_proba(texts), atol=1e-4)
    quiet = gate.measure(with_outliers(fitted, 0.0).artifact, batch, None, "given")
    loud = gate.measure(fitted.artifact, batch, None, "given")
    assert loud.verdicts["int8"].largest_drift > 10 * quiet.verdicts["int8"].largest_drift
    assert "gate" not in fitted.info()["run"]  # of other parameters nothing was measured


@needs_int8
def test_a_few_outlier_channels_do_no_harm(toy_model):
    fitted, texts = berthead.load(toy_model), [row["text"] for row in toy_rows()]
    for size in (30.0, 1e4):
        drifts = [
            gate.measure(one.artifact, batch_of(one.artifact, texts), None, "given").verdicts["int8"].largest_drift
            for one in (with_outliers(fitted, 0.0, pairs=2), with_outliers(fitted, size, pairs=2))
        ]
        assert drifts[1] < 2 * drifts[0]


@needs_int8
def test_minilm_agrees_and_minilm_with_outliers_is_refused(sample_model, tmp_path, cli, own_cache, monkeypatch):
    monkeypatch.setattr("berthead.verbs.bench.MOST_TOKENS", 4096)  # timed, but not judged here
    fitted = berthead.load(sample_model, threads=1)
    fits = PrecisionReport.from_json(fitted.info()["run"]["gate"]).verdicts["int8"]
    assert fits.agreement > 0.99
    assert fits.points is not None
    assert fits.points >= -0.3
    planted = with_outliers(fitted)
    folder = tmp_path / "planted"
    planted.save(folder)
    test = write_csv(tmp_path / "test.csv", pd.read_csv(SAMPLE / "test.csv", dtype=str)[::4].to_dict("records"))
    found = berthead.bench(folder, str(test))
    told = found.gate["precisions"]["int8"]
    assert not told["passed"]
    assert told["agreement"] < 0.99
    assert found.kept
    # What was measured is kept: auto refuses int8, and says so with the figures.
    ran = cli("predict", folder, "where is my parcel", "--precision", "auto")
    assert ran.code == 0
    assert "int8 is refused: " in ran.err
    assert "(expected 99.5 %, -0.3 points)" in ran.err
    assert f"{100 * told['agreement']:.2f} % of" in ran.err


# What auto takes


@needs_int8
def test_auto_takes_the_fastest_that_passes(toy_model, monkeypatch, own_cache):
    monkeypatch.setattr(machine, "speeds", fast("bf16", "int8"))
    fitted = berthead.load(toy_model, precision="auto")
    assert fitted.choice.precision == "int8"
    assert str(fitted.choice).startswith("precision int8: 3.00 x fp32 here; ")
    assert "of 14 held-out rows answered as in fp32, accuracy +0.00 points" in fitted.choice.reason
    assert fitted.predictor.engine.precision == "int8"
    exact = berthead.load(toy_model)
    assert exact.choice is None
    texts = [row["text"] for row in toy_rows(1)]
    assert [one.answer for one in fitted.predict(texts)] == [one.answer for one in exact.predict(texts)]
    assert fitted.verify() < 1e-4  # exact, whatever auto takes
    assert len(list(own_cache.iterdir())) == 1


@needs_int8
def test_what_other_kernels_answered_does_not_count(toy_model, monkeypatch):
    report = PrecisionReport.from_json(berthead.load(toy_model).info()["run"]["gate"])
    assert {
        one.by for name, one in report.verdicts.items() if name == "int8" or library.has_bf16(library.chosen())
    } == {"kernels"}
    monkeypatch.setenv(library.SWITCH, "torch")
    monkeypatch.setattr(gate, "candidates", lambda model, device: ["bf16"])
    monkeypatch.setattr(machine, "speeds", fast("bf16"))
    choice = berthead.load(toy_model, precision="auto").choice
    if library.has_bf16(library.kernels()[-1]):
        assert choice.reason.startswith("bf16 was not measured with what computes it here; ")
    berthead.bench(toy_model, toy_rows())
    assert "not measured" not in berthead.load(toy_model, precision="auto").choice.reason


@needs_int8
def test_auto_says_what_gains_nothing(toy_model, monkeypatch):
    monkeypatch.setattr(machine, "speeds", fast())
    choice = berthead.load(toy_model, precision="auto").choice
    assert choice.precision == "fp32"
    assert "int8 is not faster here: 1.00 x fp32" in choice.reason


@needs_int8
def test_auto_refuses_what_the_fit_refused_without_measuring_anything(toy_model, tmp_path, monkeypatch):
    def change(run):
        for one in run["gate"]["precisions"].values():
            one["agreement"] = 0.9

    monkeypatch.setattr(machine, "speeds", lambda *_: pytest.fail("nothing is left to be timed"))
    choice = berthead.load(copied(toy_model, tmp_path, change), precision="auto").choice
    assert choice.precision == "fp32"
    figures = "90.00 % of 14 held-out rows answered as in fp32, accuracy +0.00 points"
    assert f"int8 is refused: {figures} (expected 99.5 %, -0.3 points)" in choice.reason


@needs_int8
def test_a_metric_that_falls_refuses_one_precision_and_another_is_taken(toy_model, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "speeds", fast("int8", "bf16"))
    folder = copied(toy_model, tmp_path, lambda run: run["gate"]["precisions"]["int8"].update(points=-0.5))
    choice = berthead.load(folder, precision="auto").choice
    assert choice.precision == ("bf16" if "bf16" in gate.candidates(berthead.load(folder).artifact.model) else "fp32")
    assert "int8 is refused: " in choice.reason


@needs_int8
def test_a_precision_that_drifts_on_the_golden_examples_here_is_refused(toy_model, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "speeds", fast("int8"))
    real = Predictor.compute

    def drifting(self, inputs):
        found = real(self, inputs)
        return replace(found, values=-found.values) if self.engine.precision == "int8" else found

    monkeypatch.setattr(Predictor, "compute", drifting)
    choice = berthead.load(toy_model, precision="auto").choice
    assert choice.precision == "fp32"
    assert "int8 is refused: golden examples drift by " in choice.reason


@needs_int8
def test_golden_examples_that_do_not_replay_leave_float32(toy_model, tmp_path):
    def change(record):
        record["golden"][0]["logits"][0] += 1

    folder = tmp_path / "copy"
    shutil.copytree(toy_model, folder)
    record = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))
    change(record)
    (folder / "berthead.json").write_text(json.dumps(unsealed(record)), encoding="utf-8")
    choice = berthead.load(folder, precision="auto").choice
    assert (choice.precision, choice.reason) == (
        "fp32",
        "the golden examples give other logits here; see berthead verify",
    )


@needs_int8
def test_a_folder_without_a_report_takes_float32_and_bench_makes_one(toy_model, toy_csv, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(machine, "speeds", fast("int8"))
    folder = copied(toy_model, tmp_path, lambda run: run.pop("gate"))
    before = cli("predict", folder, "good cat", "--precision", "auto")
    assert before.code == 0
    how_to = "berthead bench MODEL DATA measures them on your rows, and keeps the result for auto"
    assert before.err == f"precision fp32: lower precisions were not measured at the fit; {how_to}\n"
    made = cli("bench", folder, toy_csv, "--quiet")
    assert made.code == 0, made.err
    assert "the result is kept for --precision auto on this machine" in made.out
    after = cli("eval", folder, toy_csv, "--precision", "auto")
    assert "of 56 given rows answered as in fp32" in after.err or "is not faster here" in after.err


def test_on_a_machine_with_float32_alone_auto_says_so(toy_model, monkeypatch):
    monkeypatch.setattr(gate, "candidates", lambda model, device: [])
    choice = berthead.load(toy_model, precision="auto").choice
    assert choice.precision == "fp32"
    assert choice.reason.startswith("no lower precision is supported here: ")


def test_int8_where_it_cannot_be_computed_is_refused(toy_model, monkeypatch, cli):
    monkeypatch.setenv(library.SWITCH, "torch")
    with pytest.raises(UsageError, match=r"--precision int8: .*torch does not support int8; expected fp32 or bf16"):
        berthead.load(toy_model, precision="int8").predict("good cat")
    assert cli("predict", toy_model, "good cat", "--precision", "int8").code == 2
    assert "int8" not in gate.candidates(berthead.load(toy_model).artifact.model)


@needs_int8
def test_int8_is_computed_where_it_is_asked_for(toy_model, cli):
    ran = cli("predict", toy_model, "good cat", "--precision", "int8")
    assert (ran.code, ran.out.split()[0], ran.err) == (0, "positive", "")


# Joined functions


@needs_int8
def test_joined_functions_take_what_passes_for_all(fit_toy, tmp_path, monkeypatch, cli):
    monkeypatch.setattr(machine, "speeds", fast("int8", "bf16"))
    options = {"precision": "fp32", "adapt": "frozen", "lr": 0.05, "epochs": 20}
    members = {"mood": fit_toy(**options), "stars": fit_toy(task="regress", label="stars", **options)}
    folder = tmp_path / "joined"
    berthead.join({name: str(one) for name, one in members.items()}, folder)

    def pass_all(run):
        for one in run["gate"]["precisions"].values():
            one.update(agreement=1.0, points=0.0, largest_drift=1.0)

    for name in members:
        edit(folder / name, pass_all)
    assert berthead.load(folder, precision="auto").choice.precision == "int8"
    edit(folder / "stars", lambda run: run["gate"]["precisions"]["int8"].update(agreement=0.5))
    joined = berthead.load(folder, precision="auto")
    assert joined.choice.precision != "int8"
    assert joined.predictor.engine.precision == joined.choice.precision
    assert "stars: int8 is refused: 50.00 % of" in joined.choice.reason
    assert "stars: int8 is refused" in cli("predict", folder, "good cat", "--precision", "auto").err


# What is kept


@needs_int8
def test_measurements_are_made_once(toy_model, monkeypatch, own_cache):
    monkeypatch.setattr(machine, "speeds", fast("int8"))
    first = berthead.load(toy_model, precision="auto").choice
    monkeypatch.setattr(machine, "speeds", lambda *_: pytest.fail("it was measured before"))
    monkeypatch.setattr(gate, "replay", lambda *_: pytest.fail("it was replayed before"))
    assert berthead.load(toy_model, precision="auto").choice == first
    (kept,) = own_cache.iterdir()
    said = json.loads(kept.read_text(encoding="utf-8"))
    assert said["of"]["cpu"] == machine.cpu_model()
    assert said["of"]["kernels"]["int8"] == library.chosen()
    assert said["of"]["theta_sha256"] == berthead.load(toy_model).theta.sha256
    assert said["tokens a second, 1 threads"]["int8"] == 3


@needs_int8
def test_other_numbers_of_threads_are_timed_for_themselves(toy_model, monkeypatch, own_cache):
    monkeypatch.setattr(machine, "speeds", fast("int8"))
    berthead.load(toy_model, precision="auto", threads=1).choice  # noqa: B018
    monkeypatch.setattr(machine, "speeds", fast())
    assert berthead.load(toy_model, precision="auto", threads=2).choice.precision == "fp32"
    assert berthead.load(toy_model, precision="auto", threads=1).choice.precision == "int8"
    assert len(list(own_cache.iterdir())) == 1


@needs_int8
def test_what_was_measured_on_most_rows_counts(toy_model, toy_csv, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "speeds", fast("int8", "bf16"))
    folder = copied(toy_model, tmp_path, lambda run: run["gate"]["precisions"]["int8"].update(agreement=0.5))
    few = toy_rows()[:6]
    berthead.bench(folder, few)
    assert "int8 is refused: 50.00 % of 14 held-out rows" in berthead.load(folder, precision="auto").choice.reason
    berthead.bench(folder, toy_csv)
    assert "refused" not in berthead.load(folder, precision="auto").choice.reason


@needs_int8
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"speed": 3}', "null"])
def test_a_cache_that_something_else_wrote_is_measured_again(toy_model, monkeypatch, own_cache, content):
    monkeypatch.setattr(machine, "speeds", fast("int8"))
    first = berthead.load(toy_model, precision="auto").choice
    (kept,) = own_cache.iterdir()
    said = json.loads(kept.read_text(encoding="utf-8"))
    for broken in (content, json.dumps({"of": said["of"], machine.speed_name(): "x", "golden": [], "receipt": 3})):
        kept.write_text(broken, encoding="utf-8")
        assert berthead.load(toy_model, precision="auto").choice == first
        assert json.loads(kept.read_text(encoding="utf-8"))[machine.speed_name()] == said[machine.speed_name()]


@needs_int8
def test_a_cache_that_cannot_be_written_is_no_error(toy_model, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(machine, "speeds", fast("int8"))
    assert berthead.load(toy_model, precision="auto").choice.precision == "int8"


@needs_int8
def test_other_kernels_are_measured_for_themselves(toy_model, monkeypatch, own_cache):
    monkeypatch.setattr(machine, "speeds", fast("int8", "bf16"))
    berthead.load(toy_model, precision="auto").choice  # noqa: B018
    monkeypatch.setenv(library.SWITCH, library.kernels()[0])
    berthead.load(toy_model, precision="auto").choice  # noqa: B018
    assert len(list(own_cache.iterdir())) == len({library.kernels()[0], library.kernels()[-1]})


def test_the_cache_lies_where_the_user_wants_it(toy_model, monkeypatch, tmp_path):
    monkeypatch.setenv("BERTHEAD_HOME", str(tmp_path / "home"))
    assert machine.keep({"a": 1}, {"speed": {"fp32": 1.0}})
    assert machine.measured({"a": 1})["speed"] == {"fp32": 1.0}
    assert machine.measured({"a": 2}) == {}
    assert [path.parent for path in (tmp_path / "home").rglob("*.json")] == [tmp_path / "home" / "measured"]


def test_speeds_are_measured_in_all_precisions(toy_model):
    artifact = berthead.load(toy_model).artifact
    rows = [row for one in gate.golden_batch(artifact).inputs for row in one.rows]
    one = machine.typical_pack(rows, 100)
    assert 100 - max(len(row.ids) for row in rows) < len(one.ids) <= 100
    assert len(machine.typical_pack(rows, 1).row) == 1
    names = ["fp32", *gate.candidates(artifact.model)]
    found = machine.speeds({name: Predictor(artifact, name).engine for name in names}, one)
    assert list(found) == names
    assert min(found.values()) > 0


def test_the_peak_is_measured_by_what_computes(toy_model, monkeypatch):
    model = berthead.load(toy_model).artifact.model
    for name in ("torch", *library.kernels()):
        monkeypatch.setenv(library.SWITCH, name)
        for precision in ("fp32", *gate.candidates(model)):
            assert machine.peak(model, precision, 0.01) > 1e8
    if library.kernels():
        assert library.peak("fp32", 2, 0.01) > 1e8


# Broken records


BROKEN = [
    None, 3, "gate", [], {}, {"rows": 3},
    {"rows": "3", "of": "given", "metric": None, "fp32": None, "precisions": {}},
    {"rows": 3, "of": "given", "metric": None, "fp32": True, "precisions": {}},
    {"rows": 3, "of": "given", "metric": None, "fp32": None, "precisions": {"int8": {"agreement": 1}}},
    {"rows": 3, "of": "given", "metric": None, "fp32": None,
     "precisions": {"int8": {"agreement": 1, "largest_drift": 0, "mean_drift": 0, "points": None, "by": "magic"}}},
    {"rows": 3, "of": "given", "metric": None, "fp32": None, "precisions": []},
]  # fmt: skip


@pytest.mark.parametrize("value", BROKEN, ids=lambda value: str(value)[:40])
def test_a_gate_that_is_no_gate_is_refused(toy_model, tmp_path, value):
    with pytest.raises(berthead.ModelError, match="is not a whole record"):
        berthead.load(copied(toy_model, tmp_path, lambda run: run.update(gate=value)))


def test_info_shows_the_precision_report(toy_model, cli):
    shown = {line.split()[0]: line for line in cli("info", toy_model).out.splitlines()}
    for name in gate.candidates(berthead.load(toy_model).artifact.model):
        assert "passes: 100.00 % of 14 held-out rows answered as in fp32" in shown[name]


def test_a_function_is_shared_between_threads_while_it_chooses(toy_model, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    fitted = berthead.load(toy_model, precision="auto")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: fitted.predict("good cat").answer, range(8)))
    assert set(answers) == {"positive"}
    assert torch.get_num_threads() == 1
