"""bench: what is measured is whole and adds up; how fast it is, is no test's matter."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import daily, toy_rows, unsealed, write_csv
from toy_tasks import ROWS, fit_task

import berthead
from berthead.errors import DataError, UsageError
from berthead.kernels import library
from berthead.model.config import EncoderConfig
from berthead.model.encoder import Encoder
from berthead.model.tensors import TensorPack
from berthead.predict import precision as gate
from berthead.text.packing import pack
from berthead.text.tokenizer import Encoded
from berthead.verbs import bench as benchmark
from berthead.verbs.bench import STAGES, operations


@pytest.fixture(autouse=True)
def little(monkeypatch, tmp_path):
    """Few tokens are timed, and what is measured is kept nowhere else."""
    monkeypatch.setattr(benchmark, "MOST_TOKENS", 500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("BERTHEAD_HOME", raising=False)
    monkeypatch.setenv("BERTHEAD_THREADS", "1")


def check(found, model) -> None:
    """What holds of every measurement."""
    assert [one.precision for one in found.runs] == ["fp32", *gate.candidates(model)]
    assert found.padding == 0
    assert found.runs[0].gain == 1
    assert found.threads == torch.get_num_threads()
    for one in found.runs:
        assert tuple(one.stages) == STAGES
        assert sum(one.stages.values()) == pytest.approx(1)
        assert all(0 <= share < 1 for share in one.stages.values())
        assert one.tokens_per_second / one.rows_per_second == pytest.approx(found.tokens / found.rows)
        assert one.share_of_peak == pytest.approx(one.operations_per_second / one.peak)
        assert one.gain == pytest.approx(one.rows_per_second / found.runs[0].rows_per_second)
        assert one.kernels in ("torch", "oneDNN", *library.kernels())
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_without_data_the_golden_examples_are_timed(toy_model):
    fitted = berthead.load(toy_model)
    found = berthead.bench(fitted)
    check(found, fitted.artifact.model)
    assert (found.of, found.kept, found.skipped, found.notes) == ("golden", False, 0, [])
    assert found.rows % len(fitted.artifact.golden) == 0
    assert 250 < found.tokens <= 500
    assert found.gate == fitted.info()["run"]["gate"]  # of the fit
    assert all(one.stages["reading"] == 0 for one in found.runs)
    assert found.auto.startswith("precision ")


def test_data_with_targets_is_scored(toy_model, toy_csv):
    fitted = berthead.load(toy_model)
    found = berthead.bench(toy_model, toy_csv)
    check(found, fitted.artifact.model)
    assert (found.of, found.kept, found.skipped) == ("given", True, 0)
    assert found.gate["rows"] == 56
    assert found.gate["fp32"] == pytest.approx(fitted.evaluate(toy_csv)["accuracy"], abs=1e-6)
    assert all(one.stages["reading"] > 0 for one in found.runs)
    for one in found.gate["precisions"].values():
        assert one["points"] is not None
    # What was measured on these rows is what comes next, without rows.
    assert berthead.bench(toy_model).gate == found.gate


def test_data_without_targets_is_compared(toy_model, tmp_path):
    rows = [{"text": row["text"]} for row in toy_rows()]
    found = berthead.bench(toy_model, rows)
    check(found, berthead.load(toy_model).artifact.model)
    assert (found.gate["metric"], found.gate["fp32"]) == (None, None)
    assert found.notes == ["there is no column of targets: answers are compared but not scored"]


def test_many_rows_are_spread_evenly(toy_model, monkeypatch):
    monkeypatch.setattr(benchmark, "MOST_ROWS", 10)
    found = berthead.bench(toy_model, toy_rows())
    assert found.gate["rows"] == 10
    assert found.notes == ["10 of 56 rows, evenly spread, are compared"]


@pytest.mark.parametrize("task", daily(["tag", "span", "choose", "joint"], "choose", "joint"))
def test_every_task_is_measured(task, tiny_bert):
    fitted = fit_task(tiny_bert, task)
    check(berthead.bench(fitted, ROWS[task](12)), fitted.artifact.model)
    check(berthead.bench(fitted), fitted.artifact.model)


def test_long_texts_are_read_in_windows(toy_model):
    rows = [{"text": " ".join(["good cat"] * 80), "label": "positive"}, {"text": "bad", "label": "negative"}]
    found = berthead.bench(toy_model, rows)
    assert found.padding == 0
    assert any("over 64 tokens and" in note and "read in windows" in note for note in found.notes)


def test_by_torch_alone(toy_model, monkeypatch):
    monkeypatch.setenv(library.SWITCH, "torch")
    found = berthead.bench(toy_model)
    check(found, berthead.load(toy_model).artifact.model)
    assert "int8" not in [one.precision for one in found.runs]
    assert {one.kernels for one in found.runs} <= {"torch", "oneDNN"}


def test_on_the_command_line(cli, toy_model, toy_csv, tmp_path):
    ran = cli("bench", toy_model)
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"{toy_model}  ")
    assert "padding 0.0 %" in ran.out
    assert "auto takes precision " in ran.out
    assert ran.err.startswith("timing ")
    names = ["fp32", *gate.candidates(berthead.load(toy_model).artifact.model)]
    firsts = [line.split()[0] for line in ran.out.splitlines() if line]
    assert all(firsts.count(name) >= 2 for name in names)
    told = cli("bench", toy_model, toy_csv, "--json", "--quiet", "--threads", "1")
    assert (told.code, told.err) == (0, "")
    record = json.loads(told.out)
    assert record["model"] == str(toy_model)
    assert record["threads"] == 1
    assert [one["precision"] for one in record["runs"]] == names
    rows = [*toy_rows(1), {"text": "", "label": "positive", "pair": "", "tags": "", "stars": ""}]
    bad = write_csv(tmp_path / "bad.csv", rows)
    assert cli("bench", toy_model, bad, "--quiet").code == 3
    assert cli("bench", toy_model, bad, "--quiet", "--skip-bad-rows").code == 4


def test_what_cannot_be_measured_is_refused(cli, toy_model, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(toy_model, folder)
    record = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))
    (folder / "berthead.json").write_text(json.dumps(unsealed(record) | {"golden": []}), encoding="utf-8")
    with pytest.raises(UsageError, match="bench: the model holds no golden examples; expected rows to measure on"):
        berthead.bench(folder)
    with pytest.raises(DataError):
        berthead.bench(toy_model, [{"words": "good cat"}])
    assert cli("bench", tmp_path / "nothing").code == 2


def test_operations_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    sizes = EncoderConfig(vocabulary=10, width=16, layers=3, heads=2, inner=40, positions=30, segments=2)
    lengths = [9, 9, 9]
    rows = [Encoded(np.ones(n, dtype=np.int64), np.zeros(n, dtype=np.int64), n, False) for n in lengths]
    encoder = Encoder(sizes).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(TensorPack.from_pack(pack(rows, np.arange(3))))
    assert operations(sizes, lengths) == counter.get_total_flops()


def test_local_and_gated_layers_count_for_what_they_compute():
    sizes = {"vocabulary": 10, "width": 8, "layers": 2, "heads": 2, "inner": 16, "positions": 64, "segments": 2}
    plain, gated = (operations(EncoderConfig(**sizes, gated=one), [10]) for one in (False, True))
    assert gated - plain == 2 * 10 * 2 * 8 * 16
    local = operations(EncoderConfig(**sizes, local=(0, 2)), [10])
    assert plain - local == 4 * 8 * 10 * (10 - 5)
