"""The model folder: whole or absent, the same function everywhere, and nothing taken on trust."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import all_bytes, make_bert, shell_env, toy_rows, unsealed
from safetensors.torch import load_file, save_file

import berthead
from berthead.errors import BertheadError, DataError, GateError, ModelError, OutputError
from berthead.function import artifact
from berthead.function import folder as folder_format
from berthead.function.artifact import plain_logits
from berthead.model.model import sha256_of
from berthead.records import Example
from berthead.verbs.join import add

FILES = ["berthead.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
TEXTS = ["good cat", "the awful dog sat, red.", "b a d " * 40, "😀", "Zoë ran!"]
KINDS = {
    "classify": {},
    "multilabel": {"task": "multilabel", "label": "tags"},
    "regress": {"task": "regress", "label": "stars"},
}
IN_ANOTHER_PROCESS = """
import json, sys
import berthead
from berthead.records import Example
for folder, inputs in json.load(sys.stdin):
    model = berthead.load(folder)
    examples = [Example(text, pair) for text, pair in inputs]
    logits = model.predictor.logits(examples)
    print(json.dumps({"logits": logits.tolist(), "answers": [p.answer for p in model.predictor.predict(examples)]}))
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def copied(fit_toy, tmp_path) -> Path:
    """A model folder of one's own, to be spoilt."""
    return Path(shutil.copytree(fit_toy(), tmp_path / "model"))


def edit_json(path: Path, change) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(unsealed(record)), encoding="utf-8")


def edit_weights(folder: Path, change, *, with_hashes: bool) -> None:
    """Change the stored tensors; with hashes, berthead.json is made to agree, as a forger would."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    if with_hashes:
        head = {name: t for name, t in tensors.items() if name.startswith(("classifier.", "bert.pooler."))}
        theta = {name.removeprefix("bert."): t for name, t in tensors.items() if name not in head}
        # The hash covers our names of theta and omega: theta's are the checkpoint's without the prefix.
        edit_json(
            folder / "berthead.json",
            lambda record: record["parameters"].update(theta_sha256=sha256_of(theta), omega_sha256=sha256_of(head)),
        )


# One function, wherever it is loaded


def test_another_process_gives_the_same_logits(shell, tiny_bert, tmp_path):
    fitted, jobs = [], []
    for kind, options in KINDS.items():
        for pair in (None, "pair"):
            folder = tmp_path / f"{kind} {pair}"
            model = berthead.fit(
                toy_rows(), out=folder, encoder=str(tiny_bert), epochs=1, lr=3e-3, pair=pair, quiet=True, threads=1,
                **({"label": "label"} | options),
            )  # fmt: skip
            inputs = [(text, "the dog sat" if pair else None) for text in TEXTS]
            fitted.append((kind, model, [Example(*one) for one in inputs]))
            jobs.append((str(folder), inputs))
    run = shell(program=IN_ANOTHER_PROCESS, stdin=json.dumps(jobs))
    assert run.code == 0, run.err
    for (kind, model, examples), line in zip(fitted, run.out.splitlines(), strict=True):
        there = json.loads(line)
        np.testing.assert_allclose(there["logits"], model.predictor.logits(examples), rtol=0, atol=1e-6)
        np.testing.assert_allclose(there["logits"], plain_logits(model.artifact, examples), rtol=0, atol=1e-5)
        here = [prediction.answer for prediction in model.predictor.predict(examples)]
        assert there["answers"] == (pytest.approx(here, abs=1e-6) if kind == "regress" else here)


def test_the_folder_holds_five_files_and_nothing_else(fit_toy):
    assert names(fit_toy()) == FILES
    assert names(fit_toy().parent) == ["toy"]


@pytest.mark.parametrize(
    "labels",
    [["0", 0], [0, 1], [False, True], [1.5, 2.25], ["None", "NA", "null"], ["café 😀", 'quo"ted', "a,b"]],
    ids=str,
)
def test_labels_keep_their_types_on_disk(labels, tiny_bert, tmp_path):
    rows = [{"text": f"good cat {'abcdef'[n % 6]}", "label": labels[n % len(labels)]} for n in range(24)]
    model = berthead.fit(
        rows, out=tmp_path / "m", encoder=str(tiny_bert), epochs=1, valid=0, quiet=True, threads=1
    )  # fmt: skip
    again = berthead.load(tmp_path / "m")
    assert [(type(label), label) for label in again.labels] == [(type(label), label) for label in model.labels]
    assert sorted(map(repr, again.labels)) == sorted(map(repr, labels))
    answer = again.predict("good cat a").answer
    assert (type(answer), answer) in [(type(label), label) for label in labels]


def test_thresholds_and_temperature_are_kept(tiny_bert, tmp_path):
    rows = toy_rows(20)
    for kind, options in KINDS.items():
        fitted = berthead.fit(
            rows, out=tmp_path / kind, encoder=str(tiny_bert), adapt="frozen", epochs=2, valid=0.4, quiet=True,
            threads=1, **({"label": "label"} | options),
        )  # fmt: skip
        assert berthead.load(tmp_path / kind).artifact.task.to_json() == fitted.artifact.task.to_json()
    written = json.loads((tmp_path / "classify" / "berthead.json").read_text())
    assert written["task"]["temperature"] != 1
    written = json.loads((tmp_path / "multilabel" / "berthead.json").read_text())
    assert written["task"]["thresholds"] != [0.5, 0.5, 0.5]


def test_whoever_may_read_one_file_may_read_them_all(fit_toy, tmp_path):
    model = berthead.load(fit_toy())
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            model.save(tmp_path / "m", overwrite=True)
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "m").iterdir()} == {mode}


def test_a_model_saved_again_is_the_same_folder(fit_toy, tmp_path):
    berthead.load(fit_toy()).save(tmp_path / "again")
    assert all_bytes(tmp_path / "again") == all_bytes(fit_toy())


@pytest.mark.parametrize("name", ["naïve 模型 😀", "with spaces and 'quotes'", "a.b.c", "-dash", ".hidden"])
def test_any_folder_name_works(name, fit_toy, tmp_path):
    berthead.load(fit_toy()).save(tmp_path / "deep" / name)
    assert berthead.load(tmp_path / "deep" / name).verify() < 1e-5
    assert names(tmp_path / "deep") == [name]


# The same seed, data and threads: the same bytes


@pytest.mark.parametrize("adapt", ["full", "frozen"])
@pytest.mark.parametrize("kind", KINDS)
def test_fitting_twice_gives_the_same_bytes(kind, adapt, fit_toy):
    options = {"text": "text", "seed": 3, "adapt": adapt, "label": "label"} | KINDS[kind]
    one, two = fit_toy(**options, clip=1.0), fit_toy(**options)
    assert one != two
    assert all_bytes(one) == all_bytes(two)


FITS = """
import sys
import berthead
data, encoder, *folders = sys.argv[1:]
for folder, adapt in zip(folders, ("full", "frozen")):
    berthead.fit(data, out=folder, encoder=encoder, adapt=adapt, epochs=1, threads=2, quiet=True)
"""


@pytest.mark.exhaustive  # every test of kills and of workers compares processes too
def test_a_fit_in_a_fresh_process_gives_the_same_bytes(tiny_bert, toy_csv, tmp_path, monkeypatch):
    words = [toy_csv, tiny_bert, tmp_path / "full", tmp_path / "frozen"]
    # Python's hash of strings differs from process to process.
    environment = shell_env(PYTHONHASHSEED="1")
    subprocess.run([sys.executable, "-c", FITS, *words], check=True, env=environment)
    there = [all_bytes(folder) for folder in words[2:]]
    for folder in words[2:]:
        shutil.rmtree(folder)
    monkeypatch.setattr(sys, "argv", ["-c", *map(str, words)])
    exec(FITS, {})
    assert [all_bytes(folder) for folder in words[2:]] == there


@pytest.mark.parametrize("adapt", ["full", "frozen"])
def test_another_seed_gives_other_weights(adapt, fit_toy):
    one, two = (load_file(fit_toy(seed=seed, adapt=adapt) / "model.safetensors") for seed in (1, 2))
    assert one.keys() == two.keys()
    changed = {name for name in one if not torch.equal(one[name], two[name])}
    assert "classifier.weight" in changed
    assert any("encoder.layer" in name for name in changed) == (adapt == "full")


def test_the_callers_random_state_decides_nothing_and_is_left_alone(fit_toy):
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.random.get_rng_state()
    one = fit_toy(seed=11, warmup=0.1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    assert all_bytes(one) == all_bytes(fit_toy(seed=11))


# Theta and omega are told apart


def theta_of_checkpoint(folder: Path) -> str:
    """The hash as documented: sha256 over names, shapes and float32 bytes in the order of the names."""
    tensors = load_file(folder / "model.safetensors")
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if not name.startswith("pooler."):
            digest.update(f"{name} {list(tensors[name].shape)}\n".encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("pooling", ["pooler", "mean", "cls"])
def test_frozen_theta_is_the_pretrained_one_whatever_the_head(pooling, fit_toy, tiny_bert):
    wanted = theta_of_checkpoint(tiny_bert)
    for options in KINDS.values():
        said = berthead.load(fit_toy(adapt="frozen", pooling=pooling, **options)).info()["parameters"]
        assert said["theta_is_pretrained"] is True
        assert said["theta_sha256"] == said["pretrained"]["theta_sha256"] == wanted
    fitted = berthead.load(fit_toy(adapt="full", pooling=pooling)).info()["parameters"]
    assert fitted["theta_is_pretrained"] is False
    assert fitted["theta_sha256"] != wanted
    assert fitted["pretrained"]["theta_sha256"] == wanted


@pytest.mark.parametrize("pooling", ["pooler", "mean", "cls"])
def test_sizes_add_up_to_the_stored_weights(pooling, fit_toy):
    folder = fit_toy(pooling=pooling)
    said = berthead.load(folder).info()["parameters"]
    stored = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert said["theta_parameters"] + said["omega_parameters"] == stored
    assert said["omega_parameters"] == 32 * 2 + 2 + (32 * 32 + 32 if pooling == "pooler" else 0)


# verify


@pytest.mark.parametrize("kind", KINDS)
def test_verify_passes_on_what_was_saved(kind, fit_toy):
    model = berthead.load(fit_toy(**KINDS[kind]))
    assert len(model.artifact.golden) == 8
    assert 0 <= model.verify() < 1e-5


def test_a_failed_gate_exits_with_5():
    assert GateError.exit_code == 5


def test_verify_fails_after_a_golden_logit_is_changed(copied):
    def change(record):
        record["golden"][2]["logits"][0] += 1e-3

    edit_json(copied / "berthead.json", change)
    with pytest.raises(GateError, match=r"golden example 3: logits differ by 0\.0"):
        berthead.load(copied).verify()


@pytest.mark.parametrize("weight", ["classifier.weight", "bert.encoder.layer.1.output.dense.weight"])
def test_verify_fails_after_a_weight_is_changed_and_the_hashes_with_it(weight, copied):
    edit_weights(copied, lambda tensors: tensors[weight].mul_(1.5), with_hashes=True)
    with pytest.raises(GateError, match="logits differ"):
        berthead.load(copied).verify()


def test_the_hashes_of_the_test_are_the_folders(copied):
    before = (copied / "berthead.json").read_text()
    edit_weights(copied, lambda tensors: None, with_hashes=True)
    assert json.loads((copied / "berthead.json").read_text()) == unsealed(json.loads(before))


def test_verify_fails_after_the_tokenizer_is_changed(copied):
    def swap(tokenizer):
        vocabulary = tokenizer["model"]["vocab"]
        for one, two in (("cat", "mat"), ("good", "bad"), ("dog", "ran")):
            vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]

    edit_json(copied / "tokenizer.json", swap)
    with pytest.raises(ModelError, match=r"tokenizer\.json: does not match the sha256"):
        berthead.load(copied)
    edit_json(copied / "berthead.json", lambda record: None)
    with pytest.raises(GateError, match="logits differ"):
        berthead.load(copied).verify()


def test_verify_without_golden_examples_is_no_pass(copied):
    edit_json(copied / "berthead.json", lambda record: record.update(golden=[]))
    with pytest.raises(GateError, match="no golden examples"):
        berthead.load(copied).verify()


# Whole or absent


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


FAILURES = {
    "no room for the weights": ("safetensors.torch.save_file", full_disk, OutputError),
    "no room at fsync": ("os.fsync", full_disk, OutputError),
    "no room for the record": ("berthead.function.folder.write_json", full_disk, OutputError),
    "Ctrl-C in the weights": ("safetensors.torch.save_file", interrupt, KeyboardInterrupt),
    "Ctrl-C at fsync": ("os.fsync", interrupt, KeyboardInterrupt),
    "Ctrl-C in the comparison": ("berthead.function.folder.replay", interrupt, KeyboardInterrupt),
}


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_save_that_fails_leaves_nothing_and_keeps_what_was_there(failure, existing, fit_toy, tmp_path, monkeypatch):
    target, function, error = FAILURES[failure]
    model = berthead.load(fit_toy())
    folder = tmp_path / "model"
    if existing:
        shutil.copytree(fit_toy(seed=1), folder)
    monkeypatch.setattr(target, function)
    with pytest.raises(error):
        model.save(folder, overwrite=True)
    monkeypatch.undo()
    assert names(tmp_path) == (["model"] if existing else [])
    if existing:
        assert all_bytes(folder) == all_bytes(fit_toy(seed=1))


def test_a_really_full_disk_is_an_output_error(fit_toy, tmp_path):
    model = berthead.load(fit_toy())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="could not be written"):
            model.save(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


def test_a_rename_that_fails_puts_the_old_model_back(fit_toy, tmp_path, monkeypatch):
    model = berthead.load(fit_toy())
    folder = Path(shutil.copytree(fit_toy(seed=1), tmp_path / "model"))
    rename = Path.rename

    def only_away(self, target):
        if Path(target) == folder and ".part-" in self.name:
            full_disk()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", only_away)
    with pytest.raises(OutputError):
        model.save(folder, overwrite=True)
    monkeypatch.undo()
    assert names(tmp_path) == ["model"]
    assert all_bytes(folder) == all_bytes(fit_toy(seed=1))


def test_what_a_killed_process_left_is_no_obstacle(fit_toy, tmp_path):
    # In a container the next process often has the number of the killed one.
    left = tmp_path / f".model.part-{os.getpid()}"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    berthead.load(fit_toy()).save(tmp_path / "model")
    assert names(tmp_path) == ["model"]


def test_overwrite_replaces_the_whole_folder(fit_toy, tmp_path):
    folder = Path(shutil.copytree(fit_toy(seed=1), tmp_path / "model"))
    (folder / "notes.txt").write_text("of the old model")
    berthead.load(fit_toy()).save(folder, overwrite=True)
    assert all_bytes(folder) == all_bytes(fit_toy())
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("weight", ["classifier.bias", "bert.embeddings.LayerNorm.weight"])
def test_a_save_that_wrote_other_weights_is_no_success(weight, fit_toy, tmp_path, monkeypatch):
    def wrong(tensors, *args, **kwargs):
        save_file(tensors | {weight: tensors[weight] + 0.01}, *args, **kwargs)

    model = berthead.load(fit_toy())
    monkeypatch.setattr("safetensors.torch.save_file", wrong)
    with pytest.raises((GateError, ModelError), match=r"sha256|logits differ"):
        model.save(tmp_path / "model")
    assert names(tmp_path) == []


def test_a_save_that_wrote_another_function_under_true_hashes_is_no_success(fit_toy, tmp_path, monkeypatch):
    write = folder_format.write_json

    def other_config(path, value):
        write(path, value | {"hidden_act": "relu"} if path.name == "config.json" else value)

    model = berthead.load(fit_toy())
    monkeypatch.setattr("berthead.function.folder.write_json", other_config)
    with pytest.raises(ModelError, match=r'activation is "relu"; expected "gelu", as in berthead\.json'):
        model.save(tmp_path / "model")
    assert names(tmp_path) == []


# A folder that is in the way is refused before any work


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was trained")

    monkeypatch.setattr("berthead.train.learn.fit_model", refuse)
    monkeypatch.setattr("berthead.train.learn.read_checkpoint", refuse)


@pytest.mark.usefixtures("no_training")
def test_fit_refuses_a_folder_in_the_way_before_it_trains(copied, tmp_path, tiny_bert):
    before = all_bytes(copied)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name, overwrite, message in [
        ("model", False, "holds a model already.*overwrite=True"),
        ("thesis", False, "holds other files"),
        ("thesis", True, "holds other files"),
        ("file", True, "is not a folder"),
        ("link", True, "is not a folder"),
        ("file/below", True, "cannot be created"),
    ]:
        with pytest.raises(OutputError, match=message):
            berthead.fit(
                toy_rows(), out=tmp_path / name, encoder=str(tiny_bert), overwrite=overwrite, quiet=True
            )  # fmt: skip
    assert all_bytes(copied) == before
    assert names(tmp_path) == ["file", "link", "model", "thesis"]
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", [".", "..", "/"])
def test_fit_refuses_a_folder_that_cannot_be_put_in_place(name, tmp_path, monkeypatch, tiny_bert):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    with pytest.raises(OutputError):
        berthead.fit(toy_rows(), out=name, encoder=str(tiny_bert), quiet=True)
    assert names(tmp_path) == ["inner"]
    assert names(tmp_path / "inner") == []


def test_fit_fills_an_empty_folder_and_overwrites_a_model(tiny_bert, tmp_path):
    (tmp_path / "m").mkdir()
    options = {"encoder": str(tiny_bert), "epochs": 1, "adapt": "frozen", "valid": 0, "quiet": True, "threads": 1}
    berthead.fit(toy_rows(), out=tmp_path / "m", seed=1, **options)
    first = all_bytes(tmp_path / "m")
    berthead.fit(toy_rows(), out=tmp_path / "m", seed=2, overwrite=True, **options)
    assert names(tmp_path) == ["m"]
    assert all_bytes(tmp_path / "m")["model.safetensors"] != first["model.safetensors"]


# Folders that are refused, each with its reason


def refused(folder: Path, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        berthead.load(folder)


def test_no_folder_a_file_and_another_folder_are_refused(tmp_path, tiny_bert):
    refused(tmp_path / "nowhere", "does not exist")
    (tmp_path / "file").write_text("{}")
    refused(tmp_path / "file", "is a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no berthead.json")
    refused(tiny_bert, "holds no berthead.json.*--encoder FOLDER")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_that_lacks_a_file_is_refused(name, copied):
    (copied / name).unlink()
    if name == "tokenizer_config.json":  # only transformers needs it
        assert berthead.load(copied).verify() < 1e-5
    else:
        refused(copied, "no tokenizer" if name == "tokenizer.json" else f"holds no {name}")


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (7, "newer berthead"),
        (0, "expected 1 to 6"),
        ("1", "expected 1 to 6"),
        (None, "expected 1 to 6"),
        (True, "reads"),
    ],
)
def test_another_format_version_is_refused(version, reason, copied):
    edit_json(copied / "berthead.json", lambda record: record.update(format_version=version))
    refused(copied, f"format_version.*{reason}")


@pytest.fixture
def first_version(tmp_path) -> Path:
    """A folder of format_version 1, as berthead 1e348db wrote it."""
    return Path(shutil.copytree(Path(__file__).parent / "data" / "model-v1", tmp_path / "model-v1"))


def assert_answers_of_the_first_version(model) -> None:
    """What the berthead that wrote the folder said; longer texts end where it cut them."""
    said = json.loads((Path(__file__).parent / "data" / "model-v1-answers.json").read_text(encoding="utf-8"))
    answers = [one.to_dict() for one in model.predict(said["texts"])]
    assert [one["truncated"] for one in said["answers"]].count(True) == 2
    for one, wanted in zip(answers, said["answers"], strict=True):
        shares = wanted.pop("probabilities")
        assert [pair["label"] for pair in one["probabilities"]] == [pair["label"] for pair in shares]
        found = [pair["probability"] for pair in one["probabilities"]]
        assert found == pytest.approx([pair["probability"] for pair in shares], abs=1e-4)
        assert one["score"] == pytest.approx(wanted.pop("score"), abs=1e-4)
        assert {key: one[key] for key in wanted} == wanted


def test_a_folder_of_the_first_version_gives_the_answers_of_its_time(first_version):
    assert json.loads((first_version / "berthead.json").read_text(encoding="utf-8"))["format_version"] == 1
    model = berthead.load(first_version)
    assert len(model.artifact.golden) == 8
    assert model.verify() < 1e-5
    assert model.labels == ["negative", "positive"]
    assert (model.artifact.max_tokens, model.artifact.policy.on_long) == (24, "truncate")
    assert max(one["text"].count(" ") for one in model.artifact.golden) > 24  # so that cutting is replayed too
    assert_answers_of_the_first_version(model)


def test_a_folder_of_the_second_version_gives_the_answers_of_its_time(tmp_path):
    """Its head lies where classes of transformers look for theirs; saved again it does no more."""
    folder = Path(__file__).parent / "data" / "model-v2"
    assert json.loads((folder / "berthead.json").read_text(encoding="utf-8"))["format_version"] == 2
    assert "classifier.weight" in load_file(folder / "model.safetensors")
    model = berthead.load(folder)
    assert (len(model.artifact.golden), model.verify() < 1e-5) == (8, True)
    model.save(tmp_path / "again")
    again = berthead.load(tmp_path / "again")
    assert (again.info()["format_version"], again.verify() < 1e-5) == (4, True)
    assert again.info()["parameters"] == model.info()["parameters"]
    stored = load_file(tmp_path / "again" / "model.safetensors")
    assert stored["classifier.weight"].shape == stored["qa_outputs.weight"].shape == (0,)
    assert torch.equal(stored["berthead.classifier.weight"], model.omega["classifier.weight"])


def test_a_joined_folder_of_the_third_version_gives_the_answers_of_its_time(tmp_path):
    folder = Path(__file__).parent / "data" / "joined-v3"
    for name, file in (("top", "model.safetensors"), ("lora", "adapter_model.safetensors")):
        assert json.loads((folder / name / "berthead.json").read_text(encoding="utf-8"))["format_version"] == 3
        assert (folder / name / file).is_file()
        assert berthead.load(folder / name).verify() < 1e-5
    both = berthead.load(folder)
    assert all(one < 1e-5 for one in both.verify().values())
    both.save(tmp_path / "again")
    assert not (tmp_path / "again" / "top" / "model.safetensors").exists()
    again = berthead.load(tmp_path / "again")
    assert all(one < 1e-5 for one in again.verify().values())
    assert [again[name].info()["format_version"] for name in again] == [4, 4]
    # One more beside those of the third version.
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    add(copied, "more", both["top"])
    assert {name: one < 1e-5 for name, one in berthead.load(copied).verify().items()} == dict.fromkeys(
        ("top", "lora", "more"), True
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("qa_outputs.weight"), "lacks 1 weight: qa_outputs.weight"),
        (lambda t: t.update({"qa_outputs.weight": torch.zeros(2, 32)}), r"qa_outputs.weight has shape \[2, 32\]"),
        (lambda t: t.update({"classifier.bias": torch.zeros(2)}), "holds 1 unknown weight: classifier.bias"),
        (lambda t: t.pop("berthead.classifier.bias"), "lacks 1 weight: berthead.classifier.bias"),
    ],
)
def test_a_folder_that_classes_of_transformers_would_load_is_refused(change, words, fit_toy, tmp_path):
    copied = Path(shutil.copytree(fit_toy(pooling="mean"), tmp_path / "model"))
    edit_weights(copied, change, with_hashes=False)
    refused(copied, words)


def test_a_folder_of_the_first_version_is_saved_as_one_of_today(first_version, tmp_path):
    before = json.loads((first_version / "berthead.json").read_text(encoding="utf-8"))
    berthead.load(first_version).save(tmp_path / "again")
    record = json.loads((tmp_path / "again" / "berthead.json").read_text(encoding="utf-8"))
    assert record["format_version"] == artifact.PLAIN_VERSION == 2
    for key in ("task", "columns", "max_tokens", "on_long", "parameters", "transformers", "run", "golden"):
        assert record[key] == before[key]
    assert record["head"] == before["head"] | {"windows": "mean"}
    assert record["stride"] is None
    again = berthead.load(tmp_path / "again")
    assert again.verify() < 1e-5
    assert_answers_of_the_first_version(again)


def test_the_command_line_reads_a_folder_of_the_first_version(first_version, cli):
    assert cli("verify", first_version).code == 0
    assert "reads         at most 24 tokens at once, longer texts are truncated" in cli("info", first_version).out
    assert cli("predict", first_version, "good cat").out.startswith("positive  0.8921")


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "head.pt", "model_head.pkl", "x.pickle", "x.joblib", "x.ckpt", "x.npy", "modeling_x.py",
     "x.so", "deep/er/model.pkl", "__pycache__/x.pyc", "EVIL.PKL", "modeling.Py"],
)  # fmt: skip
def test_pickles_and_code_are_refused(name, copied):
    (copied / name).parent.mkdir(parents=True, exist_ok=True)
    (copied / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    refused(copied, f"holds {name}; expected only safetensors and JSON")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "notes.txt"])
def test_links_to_outside_are_refused(name, copied, tmp_path, fit_toy):
    (tmp_path / "outside").mkdir()
    outside = tmp_path / "outside" / name
    outside.write_bytes((copied / name).read_bytes() if (copied / name).exists() else b"secret")
    (copied / name).unlink(missing_ok=True)
    (copied / name).symlink_to(outside)
    refused(copied, f"{name} is a link to outside")


def test_a_link_to_an_outside_folder_and_a_circular_link_are_refused(copied, tmp_path):
    (copied / "more").symlink_to(tmp_path)
    refused(copied, "more is a link to outside")
    (copied / "more").unlink()
    (copied / "loop").symlink_to(copied / "loop")
    refused(copied, "loop")


def test_a_link_to_the_folder_itself_is_fine(copied, tmp_path):
    (tmp_path / "current").symlink_to(copied)
    assert berthead.load(tmp_path / "current").verify() < 1e-5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("classifier.bias"), "lacks 1 weight: classifier.bias"),
        (lambda t: t.pop("bert.encoder.layer.0.attention.self.key.bias"), "lacks 1 weight: bert.encoder.layer.0"),
        (lambda t: t.update(extra=torch.zeros(2)), "holds 1 unknown weight: extra"),
        (lambda t: t.update({"classifier.bias": torch.zeros(3)}), r"classifier.bias has shape \[3\].*expected \[2\]"),
        (
            lambda t: t.update({"bert.embeddings.word_embeddings.weight": torch.zeros(5, 32)}),
            r"word_embeddings.weight has shape \[5, 32\]",
        ),
    ],
)
def test_missing_extra_and_misshapen_weights_are_named(change, reason, copied):
    edit_weights(copied, change, with_hashes=False)
    refused(copied, reason)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_weights_are_refused(keep, copied):
    path = copied / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(copied, "model.safetensors: cannot be read")


@pytest.mark.parametrize("place", [-1, -50_000])
def test_one_changed_byte_of_the_weights_is_refused(place, copied):
    path = copied / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    refused(copied, "does not match the sha256")


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 2**40}, {"vocab_size": 2**62}, {"num_hidden_layers": 10**9}, {"intermediate_size": -1},
        {"hidden_size": 65_536, "intermediate_size": 1_000_000}, {"vocab_size": 10_000_000},
        {"max_position_embeddings": 1_000_000}, {"num_attention_heads": 0}, {"hidden_size": "32"},
        {"num_attention_heads": 5}, {"hidden_size": None}, {"type_vocab_size": 1000}, {"layer_norm_eps": "1e-12"},
        {"hidden_act": "exec"}, {"model_type": "gpt2"}, {"hidden_dropout_prob": 5},
    ],
    ids=str,
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused_without_being_allocated(sizes, copied):
    edit_json(copied / "config.json", lambda config: config.update(sizes))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limits[1]))
    try:
        refused(copied, "is |shape|lacks|unknown")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("name", ["berthead.json", "config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"not json", b'{"a":', b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 100_000], ids=len
)
def test_files_that_are_not_json_are_refused(name, content, copied):
    (copied / name).write_bytes(content)
    refused(copied, "cannot be read")


@pytest.mark.parametrize("name", ["berthead.json", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"[]", b"null", b'"text"', b"3", b"{}"])
def test_files_that_hold_something_else_are_refused(name, content, copied):
    (copied / name).write_bytes(content)
    refused(copied, ".")


RECORD_KEYS = [
    "format_version", "task", "task.name", "task.labels", "task.temperature", "head", "head.kind", "head.pooling",
    "head.outputs", "head.dropout", "columns", "columns.text", "columns.pair", "columns.label", "max_tokens", "on_long",
    "parameters", "parameters.theta_sha256", "parameters.omega_sha256", "parameters.pretrained",
    "parameters.pretrained.name", "parameters.pretrained.theta_sha256", "parameters.adapt", "run", "golden", "golden.0",
    "golden.0.text", "golden.0.pair", "golden.0.logits",
]  # fmt: skip


def replace_key(record, key: str, value=None, *, drop: bool = False) -> None:
    *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    for part in path:
        record = record[part]
    if drop:
        del record[last]
    else:
        record[last] = value


@pytest.mark.parametrize("key", [key for key in RECORD_KEYS if key != "golden.0"])
def test_a_record_that_lacks_a_key_is_refused(key, copied):
    edit_json(copied / "berthead.json", lambda record: replace_key(record, key, drop=True))
    refused(copied, "berthead.json")


@pytest.mark.parametrize("key", RECORD_KEYS)
@pytest.mark.parametrize(
    "value", [None, 3.5, True, "words", [], [None], {}, {"a": 1}, 10**400], ids=lambda v: str(v)[:9]
)
def test_a_record_with_a_value_of_another_kind_is_refused(key, value, copied):
    """A text may stand where any text may; everything else has one type."""
    texts = {"columns.text", "columns.pair", "columns.label", "parameters.pretrained.name", "parameters.adapt",
             "golden.0.text", "golden.0.pair"}  # fmt: skip
    fine = (
        (value is None and key in ("columns.pair", "golden.0.pair"))
        or (isinstance(value, str) and key in texts)
        or (value == 3.5 and key == "task.temperature")
        or (value == [] and key == "golden")
    )
    edit_json(copied / "berthead.json", lambda record: replace_key(record, key, value))
    if fine:
        berthead.load(copied)
    else:
        refused(copied, "berthead.json")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("classify", "task.labels", ["one"]),
        ("classify", "task.labels", ["one", "two", "three"]),
        ("classify", "task.labels", ["one", "one"]),
        ("classify", "task.labels", "ab"),
        ("classify", "task.labels", [["one"], ["two"]]),
        ("classify", "task.labels", [None, "two"]),
        ("classify", "task.name", "span"),
        ("classify", "task.name", "regress"),
        ("classify", "task.temperature", 0),
        ("classify", "task.temperature", -1),
        ("classify", "task.temperature", float("nan")),
        ("classify", "task.temperature", float("inf")),
        ("classify", "task.temperature", "1"),
        ("multilabel", "task.thresholds", [0.5]),
        ("multilabel", "task.thresholds", [0.5, 0.5, 0.5, 0.5]),
        ("multilabel", "task.thresholds", [0.5, 0.5, float("nan")]),
        ("multilabel", "task.thresholds", ["0.5", "0.5", "0.5"]),
        ("multilabel", "task.thresholds", 0.5),
        ("regress", "task.deviation", 0),
        ("regress", "task.mean", float("nan")),
        ("regress", "task.low", 99),
        ("regress", "task.high", None),
        ("classify", "head.pooling", "max"),
        ("classify", "head.pooling", "mean"),
        ("classify", "head.kind", "token"),
        ("classify", "head.kind", "rows"),
        ("classify", "head.outputs", 3),
        ("classify", "head.windows", "sum"),
        ("classify", "head.windows", "attention"),
        ("classify", "head.dropout", 5),
        ("classify", "head.dropout", -0.1),
        ("classify", "head.dropout", float("nan")),
        ("classify", "max_tokens", -1),
        ("classify", "max_tokens", 0),
        ("classify", "max_tokens", 2),
        ("classify", "max_tokens", 65),
        ("classify", "max_tokens", 10**18),
        ("classify", "max_tokens", float("inf")),
        ("classify", "max_tokens", 12.5),
        ("classify", "max_tokens", "12"),
        ("classify", "on_long", "cut"),
        ("classify", "stride", -1),
        ("classify", "stride", 64),
        ("classify", "stride", 2.5),
        ("classify", "stride", "4"),
        ("classify", "parameters.theta_sha256", "0" * 64),
        ("classify", "parameters.omega_sha256", "0" * 64),
        ("classify", "golden.0.logits", [0.0]),
        ("classify", "golden.0.logits", ["0", "1"]),
        ("classify", "golden.0.text", 3),
    ],
)
def test_a_record_with_a_value_that_cannot_be_is_refused(kind, key, value, fit_toy, tmp_path):
    folder = Path(shutil.copytree(fit_toy(**KINDS[kind]), tmp_path / "model"))
    edit_json(folder / "berthead.json", lambda record: replace_key(record, key, value))
    refused(folder, ".")


def test_a_tokenizer_with_more_tokens_than_the_embeddings_is_refused(copied):
    def more(tokenizer):
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["unheard"] = len(vocabulary)

    edit_json(copied / "tokenizer.json", more)
    refused(copied, r"its tokenizer gives token numbers up to \d+; expected at most \d+: the table of tokens has")


def test_auto_map_is_neither_followed_nor_written(tiny_bert, tmp_path, copied):
    trap = "import pathlib\npathlib.Path(__file__).with_name('sprung').touch()\nclass Model: pass\n"
    encoder = Path(shutil.copytree(tiny_bert, tmp_path / "encoder"))
    (encoder / "modeling.py").write_text(trap)
    for name in ("config.json", "tokenizer_config.json"):
        edit_json(encoder / name, lambda config: config.update(auto_map={"AutoModel": "modeling.Model"}))
    options = {"encoder": str(encoder), "epochs": 1, "adapt": "frozen", "valid": 0, "quiet": True, "threads": 1}
    berthead.fit(toy_rows(1), out=tmp_path / "fitted", **options)
    for name in FILES:
        assert b"auto_map" not in (tmp_path / "fitted" / name).read_bytes()
    for name in ("config.json", "tokenizer_config.json"):
        edit_json(copied / name, lambda config: config.update(auto_map={"AutoModel": "modeling.Model"}))
    assert berthead.load(copied).verify() < 1e-5
    berthead.load(copied).save(tmp_path / "again")
    for name in FILES:
        assert b"auto_map" not in (tmp_path / "again" / name).read_bytes()
    assert not (encoder / "sprung").exists()
    assert names(tmp_path / "fitted") == FILES


def test_paths_of_this_machine_are_not_written(tmp_path):
    encoder = make_bert(tmp_path / "secret-user" / "bert")
    berthead.fit(toy_rows(1), out=tmp_path / "m", encoder=str(encoder), epochs=1, valid=0, quiet=True)
    for content in all_bytes(tmp_path / "m").values():
        assert b"secret-user" not in content


def test_refusals_are_errors_for_users():
    assert issubclass(ModelError, BertheadError)
    assert not issubclass(ModelError, DataError)
    assert ModelError.exit_code == 2
