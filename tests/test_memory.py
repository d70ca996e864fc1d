"""A batch that does not fit into memory is computed in smaller parts: the same steps, and nothing counted twice."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from conftest import make_bert, toy_rows

import berthead
from berthead.errors import MachineError
from berthead.kernels import library
from berthead.kernels import training_passes as passes
from berthead.train import memory, modes, steps
from berthead.train.memory import is_out_of_memory
from berthead.train.optim import Optimiser


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> str:
    """A tiny BERT without dropout: however a batch is divided, the step is the same but for rounding."""
    folder = tmp_path_factory.mktemp("memory") / "calm"
    return str(make_bert(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


def rows() -> list[dict[str, str]]:
    return [row | {"text": f"{row['text']} " * (1 + number % 4)} for number, row in enumerate(toy_rows(2))]


def fitted(encoder: str, **more):
    options = {"encoder": encoder, "epochs": 2, "batch": 14, "lr": 3e-3, "valid": 0.25, "threads": 1, "quiet": True,
               "precision": "fp32"}  # fmt: skip
    return berthead.fit(rows(), **options | more)


def compare(one, other, atol=2e-5):
    states = [model.artifact.model.state_dict() for model in (one, other)]
    for name, tensor in states[0].items():
        if not name.endswith("qkv.bias"):  # the gradient of keys' biases is rounding, which AdamW enlarges
            torch.testing.assert_close(
                tensor, states[1][name], atol=atol, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
            )


ERRORS = {
    "numpy and our kernels": MemoryError("no memory for the gradients of a pass"),
    "a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "the allocator": RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate "
                                  "memory: you tried to allocate 4294967296 bytes. Error code 12"),
    "the allocator of other systems": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
    "C++": RuntimeError("std::bad_alloc"),
}  # fmt: skip


def test_other_errors_are_not_taken_for_it():
    assert all(map(is_out_of_memory, ERRORS.values()))
    for error in (RuntimeError("Connection closed by peer"), ValueError("out of memory"), KeyError("memory")):
        assert not is_out_of_memory(error)


def limited(monkeypatch, most: int, error: Exception, *, backward: bool) -> list[int]:
    """Passes of more tokens fail, on the way there or halfway back; the tokens of all that did not."""
    passed, real = [], modes.FullModel._hidden

    def fail(grad):
        raise error

    def hidden(self, pack):
        if len(pack.ids) > most and not backward:
            raise error
        vectors = real(self, pack)
        if len(pack.ids) > most:
            vectors.register_hook(fail)  # the head has its gradients, the encoder has not
        else:
            passed.append(len(pack.ids))
        return vectors

    monkeypatch.setattr(modes.FullModel, "_hidden", hidden)
    return passed


@pytest.mark.parametrize(("kind", "backward"), [*((kind, False) for kind in ERRORS), ("a GPU", True)])
def test_the_step_is_that_of_the_whole_batch(kind, backward, calm, monkeypatch):
    whole = fitted(calm)
    assert not [line for line in whole.warnings if "memory" in line]
    passed = limited(monkeypatch, 60, ERRORS[kind], backward=backward)
    divided = fitted(calm)
    assert max(passed) <= 60
    notes = [line for line in divided.warnings if "the memory was too small" in line]
    assert len(notes) == 2  # of some 150 tokens
    assert notes[-1].endswith("are computed at once; the steps stay the same")
    compare(whole, divided)
    one, other = (model.info()["run"] for model in (whole, divided))
    for before, after in zip(one["epochs"], other["epochs"], strict=True):
        assert before == pytest.approx(after, rel=1e-4)
    assert {**one, "epochs": 0, "metrics": 0, "baselines": 0, "gate": 0} == {
        **other, "epochs": 0, "metrics": 0, "baselines": 0, "gate": 0}  # fmt: skip


@pytest.mark.parametrize("adapt", ["full", "lora:2"])
def test_no_gradient_counts_twice(adapt, calm, monkeypatch):
    """The second part of a batch fails on its way back, when the first has left its gradients."""
    seen: list[torch.Tensor] = []

    def keep(optimiser, share):
        grads = [one.grad for one in optimiser.named.values() if one.grad is not None]
        grads += [optimiser.table.embedding.weight.grad.to_dense()] if optimiser.table else []
        seen.append(torch.cat([grad.flatten() for grad in grads]))

    monkeypatch.setattr(Optimiser, "step", keep)
    monkeypatch.setattr(modes, "MICRO_TOKENS", 100)
    fitted(calm, adapt=adapt, epochs=1, valid=0, batch=28)
    real, count = modes.FullModel._hidden, 0

    def hidden(self, pack):
        nonlocal count
        count += 1
        vectors = real(self, pack)
        if count == 2:
            vectors.register_hook(lambda grad: (_ for _ in ()).throw(MemoryError()))
        return vectors

    monkeypatch.setattr(modes.FullModel, "_hidden", hidden)
    fitted(calm, adapt=adapt, epochs=1, valid=0, batch=28)
    assert count > 4
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], seen[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kernels", ["ours", "torch"])
def test_what_is_drawn_is_drawn_again(kernels, tiny_bert, monkeypatch):
    """With dropout and windows: a fit that is short of memory is one with smaller parts, bit for bit."""
    if kernels == "torch":
        monkeypatch.setenv(library.SWITCH, "torch")
    long = [row | {"text": f"{row['text']} " * 40} for row in toy_rows(1)]
    options = {"encoder": str(tiny_bert), "epochs": 1, "batch": 5, "lr": 3e-3, "valid": 0, "threads": 1, "quiet": True,
               "precision": "fp32", "max_tokens": 8}  # fmt: skip
    with monkeypatch.context() as patch:
        limited(patch, 200, MemoryError(), backward=True)
        short = berthead.fit(long, **options)
    notes = [line for line in short.warnings if "the memory was too small" in line]
    tokens = int(notes[-1].split("at most ")[1].split()[0].replace(",", ""))
    monkeypatch.setattr(modes, "MICRO_TOKENS", tokens)
    other = berthead.fit(long, **options)
    assert short.info()["parameters"] == other.info()["parameters"]
    assert short.info()["run"] == other.info()["run"]


def test_one_row_that_does_not_fit_is_an_error_that_names_it(calm, monkeypatch, tmp_path):
    limited(monkeypatch, 12, MemoryError(), backward=False)
    with pytest.raises(
        MachineError, match=r"row \d+: the memory is too small for a row of \d+ tokens?\. Give .* max_tok"
    ):
        fitted(calm, out=tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_pass_is_an_error_too(calm, monkeypatch):
    def step(self, share):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")

    monkeypatch.setattr(Optimiser, "step", step)
    with pytest.raises(MachineError, match=r"fit: is out of memory \(Default.* 1 byte\). Give more memory") as caught:
        fitted(calm)
    assert caught.value.exit_code == 1


def test_other_errors_pass(calm, monkeypatch):
    def hidden(self, pack):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(modes.FullModel, "_hidden", hidden)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fitted(calm)


def test_a_resumed_fit_knows_what_fits(calm, monkeypatch, tmp_path):
    real, count = steps._passes, 0
    passed = limited(monkeypatch, 60, MemoryError(), backward=False)

    def passes(*args):
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "_passes", passes)
        with pytest.raises(berthead.errors.Interrupted):
            fitted(calm, out=tmp_path / "model")
    before = len(passed)
    failures = []
    monkeypatch.setattr(memory, "give_back", lambda: failures.append(1))
    resumed = fitted(calm, out=tmp_path / "model", resume=True)
    assert 0 < before < len(passed)
    assert not failures
    assert len([line for line in resumed.warnings if "memory" in line]) == 2


@pytest.mark.skipif(not library.kernels(), reason="this machine has no kernels of ours")
def test_memory_that_is_kept_for_the_next_pass_is_given_back(calm):
    fitted(calm)
    assert passes.Pass._tapes
    memory.give_back()
    assert not passes.Pass._tapes


PROGRAM = """
import json, resource, sys
from pathlib import Path
import berthead
from berthead.train import steps

real, limits = steps._passes, [int(limit) * 2**20 for limit in sys.argv[2:]]
def passes(*args):
    if limits:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + limits.pop(),) * 2)
    return real(*args)
steps._passes = passes
rows = json.load(sys.stdin)
model = berthead.fit(rows, encoder=sys.argv[1], batch=256, epochs=1, valid=0, threads=1, precision="fp32", quiet=True)
print(json.dumps([model.warnings, model.info()["run"]["epochs"][0]["train_loss"]]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are set as Linux sets them")
@pytest.mark.skipif(not library.kernels(), reason="this machine has no kernels of ours")
def test_under_a_limit_of_the_system_a_fit_goes_on(shell, tmp_path):
    # Of our kernels alone: how much address space torch's allocator and threads hold differs from run to run.
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2}
    calm = make_bert(tmp_path / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    data = json.dumps([row | {"text": f"{row['text']} " * 6} for row in toy_rows(20)])
    found = []
    for limits in ((), ("200",)):
        ran = shell(calm, *limits, program=PROGRAM, stdin=data)
        assert ran.code == 0, ran.err
        found.append(json.loads(ran.out))
    notes = [[line for line in warnings if "the memory was too small" in line] for warnings, _ in found]
    assert not notes[0]
    assert notes[1]
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5)
