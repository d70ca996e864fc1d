"""An exported function is applied where there is no torch, and what the docs say to install is what that imports."""

from __future__ import annotations

import json
import re
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from conftest import ROOT, toy_rows, write_jsonl
from exports import BLOCKED, cli_without, without
from packaging.requirements import Requirement
from toy_tasks import choose_rows, fit_task, span_rows, tag_rows

import berthead

PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
ROWS = {"tag": tag_rows, "joint": tag_rows, "span": span_rows, "choose": choose_rows}

PREDICT = """
import json
import berthead
inputs = json.load(open(sys.argv[2], encoding="utf-8"))
model = berthead.load(sys.argv[1])
apart = model.verify()
answers = [one.to_dict() for one in model.predict([one if isinstance(one, str) else tuple(one) for one in inputs])]
print(json.dumps([apart, answers, sorted({"torch", *sys.modules} & set(sys.modules))]))
"""
IMPORTED = """
import importlib, json, runpy
try:
    runpy.run_module("berthead", run_name="__main__")
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names)))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory, toy_model, tiny_bert) -> dict[str, Path]:
    """An exported function of every task."""
    place = tmp_path_factory.mktemp("exports")
    for task in ROWS:
        more = {"head": "crf"} if task == "tag" else {}
        fit_task(tiny_bert, task, epochs=1, **more).export_onnx(place / task)
    for task, label in (("multilabel", "tags"), ("regress", "stars")):
        rows = toy_rows(1)
        options = {"epochs": 1, "valid": 0, "threads": 1, "quiet": True, "encoder": str(tiny_bert)}
        berthead.fit(rows, task=task, label=label, adapt="frozen", **options).export_onnx(place / task)
    berthead.load(toy_model).export_onnx(place / "classify")
    return {path.name: path for path in place.iterdir()}


def inputs_of(task: str) -> list:
    if task == "span":
        return [(row["question"], row["context"] + " red b" * 40) for row in span_rows(3, seed=9)]
    if task == "choose":
        return [(row["question"], row["choices"]) for row in choose_rows(3, seed=9)]
    return ["good great cat", "the bad dog ran " * 30, "Zoë 🙂"]


@pytest.mark.parametrize("task", ["classify", "multilabel", "regress", *ROWS])
def test_every_task_answers_without_torch(made, tmp_path, task):
    inputs = inputs_of(task)
    (tmp_path / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    done = without(PREDICT, made[task], tmp_path / "inputs.json")
    assert done.code == 0, done.err
    apart, answers, imported = json.loads(done.out)
    assert apart < 1e-4
    assert not {*BLOCKED} & {*imported}
    wanted = [one.to_dict() for one in berthead.load(made[task]).predict(inputs)]
    assert answers == json.loads(json.dumps(wanted))


def test_the_command_line_predicts_without_torch(made, tmp_path, toy_csv):
    done = cli_without("predict", made["classify"], "good cat", "--engine", "onnx")
    assert (done.code, done.out.split()[0], done.err) == (0, "positive", "")
    done = cli_without("predict", made["classify"], toy_csv, "--out", tmp_path / "out.csv")
    assert (done.code, "56 rows written" in done.err) == (0, True), done.err
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"tokens": row["tokens"]} for row in tag_rows(5)])
    done = cli_without("predict", made["joint"], rows, "--out", "-", "--quiet")
    assert (done.code, len(done.out.splitlines())) == (0, 5), done.err
    done = cli_without("predict", made["classify"], toy_csv, "--out", tmp_path / "parts.csv", "--part-rows", 5)
    assert (done.code, (tmp_path / "parts.csv").read_bytes()) == (0, (tmp_path / "out.csv").read_bytes())
    assert cli_without("info", made["span"]).out.startswith(str(made["span"]))
    assert "golden examples" in cli_without("verify", made["choose"]).out
    assert "export" in cli_without("--help").out


def test_what_is_missing_is_named(made, toy_model, toy_csv, tmp_path):
    done = cli_without("predict", toy_model, "good cat")
    assert (done.code, done.out) == (2, "")
    assert "is not an exported function, and torch is not installed" in done.err
    done = cli_without("eval", made["classify"], toy_csv)
    assert (done.code, done.out) == (2, "")
    assert (
        done.err == "berthead: scikit-learn is not installed, and this needs it. Install it: pip install scikit-learn\n"
    )
    done = cli_without("predict", made["classify"], toy_csv, "--out", tmp_path / "out.parquet")
    assert (done.code, "pip install pyarrow" in done.err, list(tmp_path.iterdir())) == (2, True, [])
    done = cli_without("predict", made["classify"], "good", blocked=("onnxruntime",))
    assert (done.code, "pip install 'berthead[runtime]'" in done.err) == (2, True), done.err
    done = cli_without("export", toy_model, "--onnx", tmp_path / "onnx", blocked=("onnx",))
    assert (done.code, "pip install 'berthead[onnx]'" in done.err) == (2, True), done.err
    assert list(tmp_path.iterdir()) == []


def installed_by_the_page() -> tuple[set[str], set[str]]:
    """What docs/export.md installs as it is, and what with everything that it requires."""
    lines = re.findall(r"^pip install --no-compile (--no-deps )?(.+)$", PAGE, re.MULTILINE)
    alone, whole = ({Requirement(word.strip("'")).name for word in words.split()} for _, words in lines)
    return alone, whole


def required(name: str) -> set[str]:
    """A distribution and all that it requires, by their names."""
    found, waiting = set(), [name]
    while waiting:
        one = waiting.pop().lower().replace("_", "-")
        if one not in found:
            found.add(one)
            lines = [Requirement(line) for line in requires(one) or ()]
            waiting += [line.name for line in lines if not line.marker or line.marker.evaluate({"extra": ""})]
    return found


def test_the_page_installs_what_is_imported_and_no_more(made, toy_csv, tmp_path):
    alone, whole = installed_by_the_page()
    assert whole == {"numpy", "typer"}
    done = without(IMPORTED, "predict", made["tag"], "good great cat", blocked=())
    assert done.code == 0, done.err
    imported = {
        name.lower().replace("_", "-")
        for module in json.loads(done.out.splitlines()[-1])
        for name in packages_distributions().get(module, ())
    } - {"setuptools"}  # whose start-up file imports it everywhere
    there = {name.lower() for name in alone}.union(*map(required, whole))
    assert imported <= there
    assert {*alone, *whole} <= imported
