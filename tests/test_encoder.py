"""BERT_theta and the row head against transformers.BertModel: whole tensors, eval and train mode, both kernels."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import make_bert
from torch import Tensor, nn

from berthead.model import attention as attention_module
from berthead.model import families
from berthead.model.attention import attention, kernel_for
from berthead.model.checkpoint import read_checkpoint
from berthead.model.config import EncoderConfig
from berthead.model.dropout import Dropout, keep_mask
from berthead.model.encoder import Attention, Encoder
from berthead.model.encoder_folders import find_encoder
from berthead.model.heads import RowHead
from berthead.model.model import Model
from berthead.model.positions import PackPositions
from berthead.model.tensors import RowGroup, TensorPack
from berthead.text.packing import pack, plan
from berthead.text.tokenizer import Encoded

TOLERANCE = 1e-5


class Row(NamedTuple):
    ids: np.ndarray
    segments: np.ndarray


def random_rows(lengths, *, vocabulary=80, segments=2, seed=0, first=0) -> list[Row]:
    """Rows of random tokens from `first`; the second part of a row has the later token types."""
    random = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        cuts = np.sort(random.integers(0, length + 1, segments - 1))
        kinds = np.searchsorted(cuts, np.arange(length), side="right")
        rows.append(Row(random.integers(first, vocabulary, length), kinds.astype(np.int64)))
    return rows


def packed(rows, order=None) -> TensorPack:
    """All rows in one pack, in the order given."""
    encoded = [Encoded(row.ids, row.segments, len(row.ids), False) for row in rows]
    return TensorPack.from_pack(pack(encoded, np.arange(len(rows)) if order is None else np.asarray(order)))


def rows_of(tensor: Tensor, lengths) -> list[Tensor]:
    """[tokens, width] cut into rows."""
    return list(tensor.split([int(length) for length in lengths]))


def hugging_face(folder: Path, *, kernel="eager", **changes) -> nn.Module:
    from transformers import BertModel

    return BertModel.from_pretrained(folder, attn_implementation=kernel, **changes).eval()


def padded(rows) -> dict[str, Tensor]:
    """Rows as transformers wants them: padded, with an attention mask."""
    longest = max(len(row.ids) for row in rows)
    inputs = {
        name: torch.zeros(len(rows), longest, dtype=torch.long)
        for name in ("input_ids", "token_type_ids", "attention_mask")
    }
    for number, row in enumerate(rows):
        length = len(row.ids)
        inputs["input_ids"][number, :length] = torch.from_numpy(row.ids)
        inputs["token_type_ids"][number, :length] = torch.from_numpy(row.segments)
        inputs["attention_mask"][number, :length] = 1
    return inputs


def reference_states(model, rows, *, alone: bool) -> list[list[Tensor]]:
    """All hidden states of each row, padding cut away: [row][layer] -> [length, width]."""
    batches = [[row] for row in rows] if alone else [rows]
    states = []
    for batch in batches:
        with torch.no_grad():
            layers = model(**padded(batch), output_hidden_states=True).hidden_states
        states += [[layer[number, : len(row.ids)] for layer in layers] for number, row in enumerate(batch)]
    return states


def worst(encoder: Encoder, rows, wanted, order=None) -> float:
    """The largest difference of any hidden state of any token, over 1 + its size; `wanted` is [row][layer]."""
    order = list(range(len(rows))) if order is None else order
    with torch.no_grad():
        layers = encoder.hidden_states(packed(rows, order))
    assert len(layers) == len(wanted[0])
    gaps = []
    for number, layer in enumerate(layers):
        for row, mine in zip(order, rows_of(layer, [len(rows[row].ids) for row in order]), strict=True):
            assert mine.shape == wanted[row][number].shape
            gaps.append(float(((mine - wanted[row][number]).abs() / (1 + wanted[row][number].abs())).max()))
    assert all(np.isfinite(gaps))
    return max(gaps)


@pytest.fixture(scope="module")
def minilm():
    """Our encoder and transformers' with the real weights."""
    checkpoint = read_checkpoint("minilm")
    return checkpoint.encoder(), hugging_face(find_encoder("minilm"))


# --- parity with the real weights ---


SHORT = [3, 5, 8, 8, 12, 12, 12, 31]
LONG = [512, 512]
MIXED = [300, 2, 129, 128, 7, 64, 64, 7, 1]


@pytest.mark.parametrize("lengths", [SHORT, LONG, MIXED], ids=["short", "long", "mixed"])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "padded"])
def test_every_hidden_state_of_minilm_equals_transformers(minilm, lengths, alone):
    ours, theirs = minilm
    rows = random_rows(lengths, vocabulary=30522, seed=len(lengths))
    order = plan([len(row.ids) for row in rows], 10**9)[0].tolist()
    assert worst(ours, rows, reference_states(theirs, rows, alone=alone), order) <= TOLERANCE


def test_minilm_equals_transformers_on_real_text_and_pairs(minilm):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(find_encoder("minilm"))
    texts = [("My parcel never came.", None), ("Où est mon colis?", "Le café est fermé 😀"), ("a", "b " * 600)]
    rows = []
    for first, second in texts:
        got = tokenizer(first, second, truncation=True, max_length=512)
        rows.append(Row(np.array(got["input_ids"]), np.array(got["token_type_ids"])))
    assert max(row.segments.max() for row in rows) == 1
    assert worst(minilm[0], rows, reference_states(minilm[1], rows, alone=True)) <= TOLERANCE


# --- parity for every setting of the family, with tiny random weights ---


def tiny_pair(tmp_path, **config) -> tuple[Encoder, nn.Module]:
    folder = make_bert(tmp_path / "bert", **config)
    return read_checkpoint(str(folder)).encoder(), hugging_face(folder)


@pytest.mark.parametrize(
    "config",
    [
        *[{"num_attention_heads": heads, "num_hidden_layers": 3} for heads in (1, 2, 8)],
        *[{"hidden_act": name} for name in ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")],
        *[{"layer_norm_eps": eps, "num_hidden_layers": 1} for eps in (1e-12, 1e-5, 1e-3)],
        *[{"type_vocab_size": kinds} for kinds in (1, 2, 4)],
        {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_act": "relu", "layer_norm_eps": 1e-3},
        {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 40, "num_hidden_layers": 3},
    ],
    ids=str,
)
def test_every_hidden_state_equals_transformers_for(tmp_path, config):
    ours, theirs = tiny_pair(tmp_path, **config)
    rows = random_rows([64, 1, 17, 17, 5, 33], segments=config.get("type_vocab_size", 2), seed=3)
    assert worst(ours, rows, reference_states(theirs, rows, alone=True)) <= TOLERANCE
    assert worst(ours, rows, reference_states(theirs, rows, alone=False)) <= TOLERANCE


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"num_attention_heads": 2}, {"num_attention_heads": 4}),
        ({"hidden_act": "gelu"}, {"hidden_act": "gelu_new"}),
        ({"layer_norm_eps": 1e-5}, {"layer_norm_eps": 1e-3}),
    ],
    ids=["heads", "activation", "eps"],
)
def test_parity_would_notice_a_setting_that_is_not_read(tmp_path, config, changed):
    folder = make_bert(tmp_path / "bert", **config)
    ours, rows = read_checkpoint(str(folder)).encoder(), random_rows([17, 5])
    wrong = hugging_face(folder, **changed)
    assert worst(ours, rows, reference_states(wrong, rows, alone=True)) > TOLERANCE


def test_the_last_hidden_state_is_what_forward_returns(tiny_bert):
    encoder, rows = read_checkpoint(str(tiny_bert)).encoder(), packed(random_rows([9, 4]))
    with torch.no_grad():
        assert torch.equal(encoder(rows), encoder.hidden_states(rows)[-1])


# --- gradients ---


def loss_weights(rows, width: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(5)
    return [torch.randn(len(row.ids), width, generator=random) for row in rows]


def our_gradients(encoder: Encoder, rows) -> dict[str, Tensor]:
    """Gradients of a fixed scalar loss under the checkpoint's names."""
    hidden = encoder(packed(rows))
    weights = torch.cat(loss_weights(rows, hidden.shape[1])).to(hidden.dtype)
    (hidden.square() * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return families.to_checkpoint(gradients, encoder.config)


def their_gradients(model, rows) -> dict[str, Tensor]:
    """The same loss on padded and masked rows."""
    hidden = model(**padded(rows)).last_hidden_state
    loss = hidden.new_zeros(())
    for number, weights in enumerate(loss_weights(rows, hidden.shape[2])):
        loss = loss + (hidden[number, : len(weights)].square() * weights.to(hidden.dtype)).sum()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if not name.startswith("pooler.")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("longest_matmul", [128, 0], ids=["matmul", "sdpa"])
def test_gradients_of_every_weight_equal_transformers(tmp_path, monkeypatch, mode, dtype, longest_matmul):
    monkeypatch.setattr(attention_module, "LONGEST_MATMUL", longest_matmul)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ours, theirs = tiny_pair(tmp_path, num_hidden_layers=3, **no_dropout)
    for model in (ours, theirs):
        model.to(dtype).train(mode == "train")
    # transformers takes no gradient for token 0: to it that is padding, which does not exist here.
    rows = random_rows([23, 4, 4, 11, 1, 40], first=1)
    mine, wanted = our_gradients(ours, rows), their_gradients(theirs, rows)
    assert set(mine) == set(wanted)
    assert len(wanted) == 5 + 3 * 16
    tolerance = TOLERANCE if dtype == torch.float32 else 1e-12
    for name, gradient in wanted.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((mine[name] - gradient).abs().max()) <= tolerance * scale, name
        # A key's bias shifts all scores of a query alike: only there is the gradient zero.
        assert float(gradient.abs().max()) > 1e-3 or name.endswith("attention.self.key.bias"), name


# --- dropout ---


HIDDEN_DROPOUT, ATTENTION_DROPOUT = 0.3, 0.15


def dropout_encoder(tmp_path, hidden=HIDDEN_DROPOUT, attention_=ATTENTION_DROPOUT) -> Encoder:
    rates = {"hidden_dropout_prob": hidden, "attention_probs_dropout_prob": attention_}
    return read_checkpoint(str(make_bert(tmp_path / f"dropout-{hidden}", **rates))).encoder()


def test_in_eval_mode_dropout_changes_nothing(tmp_path):
    with_dropout, without = dropout_encoder(tmp_path), dropout_encoder(tmp_path, 0.0, 0.0)
    rows = packed(random_rows([30, 30, 7]))
    with torch.no_grad():
        first = with_dropout.train().eval()(rows)
        assert torch.equal(first, with_dropout(rows))
        assert torch.equal(first, without(rows))


def test_in_train_mode_dropout_is_random_and_follows_the_seed(tmp_path):
    encoder, rows = dropout_encoder(tmp_path).train(), packed(random_rows([30, 30, 7]))

    def run(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return encoder(rows)

    assert torch.equal(run(1), run(1))
    assert not torch.allclose(run(1), run(2))


def test_each_dropout_drops_its_share_and_scales_the_rest(tmp_path):
    encoder, rows = dropout_encoder(tmp_path), packed(random_rows([60] * 40))
    seen: dict[str, tuple[float, float]] = {}

    def watch(name):
        def hook(module, inputs, output):
            kept = output != 0
            ratio = (output[kept] / inputs[0][kept]).mean()
            calls = len([key for key in seen if key.startswith(name)])
            seen[f"{name}#{calls}"] = (1 - float(kept.float().mean()), float(ratio))

        return hook

    for name, module in encoder.named_modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(watch(name))
    torch.manual_seed(0)
    with torch.no_grad():
        encoder.train()(rows)
    # One after the embeddings, two in each block: after attention and after the feed-forward network.
    assert sorted(seen) == [
        *(f"blocks.{block}.{part}_dropout#0" for block in range(2) for part in ("attention", "mlp")),
        "embeddings.dropout#0",
    ]
    for name, (dropped, scale) in seen.items():
        assert dropped == pytest.approx(HIDDEN_DROPOUT, abs=0.01), name  # 2400 * 32 draws: 0.01 is six deviations
        assert scale == pytest.approx(1 / (1 - HIDDEN_DROPOUT), rel=1e-4), name
    seen.clear()
    with torch.no_grad():
        encoder.eval()(rows)
    assert {dropped for dropped, _ in seen.values()} == {0.0}


def ones_attention(tmp_path) -> Attention:
    """An attention layer of a real encoder that reads every value as one and hands the mixture on as it is."""
    layer = dropout_encoder(tmp_path).blocks[0].attention
    width = layer.out.in_features
    with torch.no_grad():
        layer.qkv.weight.zero_()
        layer.qkv.bias.copy_(torch.cat([torch.zeros(2 * width), torch.ones(width)]))
        layer.out.weight.copy_(torch.eye(width))
        layer.out.bias.zero_()
    return layer


def test_attention_drops_its_own_share_of_weights_in_training_only(tmp_path):
    layer = ones_attention(tmp_path)
    rows = 5000
    torch.manual_seed(0)
    with torch.no_grad():
        # A row of one token has one weight a head, 1.0: what comes out is that weight after dropout.
        mixed = layer.train()(torch.zeros(rows, 32), (RowGroup(0, rows, 1),), PackPositions()).view(
            rows, layer.heads, -1
        )
    assert torch.equal(mixed, mixed[..., :1].expand_as(mixed))  # a weight is dropped for a head's whole vector
    weights = mixed[..., 0]
    dropped = float((weights == 0).float().mean())
    assert dropped == pytest.approx(ATTENTION_DROPOUT, abs=0.015)  # 20,000 draws: six deviations
    torch.testing.assert_close(weights[weights != 0].unique(), torch.tensor([1 / (1 - ATTENTION_DROPOUT)]))
    with torch.no_grad():
        assert torch.equal(layer.eval()(torch.zeros(9, 32), (RowGroup(0, 3, 3),), PackPositions()), torch.ones(9, 32))


@pytest.mark.parametrize("length", [16, 200])
def test_attention_dropout_keeps_the_mean_for_rows_of_any_length(tmp_path, length):
    layer, rows = ones_attention(tmp_path), 25_000 // length
    torch.manual_seed(0)
    with torch.no_grad():
        mixed = layer.train()(torch.zeros(rows * length, 32), (RowGroup(0, rows, length),), PackPositions())
    weights = mixed.view(-1, layer.heads, 8)[..., 0]
    # The mean of `length` kept-or-dropped weights: 1, with variance p / ((1 - p) * length).
    variance = ATTENTION_DROPOUT / (1 - ATTENTION_DROPOUT) / length
    assert float(weights.mean()) == pytest.approx(1.0, abs=6 * (variance / weights.numel()) ** 0.5)
    assert float(weights.var()) == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("weights_at_once", [1, 500, 10**6], ids=["one group", "ragged", "all"])
def test_attention_with_dropout_is_torchs_function_of_the_mask_with_its_gradient(monkeypatch, weights_at_once):
    rows, length, heads, size = 3, 11, 4, 8
    masks = []

    def kept(*arguments):
        masks.append(keep_mask(*arguments))
        return masks[-1]

    monkeypatch.setattr(attention_module, "keep_mask", kept)
    monkeypatch.setattr(attention_module, "CHUNK_WEIGHTS", weights_at_once)
    torch.manual_seed(0)
    qkv = torch.randn(rows * length, 3 * heads * size, dtype=torch.float64, requires_grad=True)
    ours = attention(qkv, (RowGroup(0, rows, length),), heads, ATTENTION_DROPOUT)
    mask = torch.cat(masks).view(rows, heads, length, length)
    query, key, value = qkv.view(rows, length, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
    weights = torch.nn.functional.softmax(query @ key.transpose(-1, -2) / size**0.5, -1)
    dropped = torch.where(mask, weights / (1 - ATTENTION_DROPOUT), 0.0)
    theirs = (dropped @ value).transpose(1, 2).reshape(rows * length, heads * size)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    (wanted,) = torch.autograd.grad(theirs, qkv, grad, retain_graph=True)
    (got,) = torch.autograd.grad(ours, qkv, grad)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_mask_keeps_its_share_independently_of_neighbours(share):
    torch.manual_seed(0)
    kept = keep_mask((1000, 1001), share)
    assert kept.shape == (1000, 1001)
    deviation = (share * (1 - share)) ** 0.5
    assert float(kept.float().mean()) == pytest.approx(1 - share, abs=6 * deviation / 1000 + 1 / 65536)
    flat = kept.flatten().float() - (1 - share)
    for lag in (1, 2, 3, 4):  # four values come from one draw
        assert float((flat[lag:] * flat[:-lag]).mean()) == pytest.approx(0, abs=6 * deviation**2 / 1000 + 1e-9)


# --- kernels ---


def test_the_kernel_is_chosen_by_device_length_and_dropout():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [kernel_for(cpu, length, 0.0) for length in (1, 127, 128, 129, 512)] == ["matmul"] * 3 + ["sdpa"] * 2
    assert [kernel_for(cpu, length, 0.1) for length in (1, 129, 512)] == ["chunked"] * 3
    assert [kernel_for(cuda, length, 0.0) for length in (1, 512)] == ["sdpa"] * 2
    assert kernel_for(cuda, 512, 0.1) == "chunked"


def test_dropout_learns_where_autocast_takes_softmax_in_float32(monkeypatch):
    """As on GPUs: https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to float32"."""
    usual = torch.Tensor.softmax

    def softmax(self, *given):
        return usual(self.float() if torch.is_autocast_enabled("cpu") else self, *given)

    monkeypatch.setattr(torch.Tensor, "softmax", softmax)
    qkv = torch.randn(280, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)
    grads = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            mixed = attention(qkv.bfloat16() if enabled else qkv, (RowGroup(0, 4, 70),), heads=2, dropout=0.2)
        mixed.float().square().sum().backward()
        grads.append(qkv.grad)
        qkv.grad = None
    torch.testing.assert_close(grads[1], grads[0], atol=0.1, rtol=0.05)


@pytest.fixture
def fused_calls(monkeypatch) -> list[int]:
    """The row lengths that torch's fused kernel was called with."""
    calls = []
    real = attention_module.F.scaled_dot_product_attention

    def spy(query, *args, **kwargs):
        calls.append(query.shape[2])
        return real(query, *args, **kwargs)

    monkeypatch.setattr(attention_module.F, "scaled_dot_product_attention", spy)
    return calls


def test_the_kernel_that_runs_is_the_one_chosen(fused_calls, monkeypatch):
    lengths = (129, 128, 127)
    groups, first = [], 0
    for length in lengths:
        groups.append(RowGroup(first, 2, length))
        first += 2 * length
    qkv = torch.randn(first, 3 * 32, generator=torch.Generator().manual_seed(0))
    plain = {}
    for longest, fused in ((128, [129]), (0, [129, 128, 127]), (127, [129, 128]), (1000, [])):
        monkeypatch.setattr(attention_module, "LONGEST_MATMUL", longest)
        fused_calls.clear()
        plain[longest] = attention(qkv, tuple(groups), heads=4)
        assert fused_calls == fused
    fused_calls.clear()
    attention(qkv, tuple(groups), heads=4, dropout=0.1)
    assert fused_calls == []  # the fused kernel would drop in evaluation too
    for first_way, second_way in pairwise(plain.values()):
        torch.testing.assert_close(first_way, second_way, atol=1e-6, rtol=0)


@pytest.mark.parametrize("length", [127, 128, 129])
def test_both_kernels_equal_attention_written_out(length, monkeypatch):
    heads, size, rows = 2, 8, 2
    qkv = torch.randn(rows * length, 3 * heads * size, generator=torch.Generator().manual_seed(length)).double()
    wanted = torch.zeros(rows * length, heads * size, dtype=torch.float64)
    for row in range(rows):
        here = slice(row * length, (row + 1) * length)
        for head in range(heads):
            query, key, value = (
                qkv[here, part * heads * size + head * size :][:, :size].numpy() for part in range(3)
            )  # fmt: skip
            weights = np.exp(query @ key.T / np.sqrt(size))
            wanted[here, head * size : (head + 1) * size] = torch.from_numpy(
                weights / weights.sum(1, keepdims=True) @ value
            )
    for longest in (0, 1000):
        monkeypatch.setattr(attention_module, "LONGEST_MATMUL", longest)
        mixed = attention(qkv, (RowGroup(0, rows, length),), heads)
        torch.testing.assert_close(mixed, wanted, atol=1e-12, rtol=0)


def test_minilm_equals_transformers_with_either_kernel(minilm, monkeypatch, fused_calls):
    ours, theirs = minilm
    rows = random_rows([129, 128, 20], vocabulary=30522)
    wanted = reference_states(theirs, rows, alone=True)
    fused_calls.clear()  # transformers is eager here; nothing of it was counted
    for longest, fused in ((0, 3), (1000, 0)):
        monkeypatch.setattr(attention_module, "LONGEST_MATMUL", longest)
        fused_calls.clear()
        assert worst(ours, rows, wanted) <= TOLERANCE
        assert len(fused_calls) == fused * ours.config.layers


# --- packing ---


def assert_packed_equals_one_by_one(encoder, rows):
    with torch.no_grad():
        together = rows_of(encoder(packed(rows)), [len(row.ids) for row in rows])
        for row, mine in zip(rows, together, strict=True):
            torch.testing.assert_close(mine, encoder(packed([row])), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_packed_equals_one_by_one(tiny_bert, seed):
    lengths = np.random.default_rng(seed).integers(1, 65, 20)
    assert_packed_equals_one_by_one(read_checkpoint(str(tiny_bert)).encoder(), random_rows(lengths, seed=seed))


def test_packed_equals_one_by_one_with_minilm(minilm):
    assert_packed_equals_one_by_one(minilm[0], random_rows([140, 3, 60, 60, 12, 3], vocabulary=30522))


def test_a_row_never_sees_its_neighbours(tiny_bert):
    encoder, rows = read_checkpoint(str(tiny_bert)).encoder(), random_rows([12, 12, 12, 5])
    changed = [*rows]
    changed[1] = Row((rows[1].ids + 1) % 80, rows[1].segments)
    with torch.no_grad():
        before, after = encoder(packed(rows)).split([12, 12, 17]), encoder(packed(changed)).split([12, 12, 17])
    torch.testing.assert_close(before[0], after[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(before[2], after[2], atol=1e-6, rtol=0)
    assert float((before[1] - after[1]).abs().max()) > 0.1


def test_no_padding_token_is_ever_computed(tiny_bert):
    encoder = read_checkpoint(str(tiny_bert)).encoder()
    lengths = [1, 60, 3, 3, 17]
    seen = []
    for module in encoder.modules():
        if isinstance(module, nn.Embedding | nn.Linear | nn.LayerNorm):
            module.register_forward_hook(lambda _, inputs, output: seen.append((len(inputs[0]), len(output))))
    encoder(packed(random_rows(lengths)))
    assert len(seen) == 3 + 1 + encoder.config.layers * 6
    assert set(seen) == {(sum(lengths), sum(lengths))}


def test_rows_of_one_length_that_lie_together_are_one_run():
    assert packed(random_rows([7, 7, 3, 7])).groups == (RowGroup(0, 2, 7), RowGroup(14, 1, 3), RowGroup(17, 1, 7))
    assert packed(random_rows([4])).groups == (RowGroup(0, 1, 4),)


# --- the row head ---


HEAD_LENGTHS = [13, 13, 4, 1, 30]


@pytest.fixture(params=["tiny", "minilm"])
def both(request, tiny_bert):
    """A checkpoint with its pooler, and transformers' model of it."""
    name = str(tiny_bert) if request.param == "tiny" else "minilm"
    checkpoint = read_checkpoint(name)
    return checkpoint, hugging_face(checkpoint.folder)


def by_hand(last: Tensor, mask: Tensor, pooling: str, pooler: nn.Module) -> Tensor:
    """One vector a row from transformers' padded last hidden state [rows, length, width]."""
    if pooling == "mean":
        return (last * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    first = last[:, 0]
    return first if pooling == "cls" else torch.tanh(first @ pooler.dense.weight.T + pooler.dense.bias)


def head_for(checkpoint, pooling: str) -> RowHead:
    torch.manual_seed(1)
    head = RowHead(checkpoint.config.width, 3, pooling, dropout=0.5).eval()
    nn.init.normal_(head.out.bias)
    if head.dense is not None:
        head.dense.load_state_dict({name.removeprefix("dense."): t for name, t in checkpoint.pooler.items()})
    return head


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_logits_equal_the_same_head_on_transformers_hidden_states(both, pooling):
    checkpoint, theirs = both
    head, rows = head_for(checkpoint, pooling), random_rows(HEAD_LENGTHS)
    with torch.no_grad():
        inputs = padded(rows)
        pooled = by_hand(theirs(**inputs).last_hidden_state, inputs["attention_mask"].float(), pooling, theirs.pooler)
        wanted = pooled @ head.out.weight.T + head.out.bias
        logits = Model(checkpoint.encoder(), head).eval()(packed(rows))
    assert logits.shape == (len(rows), 3)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, wanted, atol=TOLERANCE, rtol=0)


def test_the_pooler_equals_transformers_pooler_output(both):
    checkpoint, theirs = both
    head, rows = head_for(checkpoint, "pooler"), random_rows(HEAD_LENGTHS)
    with torch.no_grad():
        wanted = theirs(**padded(rows)).pooler_output
        tensors = packed(rows)
        pooled = torch.tanh(head.dense(head.pool(checkpoint.encoder()(tensors), tensors)))
        torch.testing.assert_close(pooled, wanted, atol=TOLERANCE, rtol=0)
        # and it is what the last layer reads
        torch.testing.assert_close(
            head(checkpoint.encoder()(tensors), tensors), wanted @ head.out.weight.T + head.out.bias,
            atol=TOLERANCE, rtol=0,
        )  # fmt: skip


def test_the_head_drops_the_pooled_vector_in_training_only():
    head = RowHead(2000, 1, "cls", dropout=0.25)
    nn.init.ones_(head.out.weight)
    torch.manual_seed(0)
    kept = head.train().classify(torch.ones(1, 2000)).item() * 0.75 / 2000
    assert kept == pytest.approx(0.75, abs=0.06)
    assert kept != 0.75
    assert head.eval().classify(torch.ones(1, 2000)).item() == pytest.approx(2000)


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_folding_scale_and_shift_keeps_the_function(pooling):
    torch.manual_seed(0)
    head, pooled = RowHead(8, 2, pooling).eval(), torch.randn(5, 8)
    nn.init.normal_(head.out.weight)
    plain = head.classify(pooled)
    head.scale, head.shift = 7.5, -3.0
    scaled = head.classify(pooled)
    torch.testing.assert_close(scaled, plain * 7.5 - 3.0)
    head.fold()
    assert (head.scale, head.shift) == (1.0, 0.0)
    torch.testing.assert_close(head.classify(pooled), scaled)


def test_folding_the_input_scale_keeps_the_function():
    torch.manual_seed(0)
    head, features = RowHead(8, 2, "mean").eval(), torch.randn(50, 8) * 3 + 1
    nn.init.normal_(head.out.weight)
    nn.init.normal_(head.out.bias)
    mean, deviation = features.mean(0), features.std(0)
    wanted = head.classify((features - mean) / deviation)
    head.fold_input(mean, deviation)
    torch.testing.assert_close(head.classify(features), wanted)


def test_the_number_of_parameters_is_transformers_number(both):
    checkpoint, theirs = both
    ours = sum(parameter.numel() for parameter in checkpoint.encoder().parameters())
    assert ours == sum(p.numel() for name, p in theirs.named_parameters() if not name.startswith("pooler."))


def test_weights_go_to_the_checkpoints_names_and_back(both):
    checkpoint, theirs = both
    plain = families.to_checkpoint(checkpoint.encoder().state_dict(), checkpoint.config)
    wanted = {name: t for name, t in theirs.state_dict().items() if name.split(".")[0] in ("embeddings", "encoder")}
    wanted = {name: t for name, t in wanted.items() if not name.endswith("position_ids")}
    assert plain.keys() == wanted.keys()
    assert all(torch.equal(plain[name], wanted[name]) for name in plain)
    again = families.from_checkpoint(plain, checkpoint.config, checkpoint.weights)
    assert all(torch.equal(tensor, again[name]) for name, tensor in checkpoint.weights.items())


def test_an_encoder_built_from_sizes_alone_runs():
    sizes = EncoderConfig(vocabulary=10, width=8, layers=1, heads=2, inner=16, positions=6, segments=2)
    with torch.no_grad():
        assert Encoder(sizes)(packed(random_rows([6, 2], vocabulary=10))).shape == (8, 8)
