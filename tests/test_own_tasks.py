"""A task owns what is said of it: nothing else asks for its name, and a task of another package can say all of it."""

from __future__ import annotations

import ast
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, daily, toy_rows, write_csv, write_jsonl
from sklearn.metrics import matthews_corrcoef
from test_plugins import put_package
from toy_tasks import QUICK, ROWS

import berthead
from berthead import plugins
from berthead.cli.reports import compare_text, info_text, score_table
from berthead.data.forms import FORMS
from berthead.jobs.files import predict_file
from berthead.options import PredictOptions
from berthead.predict.columns import added_names
from berthead.tasks import TASKS

SOURCE = ROOT / "src" / "berthead"
CLASSES = {task.__name__ for task in TASKS.values()}
MODULES = {place.partition(":")[0] for place in plugins.BUILT_IN_TASKS.values()}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a module with a task `own` for one test."""

    def put(code: str) -> None:
        monkeypatch.syspath_prepend(put_package(tmp_path / "site", "own_package", code, tasks="own = own_package:Own"))

    yield put
    sys.modules.pop("own_package", None)


# Nothing outside asks


def constants(node: ast.AST) -> set[Any]:
    """The text that an expression is, or the texts that a list of them holds."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return {one.value for one in parts if isinstance(one, ast.Constant) and isinstance(one.value, str)}


def asked(code: str) -> list[str]:
    """Where code asks for a task or for a form by name, or for a task's class."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            about = {one.attr for side in sides for one in ast.walk(side) if isinstance(one, ast.Attribute)}
            about |= {one.id for side in sides for one in ast.walk(side) if isinstance(one, ast.Name)}
            texts = set().union(*map(constants, sides))
            named = texts & set(TASKS) and about & {"name", "task", "_task"}
            if named or (texts & set(FORMS) and about & {"form", "_form"}):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            if len(keys & set(TASKS)) > 1:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
            if ast.unparse(node.func.value).endswith("form"):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("berthead.tasks"):
            if node.module in MODULES or CLASSES & {one.name for one in node.names}:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.MatchValue) and constants(node.value) & set(TASKS):
            found.append(ast.unparse(node))
    return found


def test_no_code_outside_tasks_asks_for_a_task_or_a_form_by_name():
    # plugins.py says which file each task is.
    inside = (SOURCE / "tasks", SOURCE / "plugins.py")
    files = [path for path in SOURCE.rglob("*.py") if path not in inside and path.parent not in inside]
    assert len(files) > 100
    found = {str(path.relative_to(SOURCE)): asked(path.read_text(encoding="utf-8")) for path in files}
    assert {file: lines for file, lines in found.items() if lines} == {}


@pytest.mark.parametrize("code", [
    'task.name == "regress"', 'options.task in ("tag", "joint")', 'function.task.name != "tag"',
    'task.form == "choices"', 'task.form.startswith("words")', 'form not in ("words", "question")',
    '{"regress": float, "multilabel": list}[kind]', "from berthead.tasks import Joint, Task",
    "from berthead.tasks.joint import TagsAndLabel", 'match name:\n    case "tag": pass',
])  # fmt: skip
def test_code_that_asks_is_found(code):
    assert asked(code)


@pytest.mark.parametrize("code", ['level == "token"', 'head["kind"] == "joint"', "from berthead.tasks import Task"])
def test_code_that_does_not_ask_is_not(code):
    assert asked(code) == []


# A task by another name is the same task


def rows_of(task: str) -> tuple[list[dict], dict[str, Any]]:
    """Rows of a task, and the options that name their columns."""
    if task in ROWS:
        return ROWS[task](40), {}
    rows = [row | {"stars": str(1 + number % 5)} for number, row in enumerate(toy_rows(3))]
    return rows, {"label": {"classify": "label", "multilabel": "tags", "regress": "stars"}[task]}


def all_that_is_said(folder: Path, rows: list[dict], columns: dict[str, Any], out: Path) -> dict[str, Any]:
    """Everything that is told of a fitted function, without its task's name."""
    model = berthead.load(folder)
    record = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))
    task = record.pop("task")
    task = {name: value for name, value in task.items() if name not in ("name", "package")}
    record["run"].pop("versions")
    del record["record_sha256"]  # of the names too
    write_jsonl(out / "rows.jsonl", rows)
    predict_file(model.predictor, [str(out / "rows.jsonl")], str(out / "answers.csv"),
                 PredictOptions(probabilities=True, threads=1), quiet=True)  # fmt: skip
    scores = model.evaluate(rows, **columns)
    found = berthead.compare(model, model, rows, **columns).to_dict()
    soup = berthead.soup([folder, folder], rows, **columns).info()["run"]
    soup.pop("versions")
    told = [
        line for line in info_text(model.info(), "model").splitlines() if line.split()[0] not in ("task", "versions")
    ]
    return {
        "record": record, "task": task, "answers": (out / "answers.csv").read_bytes(), "scores": scores,
        "scores in words": score_table(scores), "info in words": told,
        "comparison in words": compare_text(found, ("A", "B"), None), "comparison": found | {"task": ""},
        "soup": soup,
    }  # fmt: skip


@pytest.mark.parametrize("task", daily(TASKS, "regress", "joint", "span"))
def test_a_task_of_another_package_can_say_all_that_a_built_in_one_says(task, install, tiny_bert, tmp_path):
    module, _, name = plugins.BUILT_IN_TASKS[task].partition(":")
    install(f"from {module} import {name}\nclass Own({name}):\n    name = 'own'\n")
    rows, columns = rows_of(task)
    said = []
    for one in (task, "own"):
        out = tmp_path / one
        out.mkdir()
        fitted = berthead.fit(rows, task=one, encoder=str(tiny_bert), out=out / "model", quiet=True,
                              **(QUICK | {"epochs": 1, "valid": 0.25} | columns))  # fmt: skip
        said.append(all_that_is_said(out / "model", rows, columns, out) | {"warnings": fitted.warnings})
    # What a file is called where its rows are named does not count.
    assert said[0] == said[1]


# A metric is one file's change

MATTHEWS = """
from sklearn.metrics import matthews_corrcoef
from berthead.tasks import Classify
class Own(Classify):
    name = "own"
    metrics = {**Classify.metrics, "matthews": 1}
    def evaluate(self, logits, targets, batch=None):
        more = {"matthews": float(matthews_corrcoef(targets, logits.argmax(1)))}
        return super().evaluate(logits, targets, batch) | more
"""


def test_a_new_metric_of_a_task_is_everywhere(install, tiny_bert, tmp_path, cli):
    install(MATTHEWS)
    rows = toy_rows(3)
    data = write_csv(tmp_path / "rows.csv", rows)
    options = QUICK | {"epochs": 2, "valid": 0.25, "task": "own", "encoder": str(tiny_bert), "quiet": True}
    model = berthead.fit(rows, out=tmp_path / "model", metric="matthews", **options)
    run = model.info()["run"]
    assert run["settings"]["metric"] == "matthews"
    assert run["metrics"]["matthews"] == pytest.approx(run["epochs"][run["best_epoch"] - 1]["matthews"])
    assert run["baselines"].keys() == {"majority", "tfidf"}
    assert run["baselines"]["majority"] == 0
    said = [one.answer for one in model.predict([row["text"] for row in rows])]
    wanted = matthews_corrcoef([row["label"] for row in rows], said)
    assert model.evaluate(rows)["matthews"] == pytest.approx(wanted)
    assert f"matthews           {wanted:.4f}" in cli("eval", tmp_path / "model", data).out
    assert f"matthews {run['metrics']['matthews']:.4f}" in cli("info", tmp_path / "model").out
    assert berthead.compare(model, model, rows).metrics["matthews"] == {
        "a": pytest.approx(wanted), "b": pytest.approx(wanted)}  # fmt: skip
    soup = berthead.soup([tmp_path / "model"] * 2, rows, metric="matthews").info()["run"]["soup"]
    assert soup["metric"] == "matthews"
    assert soup["members"][0]["score"] == pytest.approx(wanted)


# A task that says nothing but what it has to

BARE = """
import numpy as np
import torch
from berthead.tasks import Answer, Task
class Own(Task):
    name = "own"
    problem_type = "single_label_classification"
    metrics = {"accuracy": 1, "loss": -1}
    outputs = 2
    label_texts = ["no", "yes"]
    @classmethod
    def read(cls, value):
        return str(value)
    @classmethod
    def from_targets(cls, targets, where):
        return cls()
    @classmethod
    def from_json(cls, state):
        return cls()
    def to_json(self):
        return {"labels": LABELS}
    def check(self, target):
        pass
    def targets(self, values, inputs=()):
        return np.array([value == "positive" for value in values], dtype=np.int64)
    def loss(self, logits, targets, weights, sizes=()):
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    def decode(self, logits, batch=None):
        shares = torch.softmax(torch.tensor(logits), 1).tolist()
        return [ANSWER for row in shares]
    def evaluate(self, logits, targets, batch=None):
        right = float((logits.argmax(1) == targets).mean())
        loss = float(self.loss(torch.tensor(logits), torch.tensor(targets), None).mean())
        return {"accuracy": right, "loss": loss, "warnings": []}
"""
KINDS = {
    "labels": ('["negative", "positive"]',
               'Answer(("negative", "positive")[row[1] > row[0]], max(row), '
               'dict(zip(("negative", "positive"), row)))'),
    "numbers": ("[]", "Answer(row[1])"),
    "anything": ("[]", 'Answer({"sure": row[1] > row[0]})'),
}  # fmt: skip


@pytest.mark.parametrize("kind", daily(KINDS, "anything"))
def test_a_task_that_says_nothing_more_gets_sound_defaults(kind, install, tiny_bert, tmp_path, cli):
    labels, answer = KINDS[kind]
    install(BARE.replace("LABELS", labels).replace("ANSWER", answer))
    rows = toy_rows(3)
    data = write_csv(tmp_path / "rows.csv", rows)
    options = QUICK | {"epochs": 1, "valid": 0.25, "task": "own", "encoder": str(tiny_bert), "quiet": True}
    with pytest.raises(berthead.UsageError, match="task own has no classes"):
        berthead.fit(rows, class_weight="balanced", **options)
    with pytest.raises(berthead.UsageError, match="task own has no sequence of tags"):
        berthead.fit(rows, head="crf", **options)
    places = [tmp_path / name for name in ("one", "two")]
    for place, seed in zip(places, (1, 2), strict=True):
        run = berthead.fit(rows, out=place, adapt="frozen", **(options | {"seed": seed})).info()["run"]
    assert "baselines" not in run
    assert all(one["agreement"] >= 0 for one in run["gate"]["precisions"].values())

    wanted = ["prediction", "score", *(["p(negative)", "p(positive)"] if kind == "labels" else [])]
    for extension in ("csv", "jsonl", "parquet"):
        done = cli("predict", places[0], data, "--out", tmp_path / f"out.{extension}", "--probabilities", "-q")
        assert done.code == 0, done.err
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        assert list(next(csv.DictReader(file))) == [*rows[0], *wanted]
    model = berthead.load(places[0])
    assert list(added_names(model.artifact, [], probabilities=True)) == wanted

    for words in (["eval", places[0], data], ["info", places[0]], ["verify", places[0]]):
        assert cli(*words).code == 0, words
    found = berthead.compare(*places, rows)
    assert found.test is None or found.test.name == "McNemar, exact"
    assert (found.right is not None) == (kind == "labels")
    same = berthead.compare(places[0], places[0], rows)
    assert same.agreement == 1.0
    assert berthead.soup(places, rows).predict(rows[0]["text"]).answer is not None
    done = cli("join", *places, "--out", tmp_path / "joined")
    assert done.code == 0, done.err
    assert cli("info", tmp_path / "joined").code == 0
    assert np.isfinite(model.artifact.task.prior(np.array([0, 1]))).all()
