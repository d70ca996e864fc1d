"""Training through kernels of our own: the plain model's vectors and gradients, and dropout that is what it says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import make_bert, toy_rows
from test_engine import LENGTHS, a_pack

import berthead
from berthead.kernels import library
from berthead.kernels import training as kernels
from berthead.model import lora
from berthead.model.checkpoint import read_checkpoint
from berthead.model.encoder import Encoder
from berthead.model.heads import RowHead
from berthead.model.model import Model
from berthead.model.tensors import TensorPack

pytestmark = pytest.mark.skipif(not library.kernels(), reason="this machine has no kernels of ours")
CPU = torch.device("cpu")


@pytest.fixture(params=library.kernels())
def each_kernel(request, monkeypatch) -> str:
    monkeypatch.setenv(library.SWITCH, request.param)
    return request.param


def an_encoder(folder, **config) -> Encoder:
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return read_checkpoint(str(make_bert(folder, **(quiet | config)))).encoder().train()


def vectors_and_gradients(encoder, function, weights):
    encoder.zero_grad()
    vectors = function()
    (vectors * weights).sum().backward()
    return vectors.detach(), {
        name: one.grad.clone() for name, one in encoder.named_parameters() if one.grad is not None
    }


def assert_near(found, wanted, share):
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        assert float((found[name] - one).abs().max()) <= share * max(1.0, float(one.abs().max())), name


WANTED = {"all": None, "first": "first", "some": [2, 3, 49, 60, 123], "one": [7]}


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_vectors_and_gradients_are_the_plain_models(tmp_path, each_kernel, activation, wanted):
    encoder, pack = an_encoder(tmp_path / "bert", hidden_act=activation), TensorPack.from_pack(a_pack())
    read = {"first": pack.starts}.get(wanted) if wanted in ("all", "first") else torch.tensor(WANTED[wanted])
    weights = torch.randn(len(pack.ids), 32, generator=torch.Generator().manual_seed(0))
    if read is not None:
        weights = torch.zeros_like(weights).index_copy(0, read, weights[read])
    plain, gradients = vectors_and_gradients(encoder, lambda: encoder(pack), weights)
    for count in (1, 3):
        torch.set_num_threads(count)
        found = vectors_and_gradients(encoder, lambda: kernels.hidden(encoder, pack, "fp32", read), weights)
        some = slice(None) if read is None else read
        torch.testing.assert_close(found[0][some], plain[some], atol=1e-5, rtol=0)
        assert_near(found[1], gradients, 2e-5)


@pytest.mark.parametrize("sizes", [
    {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 52},
    {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 128},
    {"hidden_size": 96, "num_attention_heads": 2, "intermediate_size": 100},
])  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_sizes_that_no_tile_fits(tmp_path, each_kernel, sizes, first):
    encoder, pack = an_encoder(tmp_path / "bert", **sizes), TensorPack.from_pack(a_pack([33, 1, 40, 2]))
    read = pack.starts if first else None
    weights = torch.randn(len(pack.ids), sizes["hidden_size"], generator=torch.Generator().manual_seed(0))
    if first:
        weights = torch.zeros_like(weights).index_copy(0, pack.starts, weights[pack.starts])
    _, gradients = vectors_and_gradients(encoder, lambda: encoder(pack), weights)
    _, found = vectors_and_gradients(encoder, lambda: kernels.hidden(encoder, pack, "fp32", read), weights)
    assert_near(found, gradients, 2e-5)


@pytest.mark.parametrize("sizes", [
    {},
    {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256},
    {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 192},
    {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 52},
    {"hidden_size": 96, "num_attention_heads": 2, "intermediate_size": 100},
], ids=["tiny", "heads of 32", "heads of 64", "no tile fits", "few tiles fit"])  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_bfloat16_is_near(tmp_path, each_kernel, sizes, first):
    if not library.has_bf16(each_kernel):
        pytest.skip(f"{each_kernel} multiply no bfloat16")
    encoder, pack = an_encoder(tmp_path / "bert", **sizes), TensorPack.from_pack(a_pack([64, 33, 32, 31, 17, 1]))
    read = pack.starts if first else None
    weights = torch.randn(len(pack.ids), sizes.get("hidden_size", 32), generator=torch.Generator().manual_seed(0))
    if first:
        weights = torch.zeros_like(weights).index_copy(0, pack.starts, weights[pack.starts])
    plain, gradients = vectors_and_gradients(encoder, lambda: encoder(pack), weights)
    vectors, found = vectors_and_gradients(encoder, lambda: kernels.hidden(encoder, pack, "bf16", read), weights)
    some = slice(None) if read is None else read
    assert 1e-6 < float((vectors - plain)[some].abs().max()) < 5e-2
    for name, one in gradients.items():
        if float(one.norm()) > 1e-3:  # keys' biases change nothing: their gradients are rounding
            assert float(torch.cosine_similarity(found[name].flatten(), one.flatten(), dim=0)) > 0.999, name


def test_what_does_not_learn_gets_no_gradient(tmp_path):
    encoder, pack = an_encoder(tmp_path / "bert"), TensorPack.from_pack(a_pack())
    encoder.requires_grad_(False)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name.startswith("blocks.1.") and name.endswith("bias"))
    weights = torch.randn(len(pack.ids), 32)
    _, gradients = vectors_and_gradients(encoder, lambda: encoder(pack), weights)
    _, found = vectors_and_gradients(encoder, lambda: kernels.hidden(encoder, pack, "fp32"), weights)
    assert set(found) == {name for name, one in encoder.named_parameters() if one.requires_grad}
    assert_near(found, gradients, 2e-5)


# --- dropout ---


SHARES = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}


@pytest.mark.parametrize("read", ["all", "first"])
def test_gradients_through_dropout_are_the_slopes_of_the_function(tmp_path, each_kernel, read):
    """With the seed fixed dropout is a function as any other: its gradient predicts what a small step changes."""
    encoder, pack = an_encoder(tmp_path / "bert", **SHARES), TensorPack.from_pack(a_pack())
    encoder.embeddings.eval()
    wanted = pack.starts if read == "first" else None
    weights = torch.randn(len(pack.ids), 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value() -> torch.Tensor:
        torch.manual_seed(7)
        return (kernels.hidden(encoder, pack, "fp32", wanted).double() * weights).sum()

    encoder.zero_grad()
    value().backward()
    for name, parameter in encoder.named_parameters():
        if parameter.grad is None or float(parameter.grad.norm()) < 1e-2:
            continue
        direction = parameter.grad / parameter.grad.norm()
        with torch.no_grad():
            step = 1e-3
            parameter.add_(direction, alpha=step)
            above = value()
            parameter.sub_(direction, alpha=2 * step)
            below = value()
            parameter.add_(direction, alpha=step)
        assert float(above - below) / (2 * step) == pytest.approx(float(parameter.grad.norm()), rel=2e-2), name


def test_dropout_keeps_its_share_and_the_mean(tmp_path, each_kernel):
    """Only the last thing added is dropped: what remains differs from the whole by its share and factor."""
    encoder = an_encoder(tmp_path / "bert", num_hidden_layers=1, **SHARES)
    block = encoder.blocks[0]
    encoder.embeddings.eval()
    block.attention.eval()
    block.attention_dropout.eval()
    pack = TensorPack.from_pack(a_pack([64] * 20))
    with torch.no_grad():
        # The norm hands on what it reads: rows of mean 0 and variance 1 would hide the factor.
        block.mlp.down.weight.zero_()
        block.mlp.down.bias.fill_(50.0)
        block.mlp_norm.weight.fill_(1.0)
        block.mlp_norm.bias.zero_()
        vectors = kernels.hidden(encoder, pack, "fp32")
    kept = vectors > 0  # 62.5 or 0, before the norm
    assert kept.float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert kept.float().mean(0).numpy() == pytest.approx(np.full(32, 0.8), abs=0.06)
    # Neighbours are dropped independently.
    pairs = (kept[:, 1:] & kept[:, :-1]).float().mean().item(), (kept[1:] & kept[:-1]).float().mean().item()
    assert pairs == pytest.approx((0.64, 0.64), abs=0.015)
    with torch.no_grad():
        other = kernels.hidden(encoder, pack, "fp32") > 0
    assert (kept & other).float().mean().item() == pytest.approx(0.64, abs=0.015)  # each pass draws anew


def test_dropout_of_attention_weights_keeps_their_mean(tmp_path, each_kernel):
    """Averaged over many draws, vectors of one block are near those without dropout of the weights."""
    encoder, pack = an_encoder(tmp_path / "bert", num_hidden_layers=1), TensorPack.from_pack(a_pack([12, 5]))
    with torch.no_grad():
        whole = kernels.hidden(encoder, pack, "fp32")
        encoder.blocks[0].attention.dropout = 0.1
        draws = torch.stack([kernels.hidden(encoder, pack, "fp32") for _ in range(300)])
    assert float(draws.std(0).max()) > 0.01
    assert float((draws.mean(0) - whole).abs().max()) < 0.15 * float(whole.std())


def test_passes_depend_on_the_seed_alone(tmp_path):
    encoder, pack = an_encoder(tmp_path / "bert", **SHARES), TensorPack.from_pack(a_pack())

    def drawn(seed: int, count: int) -> torch.Tensor:
        torch.set_num_threads(count)
        torch.manual_seed(seed)
        return kernels.hidden(encoder, pack, "fp32").detach()

    assert torch.equal(drawn(1, 1), drawn(1, 3))
    assert not torch.equal(drawn(1, 1), drawn(2, 1))


# --- what is taught, and fits ---


def test_who_is_taught(tmp_path, monkeypatch):
    encoder = an_encoder(tmp_path / "bert")
    assert kernels.supports_training(encoder, "fp32", CPU)
    assert not kernels.supports_training(encoder, "fp32", torch.device("meta"))
    silu = an_encoder(tmp_path / "silu", hidden_act="silu")
    assert not kernels.supports_training(silu, "fp32", CPU)
    model = Model(encoder, RowHead(32, 2, "mean"))
    lora.insert(model, 2, 4.0, ("query",))
    assert not kernels.supports_training(model.encoder, "fp32", CPU)
    monkeypatch.setenv(library.SWITCH, "torch")
    assert not kernels.supports_training(an_encoder(tmp_path / "other"), "fp32", CPU)


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("adapt", ["full", "top:1", "bitfit"])
def test_a_fit_has_the_losses_of_the_plain_loop(tmp_path, monkeypatch, adapt, pooling):
    """Without dropout, in fp32: step by step the same."""
    folder = make_bert(tmp_path / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    losses = []
    for name in ("torch", library.kernels()[-1]):
        monkeypatch.setenv(library.SWITCH, name)
        fitted = berthead.fit(
            toy_rows(1), encoder=str(folder), adapt=adapt, pooling=pooling, epochs=4, batch=4, lr=1e-3, valid="0.25",
            threads=1, precision="fp32", quiet=True,
        )  # fmt: skip
        losses.append([epoch[name] for epoch in fitted.info()["run"]["epochs"] for name in ("train_loss", "loss")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] > losses[0][-2]


def test_a_pass_over_rows_of_every_length(tmp_path):
    encoder = an_encoder(tmp_path / "bert")
    for one, two in itertools.product((1, 2, 11, 12, 13, 31, 32, 33, 63, 64), (1, 64)):
        pack = TensorPack.from_pack(a_pack([one, two, *LENGTHS[-2:]]))
        weights = torch.randn(len(pack.ids), 32)
        _, gradients = vectors_and_gradients(encoder, lambda pack=pack: encoder(pack), weights)
        _, found = vectors_and_gradients(encoder, lambda pack=pack: kernels.hidden(encoder, pack, "fp32"), weights)
        assert_near(found, gradients, 2e-5)
