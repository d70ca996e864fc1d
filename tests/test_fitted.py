"""One Fitted for every kind of folder: what it is loaded from, what it is asked, and what it answers to each input."""

from __future__ import annotations

import csv
import inspect
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import polars as pl
import pytest
from conftest import ROOT, shell_env, toy_rows, unsealed, write_csv, write_jsonl
from toy_tasks import choose_rows, fit_task, span_rows, tag_rows

import berthead
from berthead.errors import DataError, ModelError, UsageError
from berthead.function.record import KINDS, kind_of
from berthead.options import JOB_OPTIONS, LOAD_OPTIONS, ROW_OPTIONS, PredictOptions
from berthead.predict.inputs import example_of

OLD = ROOT / "tests" / "data" / "model-v1"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_bert) -> dict[str, Path]:
    """A folder of every kind. Do not change them: copy them."""
    place = tmp_path_factory.mktemp("kinds")
    options = {"encoder": str(tiny_bert), "epochs": 1, "valid": 0, "threads": 1, "quiet": True}
    berthead.fit(toy_rows(1), adapt="frozen", out=place / "model", **options)
    berthead.fit(toy_rows(1), adapt="lora:2", out=place / "adapter", **options)
    berthead.load(place / "model").export_onnx(place / "onnx")
    berthead.join([place / "model", place / "adapter"], place / "joined")
    return {name: place / name for name in ("model", "adapter", "onnx", "joined")} | {
        "part": place / "joined" / "model"
    }


def record_of(folder: Path) -> dict:
    return json.loads((folder / "berthead.json").read_text(encoding="utf-8"))


def write_record(folder: Path, record: dict) -> None:
    (folder / "berthead.json").write_text(json.dumps(unsealed(record)), encoding="utf-8")


# --- kinds ---


def test_a_folder_says_its_kind_and_each_is_loaded_as_one_class(folders):
    assert {name: record_of(folder)["kind"] for name, folder in folders.items()} == {kind: kind for kind in KINDS}
    loaded = {name: berthead.load(folder) for name, folder in folders.items()}
    assert {type(one) for one in loaded.values()} == {berthead.Fitted}
    # A part and its encoder are a whole function in memory.
    assert {name: one.kind for name, one in loaded.items()} == {kind: kind for kind in KINDS} | {"part": "model"}
    for name, one in loaded.items():
        answer = one.predict("good cat")
        assert (answer["model"] if name == "joined" else answer).answer in ("positive", "negative")


@pytest.mark.parametrize("kind", KINDS)
def test_folders_from_before_kinds_load_as_they_are(folders, kind, tmp_path):
    copy = Path(shutil.copytree(folders["joined"] if kind == "part" else folders[kind], tmp_path / "all"))
    for path in copy.rglob("berthead.json"):
        record = record_of(path.parent)
        del record["kind"]
        write_record(path.parent, record)
    copy = copy / "model" if kind == "part" else copy
    assert kind_of(record_of(copy), "here") == kind
    old, new = berthead.load(copy), berthead.load(folders[kind])
    assert old.kind == new.kind
    assert old.predict(["good cat", "bad dog"]) == new.predict(["good cat", "bad dog"])


def test_the_oldest_format_loads():
    answers = json.loads((ROOT / "tests" / "data" / "model-v1-answers.json").read_text(encoding="utf-8"))
    model = berthead.load(OLD)
    assert "kind" not in record_of(OLD)
    assert (model.kind, model.info()["kind"], bool(answers)) == ("model", "model", True)
    assert model.verify() < 1e-4


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("tree", r'its kind is "tree"; expected one of model, adapter, part, onnx, joined\. Install a newer berthead'),
        (7, "its kind is 7; expected one of"),
        ("onnx", 'its kind is "onnx", but it holds the keys of "model"; expected one of the two'),
        ("joined", 'its kind is "joined", but it holds the keys of "model"'),
    ],
)
def test_a_kind_that_is_not_known_or_not_true_is_refused(folders, tmp_path, kind, said):
    copy = Path(shutil.copytree(folders["model"], tmp_path / "copy"))
    write_record(copy, record_of(copy) | {"kind": kind})
    with pytest.raises(ModelError, match=said):
        berthead.load(copy)


@pytest.mark.parametrize("kind", KINDS)
def test_each_record_is_read_once(folders, kind, monkeypatch):
    read, real = [], Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *args, **more: read.append(path) or real(path, *args, **more))
    berthead.load(folders[kind])
    records = [path for path in read if path.name == "berthead.json"]
    within = [folders["joined"] / name for name in ("model", "adapter")] if kind == "joined" else []
    assert sorted(path.parent for path in records) == sorted([folders[kind], *within])


LOADED = """
import json, sys
import berthead
berthead.load(sys.argv[1]).predict("good cat")
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("berthead.")}
print(json.dumps(sorted(rooms | ({"torch", "pyarrow"} & set(sys.modules)))))
"""


@pytest.mark.parametrize("kind", ["model", "onnx", "joined"])
def test_loading_imports_nothing_that_fits_and_torch_only_for_its_folders(folders, kind):
    ran = subprocess.run(
        [sys.executable, "-c", LOADED, str(folders[kind])], capture_output=True, text=True, check=True, env=shell_env()
    )
    imported = set(json.loads(ran.stdout))
    assert not {"train", "verbs", "jobs", "cli", "estimators", "export"} & imported
    assert ("torch" in imported, {"kernels"} <= imported) == ((False, False) if kind == "onnx" else (True, True))
    assert kind != "onnx" or "pyarrow" not in imported


# --- what some functions cannot do ---


VERBS = {
    "theta": lambda model: model.theta,
    "omega": lambda model: model.omega,
    "parameters": lambda model: model.artifact,
    "with_parameters": lambda model: model.with_parameters(),
    "merge": lambda model: model.merged(),
    "export": lambda model: model.export_hf("never"),
}


@pytest.mark.parametrize("verb", [*VERBS, "save"])
def test_an_exported_function_says_that_it_has_no_parameters(folders, tmp_path, verb):
    model = berthead.load(folders["onnx"])
    said = rf"^{verb}: the model is an exported function; expected a model folder .* Use the one that was exported"
    with pytest.raises(UsageError, match=said):
        VERBS.get(verb, lambda model: model.save(tmp_path / "never"))(model)


@pytest.mark.parametrize("verb", [*VERBS, "labels", "evaluate", "predict_proba", "applier"])
def test_joined_functions_say_that_one_is_to_be_named(folders, verb):
    model = berthead.load(folders["joined"])
    ask = VERBS | {
        "labels": lambda model: model.labels,
        "evaluate": lambda model: model.evaluate(toy_rows(1)),
        "predict_proba": lambda model: model.predict_proba(["good"]),
        "applier": lambda model: model.applier,
    }
    with pytest.raises(
        UsageError, match=rf'^{verb}: the model holds 2 functions, model, adapter; .*Name one: \["model"'
    ):
        ask[verb](model)
    assert ask["labels"](model["model"]) == ["negative", "positive"]


def test_one_function_is_named_by_nothing(folders):
    model = berthead.load(folders["model"])
    assert (list(model), len(model), model[""]) == ([""], 1, model)
    with pytest.raises(UsageError, match="shared_layers: the model is one function; expected joined functions"):
        print(model.shared_layers)


def test_joined_functions_are_sent_to_another_process_as_one(folders):
    joined = berthead.load(folders["joined"])
    wanted = joined.predict(["good cat", "bad dog"])
    assert pickle.loads(pickle.dumps(joined)).predict(["good cat", "bad dog"]) == wanted


def test_verbs_refuse_an_exported_function_and_name_a_joined_one(folders, tmp_path):
    with pytest.raises(UsageError, match="exported functions are for predict, eval, verify and info"):
        berthead.compare(folders["onnx"], folders["model"], toy_rows(1))
    with pytest.raises(UsageError, match="expected one function"):
        berthead.bench(folders["joined"])
    with pytest.raises(UsageError, match="the model is an exported function"):
        berthead.join([folders["onnx"], folders["model"]], tmp_path / "never")
    assert not (tmp_path / "never").exists()


# --- inputs ---


def cased(rows: list[dict]) -> list[dict]:
    """The toy rows under names that only this model knows."""
    return [{"body": row["text"], "other": row["pair"]} for row in rows]


@pytest.fixture(scope="module")
def asked(tiny_bert) -> dict[str, tuple[berthead.Fitted, list[dict]]]:
    """A function of every task, fitted on columns of unusual names where rows are plain, and rows to be answered."""
    rows = [{"body": row["text"], "other": row["pair"], **row} for row in toy_rows(2)]
    own = {"text": "body", "epochs": 2}
    found = {
        "classify": fit_task(tiny_bert, "classify", rows, label="label", **own),
        "pairs": fit_task(tiny_bert, "classify", rows, label="label", pair="other", **own),
        "multilabel": fit_task(tiny_bert, "multilabel", rows, label="tags", **own),
        "regress": fit_task(tiny_bert, "regress", rows, label="stars", **own),
        "tag": fit_task(tiny_bert, "tag"),
        "joint": fit_task(tiny_bert, "joint"),
        "span": fit_task(tiny_bert, "span"),
        "choose": fit_task(tiny_bert, "choose"),
    }
    plain = [{"body": row["body"], "other": row["other"]} for row in rows[:6]]
    more = {
        "tag": [{"tokens": row["tokens"]} for row in tag_rows(6, seed=9)],
        "span": [{"question": row["question"], "context": row["context"]} for row in span_rows(6, seed=9)],
        "choose": [{"question": row["question"], "choices": row["choices"]} for row in choose_rows(6, seed=9)],
    }
    more["joint"] = more["tag"]
    return {name: (fitted, more.get(name, plain)) for name, fitted in found.items()}


TASKS = ["classify", "pairs", "multilabel", "regress", "tag", "joint", "span", "choose"]
CANONICAL = {"body": "text", "other": "pair", "tokens": "text", "question": "text", "context": "pair"}


def bare(rows: list[dict], task: str) -> list:
    """The same inputs as texts and tuples."""
    if task in ("tag", "joint"):
        return [list(row.values())[0] for row in rows]  # noqa: RUF015
    return [row["body"] if task not in ("pairs", "span", "choose") else tuple(row.values()) for row in rows]


def answers(predictions) -> list:
    return [(one.answer, one.score, one.spans, one.tags, one.error) for one in predictions]


@pytest.mark.parametrize("task", TASKS)
def test_every_way_to_give_an_input_gets_the_same_answer(asked, task):
    fitted, rows = asked[task]
    wanted = answers(fitted.predict(rows))
    assert len(wanted) == len(rows)
    assert {error for *_, error in wanted} == {None}
    assert answers(fitted.predict(pd.DataFrame(rows))) == wanted
    assert answers(fitted.predict(pl.DataFrame(rows))) == wanted
    assert answers(fitted.predict(row for row in rows)) == wanted
    assert answers(fitted.predict([{CANONICAL.get(k, k): v for k, v in row.items()} for row in rows])) == wanted
    if task not in ("tag", "joint"):
        assert answers(fitted.predict(bare(rows, task))) == wanted
    one = fitted.predict(rows[0])
    assert isinstance(one, berthead.Prediction)
    assert one.answer == pytest.approx(fitted.predict(rows[:1])[0].answer)


@pytest.mark.parametrize("task", TASKS)
def test_a_file_gets_the_answers_of_python(asked, task, tmp_path):
    fitted, rows = asked[task]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    summary = fitted.predict_file(source, tmp_path / "out.jsonl")
    assert (summary.rows, summary.failed, summary.errors_file) == (len(rows), 0, None)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    for row, one in zip(written, fitted.predict(pd.DataFrame(rows)), strict=True):
        if task == "regress":
            assert row["prediction"] == pytest.approx(one.answer, rel=1e-6)
        elif task in ("tag", "joint"):
            assert row["predicted_tags"] == one.tags
        else:
            assert row["prediction"] == one.answer
        if one.score is not None:
            assert row["score"] == pytest.approx(one.score, rel=1e-6)


def test_frames_keep_their_order_and_other_columns_are_not_read(asked):
    fitted, rows = asked["pairs"]
    frame = pd.DataFrame([row | {"label": None, 7: "seven"} for row in rows], index=range(100, 100 + len(rows)))
    assert answers(fitted.predict(frame)) == answers(fitted.predict(rows))
    assert answers(fitted.predict(frame[::-1])) == answers(fitted.predict(rows[::-1]))
    assert fitted.predict(frame[:0]) == []
    assert fitted.predict_proba(frame).shape == (len(rows), 2)
    blank = frame.assign(body=[None, *frame["body"][1:]])
    first, *others = fitted.predict(blank)
    assert (first.answer, first.error, first.where) == (None, 'column "body" is blank; expected a text', "row 1")
    assert all(one.error is None for one in others)


def test_choices_in_columns_of_their_own(tiny_bert):
    rows = [{"question": row["question"], "label": row["label"],
             **{f"choice_{n}": row["choices"][n] if n < len(row["choices"]) else "" for n in range(4)}}
            for row in choose_rows(40)]  # fmt: skip
    fitted = fit_task(tiny_bert, "choose", rows, epochs=2)
    asked = [{name: value for name, value in row.items() if name != "label"} for row in rows[:5]]
    wanted = answers(fitted.predict([(row["question"], [v for k, v in row.items() if k != "question" and v])
                                     for row in asked]))  # fmt: skip
    assert answers(fitted.predict(asked)) == wanted
    assert answers(fitted.predict(pd.DataFrame(asked))) == wanted
    with pytest.raises(DataError, match=r'no column of choices.*Give them as a list: "choices"'):
        fitted.predict({"question": "the cat ?"})


@pytest.mark.parametrize("make", [lambda rows: rows, pd.DataFrame, pl.DataFrame])
def test_a_column_that_is_missing_is_named_with_the_nearest(asked, make):
    fitted, _ = asked["pairs"]
    said = r'has no column "other": its columns are "body", "othr"; expected the column '
    said += r"that the model was fitted on\. Did you"
    with pytest.raises(DataError, match=said):
        fitted.predict(make([{"body": "good cat", "othr": "the dog"}]))
    with pytest.raises(DataError, match=r'has no column "body".*Call the column "body", or "text"'):
        fitted.predict(make([{"a": "good cat", "other": "the dog"}]))


@pytest.mark.parametrize(
    ("task", "value", "said"),
    [
        ("classify", ("a", "b"), "input: is tuple; expected a text: this model reads single texts. Fit it with --pair"),
        ("pairs", "a", "input: is str; expected a tuple of two: this model reads pairs. Give (text, pair)."),
        ("pairs", ("a", "b", "c"), "input: is tuple of 3; expected a tuple of two: this model reads pairs."),
        ("span", "a", "this model reads a question and its context. Give (question, context)."),
        ("choose", ["a"], "is list of 1; expected a tuple of two: this model reads a question and its choices."),
        ("span", {"question": "a"}, 'input: has no column "context"'),
    ],
)
def test_an_input_of_another_form_is_refused(asked, task, value, said):
    with pytest.raises(DataError) as caught:
        example_of(value, asked[task][0].reader)
    assert said in str(caught.value)


def test_a_cell_that_is_no_text_is_the_error_of_its_example(asked):
    reader = asked["classify"][0].reader
    assert example_of({"body": " "}, reader, "body[0]").error == 'column "body" is blank; expected a text'
    assert example_of(["a"] if False else {"text": ["a"]}, reader).error.startswith('column "text" is ["a"]')
    assert example_of("good", reader, "request 3").where == "request 3"
    assert example_of("", reader).error == 'column "text" is blank; expected a text'


# --- files ---


def test_a_job_in_python_is_that_of_the_command_line(folders, cli, tmp_path):
    rows = [*toy_rows(2), {**toy_rows(1)[0], "text": ""}]
    for name in ("model", "onnx", "joined"):
        source = write_csv(tmp_path / "in.csv", rows)
        ran = cli("predict", folders[name], source, "--out", tmp_path / f"{name}-cli.csv", "--probabilities")
        summary = berthead.load(folders[name]).predict_file(source, tmp_path / f"{name}.csv", probabilities=True)
        assert (ran.code, summary.rows, summary.failed) == (4, len(rows), 1)
        assert (tmp_path / f"{name}.csv").read_bytes() == (tmp_path / f"{name}-cli.csv").read_bytes()
        errors = [Path(f"{tmp_path / name}{tail}.csv.errors.jsonl").read_bytes() for tail in ("", "-cli")]
        assert errors[0] == errors[1]


def test_shards_and_parts_are_options_in_python(folders, tmp_path):
    model = berthead.load(folders["model"])
    source = write_csv(tmp_path / "in.csv", [{"review": row["text"]} for row in toy_rows(1)])
    model.predict_file(source, tmp_path / "whole.csv", text="review", part_rows=4)
    for shard in ("1/2", "2/2"):
        found = model.predict_file(str(source), tmp_path / "out.csv", text="review", part_rows=4, shard=shard)
        assert found.parts == f"{tmp_path / 'out.csv'}.parts"
    from berthead.jobs.gather import gather

    gather(str(tmp_path / "out.csv"), [])
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == [
            one.answer for one in model.predict([row["text"] for row in toy_rows(1)])
        ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"precision": "int8"},
            r"precision: is decided when the model is loaded; expected one of text, .*load\(folder, precision",
        ),
        ({"shards": "1/2"}, 'Did you mean "shard"'),
        ({"shard": "5"}, 'shard: is "5"'),
        ({"text": "review"}, 'has no column "review"'),
    ],
)
def test_options_that_a_job_cannot_have_are_refused(folders, tmp_path, options, said):
    source = write_csv(tmp_path / "in.csv", toy_rows(1))
    with pytest.raises((UsageError, DataError), match=said):
        berthead.load(folders["model"]).predict_file(source, tmp_path / "out.csv", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize(
    ("function", "only"),
    [
        (berthead.load, LOAD_OPTIONS),
        (berthead.Fitted.predict_file, JOB_OPTIONS),
        (berthead.Fitted.evaluate, ROW_OPTIONS),
    ],
    ids=["load", "predict_file", "evaluate"],
)
def test_options_stand_in_signatures_and_docs_and_no_others_are_taken(function, only, folders):
    shown = inspect.signature(function).parameters
    assert all(name in shown and f"    {name}: " in function.__doc__ for name in only)
    assert "{options}" not in function.__doc__
    given = (folders["model"],) if function is berthead.load else (berthead.load(folders["model"]), toy_rows(1))
    more = ("never.csv",) if "out" in shown else ()
    with pytest.raises(UsageError, match="checkpoint_minutes: is not an option; expected one of "):
        function(*given, *more, checkpoint_minutes=1)


def test_a_job_computes_as_the_function_was_loaded(folders):
    loaded = berthead.load(folders["model"], token_budget=77, threads=1).options
    job = loaded.for_job({"part_rows": 5, "shard": None})
    assert (job.token_budget, job.threads, job.part_rows, job.shard) == (77, 1, 5, None)
    known = set(PredictOptions().to_dict())
    assert known - {*LOAD_OPTIONS, *JOB_OPTIONS} == {"label", "intent", "separator", "skip_bad_rows"}
    assert {*LOAD_OPTIONS, *JOB_OPTIONS} <= known
