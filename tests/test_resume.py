"""A fit that ended before its end goes on as if nothing had been: real processes, killed at any moment."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import all_bytes, daily, make_bert, shell_env, toy_rows, write_csv
from safetensors import SafetensorError, safe_open

import berthead
from berthead.errors import OutputError, UsageError
from berthead.kernels import library
from berthead.train import checkpoints, identity, learn, steps
from berthead.train.checkpoints import Checkpoints, Saved

KINDS = {
    "full": {},
    "bf16": {"precision": "bf16"},
    "frozen": {"adapt": "frozen", "epochs": 8},
    "top": {"adapt": "top:1"},
    "lora": {"adapt": "lora:2"},
    "bitfit": {"adapt": "bitfit"},
    "unfreeze": {"unfreeze": True, "layer_decay": 0.8},
    "tags": {"task": "tag", "head": "crf", "text": "tokens", "label": "tags"},
    "windows": {"max_tokens": 8, "epochs": 2},  # of very many a step reads a random choice
}
# Forks a process for each fit, so that none of them waits for imports. The fit can be told to kill itself.
SERVER = """
import json, os, signal, sys, time
import sklearn.feature_extraction.text, sklearn.linear_model, sklearn.metrics, torch._dynamo
import berthead
import berthead.function.folder, berthead.verbs.fit

def dying(calls):
    def watched(real):
        def call(*args, **options):
            calls[0] -= 1
            if calls[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)
        return call
    os.fsync, os.unlink, os.mkdir = watched(os.fsync), watched(os.unlink), watched(os.mkdir)
    os.rename, os.replace, os.rmdir = watched(os.rename), watched(os.replace), watched(os.rmdir)

for line in sys.stdin:
    options = json.loads(line)
    kill_after = options.pop("kill_after", None) or float("inf")
    child = os.fork()
    if child == 0:
        if calls := options.pop("dies_at", None):
            dying([calls])
        try:
            berthead.fit(options.pop("data"), **options)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1 if sys.exc_info()[0] else 0)
    end, status = time.monotonic() + kill_after, (0, 0)
    while status == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.002)
        status = os.waitpid(child, os.WNOHANG)
    print(os.waitstatus_to_exitcode(status[1]), flush=True)
"""


class Server:
    """Fits in processes of their own."""

    def __init__(self, said: Path):
        self.said = said.open("w+", encoding="utf-8")
        command = [sys.executable, "-c", SERVER]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True, env=shell_env()
        )

    def fit(self, **options) -> int:
        """The exit code of a fit; `kill_after`: it is killed so many seconds after its start."""
        self.process.stdin.write(json.dumps(options, default=str) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def errors(self) -> str:
        """What all fits have said on stderr."""
        return Path(self.said.name).read_text(encoding="utf-8")

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.said.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Server(tmp_path_factory.mktemp("server") / "said")
    started.fit(data="no such file")  # what it imports late is imported
    yield started
    started.close()


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    return str(make_bert(tmp_path_factory.mktemp("resume") / "bert", num_hidden_layers=3))


def tag_rows() -> list[dict]:
    words = ["the", "cat", "good", "dog", "bad", "mat", "ran", "red"]
    rows = [[words[(start + 3 * place) % 8] for place in range(3 + start % 5)] for start in range(40)]
    return [{"tokens": row, "tags": ["B-X" if word in ("cat", "dog") else "O" for word in row]} for row in rows]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    (folder / "tags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tag_rows()))
    long = [row | {"text": f"{row['text']} " * 60} for row in toy_rows(2)]
    return {"toy": write_csv(folder / "toy.csv", toy_rows(3)), "tags": folder / "tags.jsonl",
            "windows": write_csv(folder / "long.csv", long)}  # fmt: skip


def options_of(kind: str, bert: str, data: dict[str, Path]) -> dict:
    plain = {"encoder": bert, "batch": 8, "lr": 3e-3, "threads": 1, "epochs": 3, "valid": 0.25, "quiet": True,
             "precision": "fp32", "checkpoint_minutes": 0}  # fmt: skip
    return plain | KINDS[kind] | {"data": str(data.get(kind, data["toy"]))}


def is_done(model: Path) -> bool:
    """Whether a fit was killed when it had written its folder, and tidied up."""
    return model.exists() and not model.with_name(f"{model.name}.fit").exists()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Killed


# Of the others what is written down and read again is seen below, in this process.
DAILY = ("full", "frozen")


@pytest.mark.parametrize("kind", daily(KINDS, *DAILY))
def test_killed_at_any_moment_and_resumed_a_fit_gives_the_same_bytes(kind, server, bert, data, tmp_path):
    if kind == "bf16" and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor does not multiply bfloat16")
    options, chance = options_of(kind, bert, data), random.Random(kind)
    started = time.monotonic()
    assert server.fit(out=tmp_path / "whole", **options) == 0
    seconds = time.monotonic() - started
    kills = 0
    while kills < 3 and not is_done(tmp_path / "cut"):
        after = seconds * chance.uniform(0.1, 0.9)
        code = server.fit(kill_after=after, out=tmp_path / "cut", resume=kills > 0, **options)
        if code == 0:  # it was faster than the first one
            shutil.rmtree(tmp_path / "cut")
            seconds, kills = seconds / 2, 0
            continue
        assert code == -signal.SIGKILL, server.errors()
        kills += 1
    if not is_done(tmp_path / "cut"):
        assert server.fit(out=tmp_path / "cut", resume=True, **options) == 0
    assert all_bytes(tmp_path / "cut") == all_bytes(tmp_path / "whole")
    assert names(tmp_path) == ["cut", "whole"]


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("overwrite", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_killed_before_any_change_of_the_disk_a_fit_goes_on(overwrite, every, server, bert, data, tmp_path):
    options = options_of("frozen", bert, data) | {"epochs": 1, "batch": 20, "overwrite": overwrite}
    assert server.fit(out=tmp_path / "whole", **options) == 0
    assert server.fit(out=tmp_path / "older", **options | {"seed": 1}) == 0
    # What an older model changes comes last.
    resumed, calls = 0, (20 if overwrite else 0) - every + 1
    while True:
        calls += every
        folder = tmp_path / str(calls)
        folder.mkdir()
        if overwrite:
            shutil.copytree(tmp_path / "older", folder / "model")
        code = server.fit(out=folder / "model", dies_at=calls, **options)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        resumed += (folder / "model.fit" / "checkpoint.safetensors").exists()
        if calls > 20 and (folder / "model.fit").exists() and not names(folder / "model.fit"):
            break  # all was done but for the removal of an empty folder
        assert server.fit(out=folder / "model", resume=True, **options) == 0, (calls, names(folder), server.errors())
        assert all_bytes(folder / "model") == all_bytes(tmp_path / "whole")
        assert names(folder) == ["model"], calls
    assert all_bytes(folder / "model") == all_bytes(tmp_path / "whole")
    assert calls > 30
    assert resumed > 10 // every


def test_the_command_line_says_where_it_goes_on(cli, forks, bert, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit = ["fit", data["toy"], "--encoder", bert, "--batch", 8, "--epochs", 10, "--precision", "fp32",
           "--checkpoint-minutes", 0]  # fmt: skip
    process = forks.start(*fit, "--out", "model", cwd=tmp_path, env=shell_env())
    assert process.stderr.readline().startswith("epoch 1/10")
    process.kill()
    process.communicate()
    again = cli(*fit, "--out", "model")
    assert again.code == 6
    fix = "Add --resume to continue it, or --overwrite to start over."
    assert again.err == f"berthead: model.fit: holds an interrupted fit. {fix}\n"
    other = cli(*fit, "--out", "model", "--resume", "--lr", "0.1")
    assert other.code == 2
    changed = "--lr was 0.0012 and is 0.1; --head-lr was 0.012 and is not given"
    assert other.err.startswith(
        f"berthead: --resume model.fit: {changed}. Use the same data and options as before. Give --overwrite"
    )
    resumed = cli(*fit, "--out", "model", "--resume")
    assert resumed.code == 0, resumed.err
    assert resumed.err.startswith("resumed after ")
    assert "epoch 1/10" not in resumed.err
    assert cli(*fit, "--out", "whole").code == 0
    assert all_bytes(tmp_path / "model") == all_bytes(tmp_path / "whole")
    assert names(tmp_path) == ["model", "whole"]


# In this process: what is written, and what is refused


class Killed(BaseException):
    """In place of a signal."""


@pytest.fixture
def cut(bert, data, tmp_path, monkeypatch):
    """A fit that has ended in the middle of its second epoch, and its options."""
    options = options_of("full", bert, data) | {"out": tmp_path / "model"}
    cut_at(monkeypatch, 8, options)
    return options


def cut_at(monkeypatch, step: int, options: dict) -> None:
    """Fit up to a step, from 1, of which nothing is done."""
    real, count = steps._passes, 0

    def passes(*args):
        nonlocal count
        count += 1
        if count == step:
            raise Killed
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "_passes", passes)
        with pytest.raises(Killed):
            fit_with(options)


def fit_with(options: dict, **more):
    options = options | more
    return berthead.fit(options.pop("data"), **options)


def test_a_checkpoint_is_a_safetensors_file_with_json(cut, tmp_path):
    assert names(tmp_path / "model.fit") == ["checkpoint.safetensors", "lock"]
    with safe_open(tmp_path / "model.fit" / "checkpoint.safetensors", framework="np") as file:
        said = json.loads(file.metadata()["fit"])
        kinds = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118 - it is no dict
    assert kinds == {"now", "best", "random", "adamw"} | ({"table"} if library.kernels() else set())
    assert (said["state"]["epoch"], said["state"]["step"], said["state"]["best_epoch"]) == (1, 3, 1)
    assert said["identity"]["--lr"] == 3e-3


@pytest.mark.parametrize("kind", daily(KINDS, *DAILY))
def test_cut_in_the_middle_of_an_epoch_and_resumed_a_fit_gives_the_same_bytes(kind, bert, data, tmp_path, monkeypatch):
    if kind == "bf16" and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor does not multiply bfloat16")
    options = options_of(kind, bert, data) | {"out": tmp_path / "model", "batch": 4}
    cut_at(monkeypatch, 8, options)
    assert (tmp_path / "model.fit" / "checkpoint.safetensors").exists()
    fit_with(options, resume=True)
    fit_with(options, out=tmp_path / "whole")
    assert all_bytes(tmp_path / "model") == all_bytes(tmp_path / "whole")


def test_a_resumed_fit_takes_only_the_steps_that_are_left(cut, tmp_path, monkeypatch):
    seen, real = [], steps._passes
    monkeypatch.setattr(steps, "_passes", lambda *args: seen.append(args[3].tolist()) or real(*args))
    resumed = fit_with(cut, resume=True)
    first, seen = seen, []
    monkeypatch.setattr(steps, "_passes", lambda *args: seen.append(args[3].tolist()) or real(*args))
    whole = fit_with(cut, out=tmp_path / "whole")
    assert first == seen[7:]
    assert resumed.info()["run"] == whole.info()["run"]


def test_before_the_first_step_there_is_nothing_to_resume(bert, data, tmp_path, monkeypatch):
    options = options_of("full", bert, data) | {"out": tmp_path / "model"}
    cut_at(monkeypatch, 1, options)
    assert names(tmp_path) == []
    assert fit_with(options, resume=True).info()["run"]["best_epoch"]
    assert names(tmp_path) == ["model"]


def test_what_ended_is_not_thrown_away_unasked(cut, tmp_path):
    with pytest.raises(OutputError, match=r"model.fit: holds an interrupted fit. Add resume=True .* or overwrite=True"):
        fit_with(cut)
    assert names(tmp_path / "model.fit") == ["checkpoint.safetensors", "lock"]
    new = fit_with(cut, overwrite=True, seed=1)
    assert new.info()["run"]["seed"] == 1
    assert names(tmp_path) == ["model"]


def changed_encoder(cut, folder, monkeypatch):
    copied = folder / "encoders" / Path(cut["encoder"]).name
    make_bert(copied, seed=3, num_hidden_layers=3)
    return {"encoder": str(copied)}


def renamed_encoder(cut, folder, monkeypatch):
    copied = folder / "other"
    copied.mkdir()
    for path in Path(cut["encoder"]).iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    return {"encoder": str(copied)}


def changed_tokenizer(cut, folder, monkeypatch):
    copied = folder / "encoders" / Path(cut["encoder"]).name
    copied.mkdir(parents=True)
    for path in Path(cut["encoder"]).iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    made = json.loads((copied / "tokenizer.json").read_text())
    numbers = made["model"]["vocab"]
    numbers["good"], numbers["bad"] = numbers["bad"], numbers["good"]
    (copied / "tokenizer.json").write_text(json.dumps(made))
    return {"encoder": str(copied)}


def changed_rows(cut, folder, monkeypatch):
    rows = toy_rows(3)
    rows[20]["text"] += " x"
    return {"data": str(write_csv(folder / "changed.csv", rows))}


def held_out_file(cut, folder, monkeypatch):
    return {"valid": str(write_csv(folder / "held-out.csv", toy_rows(1)))}


def newer_torch(cut, folder, monkeypatch):
    real = learn.versions
    monkeypatch.setattr(learn, "versions", lambda options: real(options) | {"torch": "99.0"})
    return {}


def other_kernels(cut, folder, monkeypatch):
    monkeypatch.setenv(library.SWITCH, "torch")
    return {}


REASONS = {
    "encoder": (changed_encoder, r"the encoder's sha256 was \w{12}… and is \w{12}…"),
    "encoder's name": (renamed_encoder, "the encoder was bert and is other"),
    "tokenizer": (changed_tokenizer, r"what is read of it was \w{12}… and is \w{12}…"),
    "a row": (changed_rows, r"the data was \w{12}… and is \w{12}…"),
    "held-out share": (lambda *_: {"valid": 0.5}, "the held-out data was 0.25 of it and is 0.5 of it"),
    "held-out rows": (held_out_file, r"the held-out data was 0.25 of it and is \w{12}…"),
    "versions": (newer_torch, r"versions was \{.*'torch': '[\d.]+.*'.* and is \{.*'torch': '99.0'"),
    "kernels": (other_kernels, r"kernels was \w+, torch's \w+ and is torch, torch's \w+"),
    "threads": (lambda *_: {"threads": 2}, "threads was 1 and is 2"),
    "--seed": (lambda *_: {"seed": 4}, "seed was 0 and is 4"),
    "--epochs": (lambda *_: {"epochs": 4}, "epochs was 3 and is 4"),
    "--adapt": (lambda *_: {"adapt": "top:1"}, "adapt was full and is top:1"),
    "--max-tokens": (lambda *_: {"max_tokens": 32}, "max_tokens was not given and is 32"),
    "--cache": (lambda cut, folder, _: {"cache": folder / "cache"}, "cache was not given and is given"),
    "columns": (lambda *_: {"text": "pair"}, r"columns was \{.*'text': 'text'.*\} and is \{.*'text': 'pair'"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_another_fit_is_refused_with_the_reason(reason, cut, tmp_path, monkeypatch, bert):
    change, words = REASONS[reason]
    if reason == "kernels" and library.chosen() == "torch":
        pytest.skip("this machine has no kernels of ours")
    before = all_bytes(tmp_path / "model.fit")
    with monkeypatch.context() as patch:
        changes = change(cut, tmp_path, patch)
        with pytest.raises(UsageError, match=words) as caught:
            fit_with(cut, resume=True, **changes)
    assert str(caught.value).startswith(f"resume=True {tmp_path / 'model.fit'}: ")
    assert str(caught.value).endswith("Give overwrite=True instead of resume=True to start over.")
    assert all_bytes(tmp_path / "model.fit") == before


def test_options_that_change_no_parameter_may_change(cut, tmp_path):
    resumed = fit_with(cut, resume=True, overwrite=True, checkpoint_minutes=10)
    whole = fit_with(cut, out=tmp_path / "whole")
    assert resumed.info()["parameters"] == whole.info()["parameters"]


def test_every_option_is_compared_or_known_not_to_matter():
    from dataclasses import fields

    from berthead.options import FitOptions

    assert {spec.name for spec in fields(FitOptions)} >= identity._NOT_COMPARED


def test_resume_needs_a_place(data, bert):
    with pytest.raises(UsageError, match="resume: needs out; expected the folder of the interrupted fit"):
        berthead.fit(data["toy"], encoder=bert, resume=True)


def test_a_broken_checkpoint_is_told(cut, tmp_path):
    path = tmp_path / "model.fit" / "checkpoint.safetensors"
    for content in (path.read_bytes()[:1000], b"", b"{}", b"\x80\x04\x95pickled"):
        path.write_bytes(content)
        with pytest.raises(
            OutputError, match=r"checkpoint.safetensors: cannot be read .*overwrite=True instead of resume=True"
        ):
            fit_with(cut, resume=True)
    assert fit_with(cut, overwrite=True).info()["run"]["best_epoch"]


def test_a_folder_that_holds_something_else_is_left_alone(bert, data, tmp_path):
    options = options_of("full", bert, data) | {"out": tmp_path / "model"}
    (tmp_path / "model.fit").mkdir()
    (tmp_path / "model.fit" / "thesis.txt").write_text("mine")
    for more in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(OutputError, match=r"model\.fit: holds other files"):
            fit_with(options, **more)
    assert names(tmp_path / "model.fit") == ["thesis.txt"]
    (tmp_path / "model.fit" / "thesis.txt").unlink()
    (tmp_path / "model.fit").rmdir()
    (tmp_path / "model.fit").write_text("mine")
    with pytest.raises(OutputError, match=r"model\.fit: is not a folder"):
        fit_with(options)


def test_two_fits_do_not_write_into_one_place(cut, tmp_path):
    with (
        Checkpoints(tmp_path / "model.fit", resume=True),
        pytest.raises(OutputError, match=r"model\.fit: is used by a fit that is still running"),
    ):
        fit_with(cut, resume=True)
    assert fit_with(cut, resume=True)


def test_a_model_that_stands_there_is_replaced_only_on_demand(cut, tmp_path):
    other = fit_with(cut, out=tmp_path / "other", epochs=1)
    other.save(tmp_path / "model")
    with pytest.raises(OutputError, match="model: holds a model already"):
        fit_with(cut, resume=True)
    assert fit_with(cut, resume=True, overwrite=True).info()["run"]["best_epoch"]
    assert len(berthead.load(tmp_path / "model").info()["run"]["epochs"]) == 3


def test_a_full_disk_ends_no_fit(bert, data, tmp_path, monkeypatch, capsys):
    import safetensors.torch

    real = safetensors.torch.save_file

    def save_file(tensors, path, **more):
        if "checkpoint" in str(path):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        return real(tensors, path, **more)

    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    options = options_of("full", bert, data) | {"out": tmp_path / "model", "quiet": False}
    fit_with(options)
    assert capsys.readouterr().err.count("the checkpoint could not be written (I/O error: No space left") == 1
    assert names(tmp_path) == ["model"]


def test_a_loss_that_is_not_finite_leaves_nothing_to_resume(bert, data, tmp_path, monkeypatch):
    options = options_of("full", bert, data) | {"out": tmp_path / "model"}
    real, count = steps._passes, 0

    def passes(*args):
        nonlocal count
        count += 1
        return real(*args) if count < 8 else float("nan")

    monkeypatch.setattr(steps, "_passes", passes)
    with pytest.raises(UsageError, match="loss is nan in epoch 2"):
        fit_with(options)
    assert names(tmp_path) == []


def test_checkpoints_come_as_often_as_is_asked_for(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    place = Checkpoints(tmp_path / "m.fit", minutes=2.0)
    with place:
        place.read({})
        now[0] = 119.0
        assert not place.is_due()
        assert place.is_due(epoch_ended=True)
        now[0] = 120.0
        assert place.is_due()
        place.write(Saved({}, {"a": torch.zeros(2)}), print)
        assert not place.is_due()
        now[0] += 4.0
        assert not place.is_due(epoch_ended=True)  # epochs of a second need none each
        now[0] += 1.0
        assert place.is_due(epoch_ended=True)
    assert not place.for_reading().is_due(epoch_ended=True)


def test_rows_and_numbers_come_back_as_they_were(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int64), "c": torch.zeros(0)}
    shared = torch.randn(4, 4)
    tensors |= {"d": shared, "e": shared, "f": shared.T, "g": torch.tensor(3.0)}
    state = {"nan": float("nan"), "inf": -float("inf"), "third": 1 / 3, "large": 2**127 + 1}
    with Checkpoints(tmp_path / "m.fit") as place:
        place.read({"x": 1})
        place.write(Saved(state, tensors), print)
    with Checkpoints(tmp_path / "m.fit", resume=True) as place:
        found = place.read({"x": 1})
    assert np.isnan(found.state.pop("nan"))
    assert found.state == {name: value for name, value in state.items() if name != "nan"}
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
