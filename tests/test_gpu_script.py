"""benchmarks/gpu.py without a GPU: its time, its table, and processes that fail or take too long."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu
from gpu_machine import Machine, end, reason
from gpu_table import HEADER, NO_TIME, PEER, Budget, Record, Step, markdown, plan

CELLS = [cell for step in plan() for cell in step.cells()]


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 5.0

    def __call__(self):
        return self.now


def line(work, engine, speed, **more):
    return {"work": work, "engine": engine, "rows_per_second": speed, "tokens_per_second": 10 * speed, **more}


def rows_of(table):
    return [
        dict(zip(HEADER, map(str.strip, one.strip("|").split("|")), strict=True))
        for one in table.splitlines()
        if one.startswith("| ") and not one.startswith(("| work", "| ---"))
    ]


def test_a_step_gets_what_it_wants_beside_what_later_ones_keep():
    clock = Clock()
    budget = Budget(100.0, clock)
    assert (budget.share(0.3), budget.share(0.3, keep=0.9)) == pytest.approx((30, 10))
    clock.now += 80
    assert (budget.spent(), budget.share(0.3), budget.share(0.3, keep=0.1)) == pytest.approx((80, 20, 10))
    clock.now += 40
    assert (budget.share(0.3), budget.share(0.3, keep=0.9)) == (0, 0)


def test_the_table_has_a_row_for_all_that_was_planned(tmp_path):
    record = Record(tmp_path, machine={"gpu": "Some GPU"})
    shown = [tuple(row[name] for name in HEADER[:3]) for row in rows_of(markdown(record))]
    assert sorted(shown) == sorted(CELLS)
    assert len(set(CELLS)) == len(CELLS) == 22
    assert shown[:3] == [("short texts", "minilm", engine) for engine in ("berthead fp32", "berthead bf16", PEER)]
    assert {row["rows/s"] for row in rows_of(markdown(record))} == {f"failed: {NO_TIME}"}
    assert "Tests on the GPU: failed: they were not run." in markdown(record)
    assert record.has_failed()


def test_what_failed_stands_in_its_row_and_the_rest_is_compared(tmp_path):
    record = Record(tmp_path)
    some = [line("short texts", "berthead fp32", 1500.0, same=1.0, how="cuda varlen efficient")]
    record.add(Step("predict", "minilm", "berthead"), some, "RuntimeError: a | in\nthe middle")
    record.add(Step("predict", "minilm", "transformers"), [line("short texts", PEER, 500.0, same=0.99)], "")
    found = {(row["work"], row["engine"]): row for row in rows_of(markdown(record)) if row["encoder"] == "minilm"}
    ours = found["short texts", "berthead fp32"]
    assert list(ours.values())[3:] == ["1,500", "15,000", "3.00", "100.00%", "cuda varlen efficient"]
    assert found["short texts", PEER]["times transformers"] == "1.00"
    assert found["long texts", "berthead fp32"]["rows/s"] == "failed: RuntimeError: a / in the middle"
    assert found["one text", PEER]["rows/s"] == "failed: nothing was printed"
    assert found["fit", PEER]["rows/s"] == f"failed: {NO_TIME}"


def test_a_speed_without_its_peer_is_shown_without_a_ratio(tmp_path):
    record = Record(tmp_path)
    record.add(Step("fit", "base", "berthead"), [line("fit", "berthead bf16", 42.25)], "")
    (row,) = (row for row in rows_of(markdown(record)) if row["rows/s"] == "42.2")
    assert (row["times transformers"], row["same answers"]) == ("", "")


def test_all_is_well_where_all_was_measured_and_every_test_passed(tmp_path):
    record = Record(tmp_path)
    for step in plan():
        record.add(step, [line(work, engine, 9.0) for work, _, engine in step.cells()], "")
    assert record.has_failed()  # no test was run
    record.tests = {"passed": 3, "failed": 0, "skipped": 1, "note": "", "failures": {}}
    assert not record.has_failed()
    for change in ({"failed": 1}, {"passed": 0}, {"note": "it took longer than 9 s"}):
        record.tests |= {"passed": 3, "failed": 0, "note": ""} | change
        assert record.has_failed()


def test_both_files_are_written(tmp_path):
    record = Record(tmp_path, machine={"gpu": "Some GPU"}, notes=["failed: pip install transformers: no index"])
    record.add(Step("fit", "base", "berthead"), [], "out of memory")
    record.tests = {"passed": 3, "failed": 1, "skipped": 0, "note": "", "failures": {"tests/a.py::b[c, d]": "wrong"}}
    record.write()
    assert (tmp_path / "gpu.md").read_text(encoding="utf-8") == markdown(record) + "\n"
    assert "- failed: pip install transformers: no index" in markdown(record)
    assert "- `tests/a.py::b[c, d]`: wrong" in markdown(record)
    read = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert read["cells"] == [{"work": "fit", "encoder": "base", "engine": "berthead bf16", "failed": "out of memory"}]
    assert read["tests"] == record.tests


def test_a_process_that_takes_too_long_is_ended_and_what_it_printed_counts(tmp_path):
    machine = Machine(sys.executable, tmp_path)
    begins_another = "subprocess.Popen(['sleep', '60'])"
    code = f"import subprocess, time; print('{{\"a\": 1}}', flush=True); {begins_another}; time.sleep(60)"
    begun = time.monotonic()
    done = machine.run([sys.executable, "-c", code], 3, "slow")
    assert time.monotonic() - begun < 50
    assert (done.lines(), done.why) == ([{"a": 1}], "it took longer than 3 s")
    assert machine.run([sys.executable, "-c", "pass"], 0.5, "late").why == "no time was left"


def test_a_process_that_fails_says_why(tmp_path):
    machine = Machine(sys.executable, tmp_path)
    done = machine.run([sys.executable, "-c", "print('{}'); raise ValueError('no such GPU')"], 60, "wrong")
    assert (done.lines(), done.why) == ([{}], "ValueError: no such GPU")
    said = "torch.OutOfMemoryError: CUDA out of memory\nsome advice\n"
    assert reason(said) == "torch.OutOfMemoryError: CUDA out of memory"
    assert reason("") == "nothing was printed"
    process = subprocess.Popen([sys.executable, "-c", "pass"], start_new_session=True)
    process.wait()
    end(process)  # one that is over is no error


def test_results_of_tests_are_read_from_what_pytest_prints(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "@pytest.mark.parametrize('name', ['a, b', 'c'])\n"
        "def test_bad(name): assert name == 'c', 'CUDA error'\n"
        "@pytest.mark.skip(reason='no second GPU')\n"
        "def test_two(): pass\n",
        encoding="utf-8",
    )
    machine = Machine(sys.executable, tmp_path)
    results, reasons, note = gpu.pytest(machine, ["--rootdir", str(tmp_path), str(tmp_path / "tests")], 100, "tests")
    named = {name.split("::")[1]: result for name, result in results.items()}
    assert named == {"test_good": "PASSED", "test_bad[a, b]": "FAILED", "test_bad[c]": "PASSED", "test_two": "SKIPPED"}
    assert [said.split("\n")[0] for said in reasons.values()] == ["AssertionError: CUDA error"]
    assert note == ""
    assert gpu.pytest(machine, [str(tmp_path / "nowhere")], 100, "none")[2].startswith("failed: ")
