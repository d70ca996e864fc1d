"""The record's own hash: no label, temperature, tokenizer or size is changed without a word."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, toy_rows, unsealed

import berthead
from berthead.errors import GateError, ModelError


def record_of(folder: Path) -> dict:
    return json.loads((folder / "berthead.json").read_text(encoding="utf-8"))


def edit(folder: Path, change, *, on_purpose: bool = False) -> Path:
    record = record_of(folder)
    change(record)
    record = unsealed(record) if on_purpose else record
    (folder / "berthead.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(toy_model, fit_toy, tmp_path_factory) -> dict[str, Path]:
    """A folder of each kind, on one encoder."""
    home = tmp_path_factory.mktemp("kinds")
    members = {"whole": berthead.load(toy_model), "lora": berthead.load(fit_toy(adapt="lora:4"))}
    berthead.join(members, home / "joined")
    members["whole"].export_onnx(home / "onnx")
    return {"model": toy_model, "adapter": fit_toy(adapt="lora:4"), "onnx": home / "onnx", "joined": home / "joined"}


KINDS = ["model", "adapter", "onnx", "joined"]
CHANGES = {
    "swapped labels": lambda record: record["task"]["labels"].reverse(),
    "another temperature": lambda record: record["task"].update(temperature=record["task"]["temperature"] * 1.01),
    "another column": lambda record: record["columns"].update(text="body"),
    "another score": lambda record: record["run"].update(metrics={"accuracy": 1.0}),
    "another golden answer": lambda record: record["golden"][0]["answer"].update(score=0.5),
    "a golden example less": lambda record: record["golden"].pop(),
    "another key": lambda record: record.update(more=1),
    "windows cut": lambda record: record.update(on_long="truncate"),
}


def own_record(folder: Path, kind: str) -> Path:
    return folder / "whole" if kind == "joined" else folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_record_is_refused(kind, change, folders, tmp_path):
    folder = Path(shutil.copytree(folders[kind], tmp_path / "m"))
    assert berthead.load(folder)
    edit(own_record(folder, kind), change)
    with pytest.raises(ModelError, match=r"does not match its own record_sha256.*Copy the folder again"):
        berthead.load(folder)


def test_the_list_of_joined_functions_is_sealed_too(folders, tmp_path):
    folder = Path(shutil.copytree(folders["joined"], tmp_path / "m"))
    edit(folder, lambda record: record["functions"].pop())
    with pytest.raises(ModelError, match="does not match its own record_sha256"):
        berthead.load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hash_is_of_the_rest_of_the_record_as_sorted_json(kind, folders):
    record = record_of(own_record(folders[kind], kind))
    said = record.pop("record_sha256")
    assert said == hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_swapped_labels_do_not_pass_verify_even_without_the_hash(kind, folders, tmp_path):
    folder = Path(shutil.copytree(folders[kind], tmp_path / "m"))
    edit(own_record(folder, kind), CHANGES["swapped labels"], on_purpose=True)
    with pytest.raises(
        GateError, match=r"golden example 1: its (answer|probabilities|score) is .*as in berthead\.json"
    ):
        berthead.load(folder).verify()


OTHER = {
    "temperature": ({}, lambda task: task.update(temperature=task["temperature"] * 1.5)),
    "thresholds": ({"task": "multilabel", "label": "tags"}, lambda task: task.update(thresholds=[1.0] * 3)),
    "range": ({"task": "regress", "label": "stars"}, lambda task: task.update(low=3.0, high=3.0)),
}


@pytest.mark.parametrize(("options", "change"), OTHER.values(), ids=OTHER)
def test_what_turns_logits_into_answers_is_verified(options, change, fit_toy, tmp_path):
    folder = Path(shutil.copytree(fit_toy(**options), tmp_path / "m"))
    assert berthead.load(folder).verify() < 1e-5
    edit(folder, lambda record: change(record["task"]), on_purpose=True)
    with pytest.raises(GateError, match="The labels, the temperature or the thresholds changed"):
        berthead.load(folder).verify()


def test_the_kept_answers_are_those_of_the_function(folders):
    model = berthead.load(folders["model"])
    golden = record_of(folders["model"])["golden"]
    for one, found in zip(golden, model.predict([one["text"] for one in golden]), strict=True):
        assert one["answer"]["answer"] == found.answer
        assert one["answer"]["score"] == pytest.approx(found.score, abs=1e-5)
        assert [label for label, _ in one["answer"]["probabilities"]] == model.labels


def test_kept_answers_of_a_soup_are_those_of_its_own_thresholds(fit_toy, toy_csv, tmp_path):
    members = [berthead.load(fit_toy(seed=seed)) for seed in (1, 2)]
    soup = berthead.soup(members, toy_csv)
    soup.save(tmp_path / "soup")
    assert berthead.load(tmp_path / "soup").verify() < 1e-5


@pytest.mark.parametrize("kind", ["model", "adapter", "joined"])
def test_another_tokenizer_is_refused(kind, folders, tmp_path):
    folder = Path(shutil.copytree(folders[kind], tmp_path / "m"))
    path = (folder / "theta" if kind == "joined" else folder) / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    words["cat"], words["dog"] = words["dog"], words["cat"]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer\.json: does not match the sha256 in berthead\.json"):
        berthead.load(folder)


def test_another_encoder_config_is_refused(folders, tmp_path):
    folder = Path(shutil.copytree(folders["model"], tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name, value in (("hidden_act", "relu"), ("layer_norm_eps", 1e-3), ("num_attention_heads", 2)):
        (folder / "config.json").write_text(json.dumps(config | {name: value}), encoding="utf-8")
        with pytest.raises(ModelError, match=r"config\.json: describes an encoder whose (activation|eps|heads) is"):
            berthead.load(folder)


@pytest.mark.parametrize("name", ["model-v1", "model-v2", "joined-v3"])
def test_folders_without_hashes_load_and_verify(name):
    model = berthead.load(ROOT / "tests" / "data" / name)
    assert np.max(list(np.atleast_1d(list(model.verify().values()) if name == "joined-v3" else model.verify()))) < 1e-4


def test_labels_that_json_writes_otherwise_are_hashed_as_they_are_read(tiny_bert, tmp_path):
    labels = ["\ud83d", "é", 'quo"te\n', "\x1b[31m"]
    rows = [{"text": row["text"], "label": labels[number % 4]} for number, row in enumerate(toy_rows(2))]
    options = {"encoder": str(tiny_bert), "epochs": 1, "threads": 1, "valid": 0, "quiet": True}
    assert berthead.fit(rows, out=tmp_path / "m", **options).labels == berthead.load(tmp_path / "m").labels


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("run", "rows"), None), (("run", "metrics"), []), (("run", "versions"), {"torch": None}),
        (("parameters", "theta_parameters"), "many"), (("parameters", "omega_parameters"), None), (("run", "seed"), {}),
        (("run", "baselines"), 3), (("run", "settings"), None), (("run", "epochs"), "x"),
    ],
)  # fmt: skip
def test_a_record_that_somebody_spoilt_is_shown_or_refused_in_one_line(path, value, folders, tmp_path, cli):
    for kind in ("model", "onnx"):
        folder = Path(shutil.copytree(folders[kind], tmp_path / kind))
        edit(folder, lambda record: record[path[0]].update({path[1]: value}), on_purpose=True)
        ran = cli("info", folder)
        assert ran.code in (0, 2)
        assert ran.code == 0 or "is not a whole record" in ran.err
