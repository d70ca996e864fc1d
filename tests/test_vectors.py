"""Vectors of a frozen part: computed once, the same fit as without, a file that is reused or gone."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_bert, toy_rows, tries
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_train import encoded, logits_of, problem, same, settings, spied, state_of
from torch import nn
from toy_tasks import fit_task, span_rows, tag_rows

import berthead
from berthead.errors import OutputError, UsageError
from berthead.kernels import library
from berthead.model.adapt import Adapt, adapt
from berthead.model.attention import attention
from berthead.model.checkpoint import read_checkpoint
from berthead.model.model import Model
from berthead.model.tensors import TensorPack
from berthead.text.packing import pack
from berthead.train import cached_features as vectors
from berthead.train import modes
from berthead.train.loop import fit_model


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A tiny BERT of four blocks with dropout."""
    return make_bert(tmp_path_factory.mktemp("encoders") / "four", num_hidden_layers=4)


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The temporary folder of this test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def without(monkeypatch):
    """No vectors are kept: everything is computed in every step."""
    monkeypatch.setattr(modes, "frozen_layers", lambda model: 0)


def fitted(folder, rows=None, **options):
    plain = {"encoder": str(folder), "epochs": 3, "batch": 8, "lr": 3e-3, "valid": 0.25, "threads": 1,
             "precision": "fp32", "quiet": True}  # fmt: skip
    return berthead.fit(rows or toy_rows(2), **plain | options)


def losses_of(run):
    """The losses of the epochs, fitted and held out."""
    return [epoch[name] for epoch in run["epochs"] for name in ("train_loss", "loss") if name in epoch]


# The encoder in two parts


@given(cut=st.integers(0, 4), seed=st.integers(0, 99), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5))
@hypothesis_settings(deadline=None, max_examples=tries(25))
def test_one_part_after_the_other_is_the_encoder(four, cut, seed, lengths):
    encoder = read_checkpoint(str(four)).encoder()
    _, _, fold, _ = problem(four, held_out=0)
    rows = [row for row in encoded(fold) for _ in range(1)][: len(lengths)]
    tensors = TensorPack.from_pack(pack(rows, np.arange(len(rows))))
    lower, upper = encoder.part(0, cut), encoder.part(cut, 4)
    upper.embeddings = nn.Module()
    with torch.no_grad():
        hidden = lower(tensors)
        upper.embeddings.forward = lambda pack: hidden
        assert torch.equal(upper(tensors), encoder(tensors))
        assert torch.equal(hidden, encoder.hidden_states(tensors)[cut])
    assert [len(part.blocks) for part in (lower, upper, encoder)] == [cut, 4 - cut, 4]
    assert type(encoder.embeddings).__name__ == "Embeddings"
    assert all(one is two for one, two in zip([*lower.blocks, *upper.blocks], encoder.blocks, strict=True))


# The same fit


@pytest.mark.parametrize("unfreeze", [False, True])
@pytest.mark.parametrize("strategy", ["top:1", "top:3"])
def test_every_step_is_that_of_a_fit_that_computes_everything(four, monkeypatch, strategy, unfreeze):
    losses, scores, logits = [], [], []
    for kept in (True, False):
        with monkeypatch.context() as patch:
            if not kept:
                without(patch)
            model, made, train, valid = problem(four, strategy=strategy, pooling="mean", dropout=0.1)
            calls = spied(patch, "_passes")
            torch.manual_seed(2)
            history = fit_model(model, made, train, valid, settings(epochs=4, unfreeze=unfreeze), quiet=True)
            assert (history.kept is not None) is kept
            losses.append([total / len(args[3]) for args, total in calls])
            scores.append([epoch["loss"] for epoch in history.epochs])
            logits.append(logits_of(model, valid))
    assert len(losses[0]) == 12
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-3)


@pytest.mark.parametrize("task", ["classify", "tag", "span"])
def test_tasks_and_windows_are_fitted_as_without(task, four, monkeypatch):
    rows = {
        "classify": [row | {"text": f"{row['text']} " * 6} for row in toy_rows(1)],
        "tag": tag_rows(24),
        "span": span_rows(24),
    }[task]
    runs = []
    for kept in (True, False):
        if not kept:
            without(monkeypatch)
        runs.append(fitted(four, rows, task=task, adapt="top:2", max_tokens=16).info()["run"])
        assert ("kept" in runs[-1]) is kept
    assert losses_of(runs[0]) == pytest.approx(losses_of(runs[1]), rel=1e-3)


def test_the_frozen_layers_compute_each_row_once(four, monkeypatch):
    model, made, train, valid = problem(four, strategy="top:1", pooling="mean")
    lower = []
    monkeypatch.setenv(library.SWITCH, "torch")  # whose blocks can be watched
    for block in list(model.encoder.blocks)[:3]:
        block.register_forward_hook(lambda *args: lower.append(len(args[1][0])))
    fit_model(model, made, train, valid, settings(epochs=5), quiet=True)
    different = {row.ids.tobytes(): len(row.ids) for row in encoded(train) + encoded(valid)}
    # Each block reads each row once, and one row more that tells how wide vectors are.
    assert sum(different.values()) * 3 <= sum(lower) <= (sum(different.values()) + min(different.values())) * 3


def test_a_single_epoch_keeps_nothing(four):
    model, made, train, valid = problem(four, strategy="top:1", pooling="mean")
    assert fit_model(model, made, train, valid, settings(epochs=1), quiet=True).kept is None


class Bare(nn.Module):
    """A head without pool and classify."""

    level = "row"

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(32, 2)

    def forward(self, hidden, pack):
        return self.out(hidden[pack.starts])


def test_a_frozen_encoder_under_any_head_is_computed_once(four, monkeypatch):
    states = []
    for kept in (True, False):
        if not kept:
            without(monkeypatch)
        _, made, train, valid = problem(four)
        torch.manual_seed(4)
        model = Model(read_checkpoint(str(four)).encoder(), Bare())
        adapt(model, Adapt.parse("frozen"))
        history = fit_model(model, made, train, valid, settings(), quiet=True)
        assert (history.kept or {}).get("layers") == (4 if kept else None)
        states.append(state_of(model.head))
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=1e-4, rtol=0)


# The file


def test_without_a_cache_nothing_is_left(four, temporary):
    model = fitted(four, adapt="top:1")
    kept = model.info()["run"]["kept"]
    assert (kept["dtype"], kept["layers"]) == ("float32", 3)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("strategy", ["top:2", "frozen"])
def test_a_cache_is_reused_by_other_seeds_and_sweeps(four, strategy, tmp_path, temporary, monkeypatch):
    cache = tmp_path / "deep" / "cache"
    plain = fitted(four, adapt=strategy)
    cold = fitted(four, adapt=strategy, cache=str(cache))
    (file,) = cache.iterdir()
    assert file.suffix == ".f32"
    assert len(file.stem) == 64
    written = file.read_bytes()
    computed = spied_keep(monkeypatch)
    warm = fitted(four, adapt=strategy, cache=str(cache))
    fitted(four, adapt=strategy, cache=str(cache), seed=5, lr=1e-3, epochs=2)
    fitted(four, adapt=strategy, cache=str(cache), valid=0.5, batch=4, out=tmp_path / "m")
    assert computed == []
    assert [file.read_bytes()] == [written]
    assert list(temporary.iterdir()) == []
    assert same(state_of(cold.artifact.model), state_of(warm.artifact.model))
    assert cold.info() == warm.info()
    for name, tensor in plain.artifact.model.state_dict().items():
        torch.testing.assert_close(tensor, warm.artifact.model.state_dict()[name], atol=1e-5, rtol=0)
    assert str(cache) not in (tmp_path / "m" / "berthead.json").read_text(encoding="utf-8")


def spied_keep(monkeypatch):
    """Files that are written from now on."""
    calls, real = [], vectors._written

    def written(*args, **options):
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(vectors, "_written", written)
    return calls


def test_other_weights_rows_blocks_poolings_and_threads_have_files_of_their_own(four, tmp_path):
    cache = tmp_path / "cache"
    other = make_bert(tmp_path / "other", num_hidden_layers=4, seed=8)
    cases = [
        {"adapt": "top:2"}, {"adapt": "top:1"}, {"adapt": "frozen", "pooling": "mean"},
        {"adapt": "frozen", "pooling": "cls"}, {"adapt": "top:2", "encoder": str(other)},
        {"adapt": "top:2", "rows": toy_rows(1)}, {"adapt": "top:2", "threads": 2},
        {"adapt": "top:2", "max_tokens": 5},
    ]  # fmt: skip
    for number, case in enumerate(cases, 1):
        fitted(four, cache=str(cache), **case)
        assert len(list(cache.iterdir())) == number, case
    fitted(four, cache=str(cache), adapt="top:2", pooling="cls")  # the blocks below do not know of it
    assert len(list(cache.iterdir())) == len(cases)


@pytest.mark.parametrize("task", ["tag", "span", "joint"])
def test_token_tasks_are_kept_too(task, four, tmp_path):
    rows = {"tag": tag_rows, "span": span_rows, "joint": tag_rows}[task](12)
    states = []
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        options = {"cache": str(cache)} if cache else {}
        model = fit_task(four, task, rows, adapt="frozen", epochs=3, **options)
        states.append(state_of(model.artifact.model.head))
        assert ("kept" in model.info()["run"]) is bool(cache)
    assert same(states[1], states[2])
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=1e-4, rtol=1e-4)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("strategy", ["top:2", "frozen"])
@pytest.mark.parametrize(
    "spoil",
    {
        "cut": lambda content: content[:-4],
        "longer": lambda content: content + b"0",
        "a bit": lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
        "a bit of the hash": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        "zeros": lambda content: bytes(len(content)),
        "as before it was hashed": lambda content: content[:-32],
        "empty": lambda content: b"",
    }.values(),
)
def test_a_file_that_was_changed_is_computed_again(strategy, spoil, four, tmp_path):
    whole = fitted(four, adapt=strategy, cache=str(tmp_path))
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    assert content[-32:] == hashlib.sha256(content[:-32]).digest()
    file.write_bytes(spoil(content))
    again = fitted(four, adapt=strategy, cache=str(tmp_path))
    assert file.read_bytes() == content
    assert same(state_of(whole.artifact.model), state_of(again.artifact.model))


@pytest.mark.parametrize("strategy", ["top:2", "frozen"])
def test_what_is_too_large_is_kept_in_bfloat16(four, strategy, tmp_path, monkeypatch):
    exact = fitted(four, adapt=strategy, cache=str(tmp_path))
    monkeypatch.setattr(vectors, "MOST_CACHED_BYTES", 1000)
    rounded = fitted(four, adapt=strategy, cache=str(tmp_path))
    assert rounded.info()["run"]["kept"]["dtype"] == "bfloat16"
    sizes = {path.suffix: path.stat().st_size - 32 for path in tmp_path.iterdir()}  # behind them stands their sha256
    assert sizes[".f32"] == 2 * sizes[".bf16"]
    losses = [[epoch["train_loss"] for epoch in one.info()["run"]["epochs"]] for one in (exact, rounded)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    assert rounded.verify() < 1e-5


@pytest.mark.parametrize("strategy", ["top:2", "frozen"])
def test_without_room_it_is_computed_anew(four, strategy, tmp_path, monkeypatch):
    usual = fitted(four, adapt=strategy)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10, 9, 1))
    model = fitted(four, adapt=strategy, cache=str(tmp_path))
    assert "kept" not in model.info()["run"]
    assert list(tmp_path.iterdir()) == []
    assert losses_of(usual.info()["run"]) == pytest.approx(losses_of(model.info()["run"]), rel=1e-3)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_file_that_could_not_be_finished_is_not_left(four, tmp_path, monkeypatch, error):
    def parts(*args):
        yield b"1234"
        raise error

    monkeypatch.setattr(vectors, "_parts", parts)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt) as told:
        fitted(four, adapt="top:2", cache=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    if isinstance(error, OSError):
        assert "cannot be written (No space left on device)" in str(told.value)
        assert "--cache" in told.value.fix


def test_a_cache_that_cannot_be_a_folder_is_refused(four, tmp_path):
    (tmp_path / "file").write_text("")
    for name in (tmp_path / "file", tmp_path / "file" / "deep", "a\0b"):
        with pytest.raises(UsageError, match="cache") as error:
            fitted(four, adapt="top:2", cache=str(name))
        assert "cannot be created" in error.value.saw


def test_attention_reads_no_token_numbers():
    # The places of vectors stand where token numbers were: nothing above the embeddings may read those.
    assert "ids" not in attention.__code__.co_names
