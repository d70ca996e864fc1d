"""The folder of an exported function: what it holds, what is refused, and what a failed check leaves behind."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import toy_rows, unsealed
from exports import exported, run_graph, same, session
from tokenizers import Tokenizer
from toy_tasks import fit_task

import berthead
from berthead.errors import BertheadError, ModelError, UsageError
from berthead.storage.hashes import file_sha256

FILES = ["berthead.json", "model.onnx", "model.onnx.data", "tokenizer.json"]


@pytest.fixture(scope="module")
def made(toy_model, tmp_path_factory) -> Path:
    """An exported function. Do not change it: copy it."""
    folder = tmp_path_factory.mktemp("exports") / "onnx"
    berthead.load(toy_model).export_onnx(folder)
    return folder


@pytest.fixture
def copied(made, tmp_path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def record_of(folder: Path) -> dict:
    return json.loads((folder / "berthead.json").read_text(encoding="utf-8"))


def change(folder: Path, *path: str | int, to: object) -> None:
    """Another value in berthead.json."""
    record = place = record_of(folder)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    (folder / "berthead.json").write_text(json.dumps(unsealed(record)), encoding="utf-8")


# --- what it holds ---


def test_a_folder_holds_all_that_answers_need(made, toy_model):
    assert sorted(path.name for path in made.iterdir()) == FILES
    record, model = record_of(made), berthead.load(toy_model)
    assert record["task"] == {"name": "classify", **model.artifact.task.to_json()}
    assert record["parameters"] == model.artifact.parameters()
    assert record["columns"] == model.artifact.columns
    assert {name: file_sha256(made / name) for name in FILES[1:]} == record["export"]["sha256"]
    assert len(record["golden"]) == 8
    for one in record["golden"]:
        wanted = model.predict(one["text"])
        assert one["prediction"]["answer"] == wanted.answer
        shares = [pair["probability"] for pair in one["prediction"]["probabilities"]]
        assert shares == pytest.approx(list(wanted.probabilities.values()), abs=1e-6)


def test_who_finds_the_graph_alone_reads_its_labels(tiny_bert, made, tmp_path):
    graph = onnx.load(str(made / "model.onnx"), load_external_data=False)
    about = {one.key: json.loads(one.value) for one in graph.metadata_props}
    assert about["task"]["labels"] == about["outputs"] == ["negative", "positive"]
    assert (about["task"]["activation"], about["task"]["temperature"]) == ("softmax", 1.0)
    assert about["reading"] == {"max_tokens": 64, "on_long": "window", "stride": None}
    assert about["columns"]["text"] == "text"
    assert "without padding" in graph.doc_string
    assert [one.name for one in graph.graph.output] == ["logits"]
    fit_task(tiny_bert, "joint").export_onnx(tmp_path / "joint")
    meta = onnxruntime.InferenceSession(str(tmp_path / "joint" / "model.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(meta["outputs"]) == ["O", "B-NEG", "I-NEG", "B-POS", "I-POS", "no", "yes"]


def test_labels_keep_their_types(tiny_bert, tmp_path):
    rows = [{"text": row["text"], "label": ["0", 0, 1.5, True][n % 4]} for n, row in enumerate(toy_rows())]
    model = berthead.fit(rows, encoder=str(tiny_bert), epochs=1, adapt="frozen", valid=0, quiet=True, threads=1)
    again = exported(model, tmp_path / "onnx")
    assert [(type(one), one) for one in again.labels] == [(type(one), one) for one in model.labels]
    assert same(model.predict(["good", "bad cat"]), again.predict(["good", "bad cat"])) == 2


def test_a_golden_example_can_be_followed_without_berthead(made):
    golden = record_of(made)["golden"][0]
    tokens = Tokenizer.from_file(str(made / "tokenizer.json")).encode(golden["text"])
    ids, kinds = np.array([tokens.ids]), np.array([tokens.type_ids])
    logits = run_graph(session(made / "model.onnx"), ids, kinds)[0]
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-5)
    shares = np.exp(logits) / np.exp(logits).sum()
    best = record_of(made)["task"]["labels"][int(shares.argmax())]
    assert (best, float(shares.max())) == (golden["prediction"]["answer"], pytest.approx(golden["prediction"]["score"]))


def test_the_same_function_gives_the_same_bytes(made, toy_model, tmp_path):
    berthead.load(toy_model).export_onnx(tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()


def test_what_comes_back_answers_and_checks_itself(made, toy_model):
    model = berthead.load(made)
    assert (type(model), model.kind) == (berthead.Fitted, "onnx")
    assert model.verify() < 1e-5
    assert model.info()["task"]["name"] == "classify"
    assert model.function.identity() == berthead.load(toy_model).function.identity()
    assert model.predictor.computed_by()["onnxruntime"] == onnxruntime.__version__
    assert model.predict("good cat").answer == "positive"
    assert model.predict_proba(["good cat", "bad cat"]).shape == (2, 2)
    with ThreadPoolExecutor(8) as pool:
        texts = ["good cat", "bad dog ran", "awful red mat"] * 8
        assert same(model.predict(texts), pool.map(model.predict, texts)) == 24


# --- the commands ---


def test_export_says_what_it_wrote_and_checks_it(cli, toy_model, tmp_path):
    model, out = toy_model, tmp_path / "onnx"
    done = cli("export", model, "--onnx", out, "--hf", tmp_path / "hf")
    assert (done.code, done.err) == (0, "")
    assert f"onnx folder: {out}\n  8 golden examples: the same answers" in done.out
    assert "BertForSequenceClassification" in done.out
    done = cli("export", model, "--onnx", out)
    assert (done.code, "holds a model already" in done.err) == (6, True)
    done = cli("export", model, "--onnx", out, "--overwrite", "--json")
    assert json.loads(done.out)["onnx"]["largest_difference"] < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "onnx"]


def test_a_folder_for_transformers_is_replaced_if_it_is_one_of_ours(cli, toy_model, tmp_path):
    out, other = tmp_path / "hf", tmp_path / "other"
    assert cli("export", toy_model, "--hf", out).code == 0
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(b"")
    done = cli("export", toy_model, "--hf", out)
    assert (done.code, "add --overwrite" in done.err) == (6, True)
    assert cli("export", toy_model, "--hf", out, "--overwrite").code == 0
    assert (out / "model.safetensors").read_bytes() == weights
    other.mkdir()
    (other / "README.md").write_text("Of somebody else.")
    done = cli("export", toy_model, "--hf", other, "--overwrite")
    assert (done.code, "holds other files" in done.err) == (6, True)
    assert [path.name for path in other.iterdir()] == ["README.md"]


def test_commands_read_an_exported_folder(cli, made, toy_csv, tmp_path):
    assert cli("predict", made, "good cat").out.startswith("positive  0.")
    assert cli("predict", made, "good cat", "--engine", "onnx", "--probabilities").out.count("p(") == 2
    done = cli("predict", made, toy_csv, "--out", tmp_path / "out.csv", "--engine", "onnx", "--threads", "1")
    assert (done.code, "rows written" in done.err) == (0, True)
    assert (tmp_path / "out.csv").read_text().startswith("text,pair,label,tags,stars,prediction,score\n")
    assert "8 golden examples" in cli("verify", made).out
    assert "opset 17" in cli("info", made).out
    assert json.loads(cli("info", made, "--json").out)["export"]["kind"] == "onnx"
    assert '"accuracy": ' in cli("eval", made, toy_csv, "--json").out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["export", "{model}"], 2, "export: got no output folder; expected --onnx DIR, --hf DIR, or both"),
        (
            ["export", "{model}", "--onnx", "{model}", "--overwrite"],
            2,
            "is the folder of the model; expected another folder",
        ),
        (
            ["export", "{made}", "--onnx", "{new}"],
            2,
            "export: the model is an exported function; expected a model folder made by berthead fit",
        ),
        (["bench", "{made}"], 2, "exported functions are for predict, eval, verify and info"),
        (["predict", "{model}", "good", "--engine", "onnx"], 2, "Write one: berthead export"),
        (["predict", "{made}", "good", "--engine", "torch"], 2, '--engine: is "torch"; expected one of auto, onnx'),
        (["predict", "{made}", "good", "--precision", "int8"], 2, "--precision int8: "),
        (["predict", "{made}", "good", "--device", "cuda"], 2, "is computed by ONNX Runtime on CPUs; expected cpu"),
        (["predict", "{made}", "good", "--base", "minilm"], 2, "holds an encoder of its own"),
        (["predict", "{made}", "good", "--engine", "onnx", "--precision", "auto"], 0, ""),
        (["predict", "{new}", "good", "--engine", "onnx"], 2, "does not exist"),
    ],
)
def test_what_cannot_be_is_said(cli, toy_model, made, tmp_path, words, code, said):
    places = {"model": toy_model, "made": made, "new": tmp_path / "new"}
    done = cli(*(word.format(**places) for word in words))
    assert (done.code, said in done.err) == (code, True), done.err
    assert not (tmp_path / "new").exists()


def test_a_graph_that_answers_otherwise_is_not_kept(cli, toy_model, tmp_path):
    folder = Path(shutil.copytree(toy_model, tmp_path / "model"))
    change(folder, "golden", 2, "logits", to=[9.0, -9.0])
    done = cli("export", folder, "--onnx", tmp_path / "onnx")
    assert (done.code, "golden example 3: logits differ by" in done.err) == (5, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_graph_that_computes_otherwise_is_not_kept(toy_model, tmp_path, monkeypatch):
    from berthead.export import heads

    model, real = berthead.load(toy_model), heads.logits
    monkeypatch.setattr(heads, "logits", lambda graph, head, hidden: graph.add("Neg", real(graph, head, hidden)))
    with pytest.raises(BertheadError, match="logits differ") as caught:
        model.export_onnx(tmp_path / "onnx")
    assert caught.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


def test_heads_of_other_packages_are_refused(toy_model, tmp_path):
    model = berthead.load(toy_model)

    class Own(torch.nn.Linear):
        level = "row"

    model.artifact.model.head = Own(32, 2)
    with pytest.raises(ModelError, match="head: is Own, of another package; expected linear or crf"):
        model.export_onnx(tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


# --- what is not to be trusted ---


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_changed_or_missing_file_is_refused(copied, name):
    whole = (copied / name).read_bytes()
    middle = len(whole) // 2
    (copied / name).write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ModelError, match=r"sha256|cannot be read"):
        berthead.load(copied)
    (copied / name).unlink()
    with pytest.raises(ModelError, match=f"holds no {name}"):
        berthead.load(copied)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            ("export", "version"),
            3,
            "has version 3; expected 1 to 2, which this berthead reads. Install a newer berthead.",
        ),
        (("export", "kind"), "tflite", "is not the record of an exported function"),
        (("export",), None, "is not the record of an exported function"),
        (("export", "sha256"), {}, "does not list the sha256 of each file"),
        (("export", "positions"), 8, "max_tokens is 64"),
        (("task", "labels"), ["negative"], "the head has 2 outputs; expected 1, as the task"),
        (("task", "name"), "unheard", "task 'unheard'"),
        (("task", "temperature"), 0, "temperature is 0"),
        (("head", "windows"), "sum", "windows is 'sum'"),
        (("head",), None, "is not a whole record"),
        (("on_long",), "cut", "on_long is 'cut'"),
        (("golden", 0, "logits"), [1.0], "does not hold logits; expected 2 finite numbers"),
        (("golden", 0, "prediction"), None, "is not a whole record"),
    ],
)
def test_a_record_that_lies_is_refused(copied, path, value, said):
    change(copied, *path, to=value)
    with pytest.raises(ModelError) as caught:
        berthead.load(copied)
    assert said in str(caught.value)


@pytest.mark.parametrize("location", ["../outside", "{folder}/outside", "nothing"])
def test_weights_from_elsewhere_are_refused(copied, location):
    shutil.copy(copied / "model.onnx.data", copied.parent / "outside")
    graph = onnx.load(str(copied / "model.onnx"), load_external_data=False)
    for tensor in graph.graph.initializer:
        for one in tensor.external_data:
            one.value = location.format(folder=copied.parent) if one.key == "location" else one.value
    (copied / "model.onnx").write_bytes(graph.SerializeToString())
    change(copied, "export", "sha256", "model.onnx", to=file_sha256(copied / "model.onnx"))
    with pytest.raises(ModelError, match="cannot be read"):
        berthead.load(copied)


def test_a_graph_of_others_is_refused(copied):
    graph = onnx.load(str(copied / "model.onnx"), load_external_data=False)
    graph.graph.input[0].name = "input_ids"
    for node in graph.graph.node:
        node.input[:] = ["input_ids" if name == "ids" else name for name in node.input]
    (copied / "model.onnx").write_bytes(graph.SerializeToString())
    change(copied, "export", "sha256", "model.onnx", to=file_sha256(copied / "model.onnx"))
    with pytest.raises(ModelError, match=r"has the inputs .*input_ids.*; expected a graph that berthead export wrote"):
        berthead.load(copied)


def test_a_damaged_graph_is_not_shown_to_the_runtime(copied, monkeypatch, capfd):
    content = (copied / "model.onnx").read_bytes()
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **options: pytest.fail("it was read"))
    (copied / "model.onnx").write_bytes(content[:100] + b"\xff" + content[101:])
    with pytest.raises(ModelError, match=r"model\.onnx: does not match the sha256"):
        berthead.load(copied)
    assert capfd.readouterr().out == ""


def test_strange_files_are_refused(copied):
    (copied / "model.pkl").touch()
    with pytest.raises(ModelError, match="pickles and code are refused"):
        berthead.load(copied)


def test_another_answer_to_a_golden_example_fails_verify(cli, copied):
    change(copied, "golden", 1, "prediction", "answer", to="neutral")
    done = cli("verify", copied)
    assert (done.code, "golden example 2: its answer is '" in done.err) == (5, True)
    assert "expected 'neutral', as in berthead.json" in done.err


def test_a_field_with_other_scores_is_refused(tiny_bert, tmp_path):
    exported(fit_task(tiny_bert, "tag", head="crf", epochs=4), tmp_path / "onnx")
    assert np.shape(record_of(tmp_path / "onnx")["crf"]["step"]) == (5, 5)
    change(tmp_path / "onnx", "crf", "last", to=[0.0])
    with pytest.raises(ModelError, match=r"crf\.last is not an array of numbers"):
        berthead.load(tmp_path / "onnx")


def test_an_old_runtime_is_refused(made, monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
    with pytest.raises(UsageError, match=r"onnxruntime has version 1\.20\.1; expected 1\.24 or newer"):
        berthead.load(made)
