"""A fit on another device: what can be shown without one, and the fit itself where there is a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_bert, needs_gpus, toy_rows

import berthead
from berthead.engine.cpu import CpuEngine, DeviceEngine, find_device
from berthead.errors import UsageError
from berthead.model.units import packs
from berthead.options import FitOptions
from berthead.records import Example
from berthead.text.layout import Layout
from berthead.train import modes

CPU = torch.device("cpu")
QUICK = {"epochs": 4, "batch": 8, "lr": 2e-3, "valid": "0.2", "threads": 1, "precision": "fp32", "quiet": True}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    # Without dropout, two devices draw no different random numbers.
    folder = tmp_path_factory.mktemp("device") / "bert"
    return str(make_bert(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_an_error_before_anything_is_fitted(bert):
    with pytest.raises(UsageError, match='device="cuda": torch sees no CUDA device; expected cpu') as error:
        berthead.fit(toy_rows(2), encoder=bert, device="cuda", **QUICK)
    assert error.value.exit_code == 2


def test_the_cpu_is_the_default_device():
    assert find_device(FitOptions().device) == CPU


def test_the_device_engine_gives_the_engines_logits_and_leaves_the_model_as_it_was(bert):
    model = berthead.fit(toy_rows(2), encoder=bert, **QUICK).artifact.model.train()
    fitted = berthead.fit(toy_rows(2), encoder=bert, **QUICK)
    examples = [Example(row["text"]) for row in toy_rows(2)]
    inputs = fitted.artifact.task.encode(fitted.artifact.tokenizer, examples, fitted.artifact.policy)
    pack = next(packs(Layout(inputs).rows, 512))
    plain = DeviceEngine(model, CPU)
    np.testing.assert_allclose(plain.logits(pack), CpuEngine(model).logits(pack), atol=1e-5)
    np.testing.assert_allclose(plain.pooled(pack), CpuEngine(model).pooled(pack), atol=1e-5)
    assert model.training


@pytest.mark.parametrize("adapt", ["full", "frozen"])
def test_a_fit_scored_by_the_device_engine_is_the_same_fit(bert, monkeypatch, adapt):
    usual = berthead.fit(toy_rows(2), encoder=bert, adapt=adapt, **QUICK)
    monkeypatch.setattr(modes, "engine_for", lambda model, device, precision="fp32": DeviceEngine(model, device))
    other = berthead.fit(toy_rows(2), encoder=bert, adapt=adapt, **QUICK)
    for name, tensor in usual.artifact.model.state_dict().items():
        torch.testing.assert_close(other.artifact.model.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)


@needs_gpus()
@pytest.mark.parametrize("adapt", ["full", "frozen"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_fit_on_a_gpu_learns_what_a_fit_on_the_cpu_learns(bert, tmp_path, adapt, precision):
    options = QUICK | {"epochs": 20, "precision": precision}
    usual = berthead.fit(toy_rows(4), encoder=bert, adapt=adapt, **options)
    other = berthead.fit(toy_rows(4), encoder=bert, adapt=adapt, device="cuda", out=tmp_path / "model", **options)
    assert all(not tensor.is_cuda for tensor in other.artifact.model.state_dict().values())
    assert berthead.load(tmp_path / "model").verify() < 1e-4
    texts = [row["text"] for row in toy_rows(4)]
    answers = [[one.answer for one in model.predict(texts)] for model in (usual, other)]
    assert np.mean(np.array(answers[0]) == np.array(answers[1])) > 0.9


@needs_gpus()
@pytest.mark.parametrize("adapt", ["full", "top:1", "lora:4"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_fit_on_a_gpu_learns_with_dropout(tiny_bert, adapt, precision):
    """Other numbers are drawn than on the CPU, so what is compared is what was learnt."""
    options = QUICK | {"epochs": 20, "precision": precision, "encoder": str(tiny_bert), "adapt": adapt}
    rows = toy_rows(4)
    fitted = berthead.fit(rows, device="cuda", **options)
    answers = [one.answer for one in fitted.predict([row["text"] for row in rows])]
    assert np.mean([answer == row["label"] for answer, row in zip(answers, rows, strict=True)]) > 0.9


@needs_gpus()
def test_the_callers_random_numbers_on_a_gpu_are_left_as_they_were(bert):
    torch.cuda.manual_seed(7)
    wanted = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(7)
    berthead.fit(toy_rows(2), encoder=bert, device="cuda", **QUICK)
    assert torch.equal(torch.rand(3, device="cuda"), wanted)


@needs_gpus()
@pytest.mark.parametrize("adapt", ["frozen", "top:1"])
def test_what_a_gpu_computed_once_is_not_taken_for_the_cpus(bert, tmp_path, adapt):
    for device in ("cpu", "cuda", "cuda"):
        berthead.fit(toy_rows(2), encoder=bert, adapt=adapt, cache=str(tmp_path / "kept"), device=device, **QUICK)
    assert len(list((tmp_path / "kept").iterdir())) == 2
