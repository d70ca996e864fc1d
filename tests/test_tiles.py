"""Products in tiles, of vectors and of the processor's own registers: the same numbers at every height and depth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_bert
from test_engine import a_model, a_pack

from berthead.engine.cpu import CpuEngine
from berthead.kernels import abi, library
from berthead.model.tensors import TensorPack
from berthead.records import Pack

AMX = "avx512_amx"
# Products as deep as tiles are, in bytes and in bfloat16, and heads of one tile and of two.
DEEP = {"hidden_size": 128, "intermediate_size": 256}
HEADS = {"heads of 32": {"num_attention_heads": 4}, "heads of 64": {"num_attention_heads": 2}}

pytestmark = pytest.mark.skipif(not library.kernels(), reason="this machine has no kernels of ours")
needs_amx = pytest.mark.skipif(AMX not in library.kernels(), reason="this processor has no tile registers")


def engine_of(monkeypatch, model, precision: str, kernels: str) -> CpuEngine:
    if precision == "bf16" and not library.has_bf16(kernels):
        pytest.skip(f"{kernels} multiply no bfloat16")
    monkeypatch.setenv(library.SWITCH, kernels)
    return CpuEngine(model, precision)


def vectors(engine: CpuEngine, one: Pack) -> np.ndarray:
    """The last vectors of all tokens: before a head, whose products are torch's."""
    with torch.inference_mode():
        found: np.ndarray = engine.model.encoder(TensorPack.from_pack(one)).numpy()
    return found


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("precision", abi.PRECISIONS)
@pytest.mark.parametrize("kernels", library.kernels())
def test_a_row_has_the_same_bits_alone_and_among_others(tmp_path, monkeypatch, kernels, precision, heads):
    model = a_model(make_bert(tmp_path / "bert", **DEEP, **HEADS[heads]))
    engine = engine_of(monkeypatch, model, precision, kernels)
    lengths = [*range(1, 41), 47, 48, 49, 63, 64]
    together = a_pack(sorted(lengths, reverse=True))
    found = vectors(engine, together)
    for first, last in itertools.pairwise(together.starts):
        alone = a_pack([last - first])
        alone.ids[:], alone.segments[:] = together.ids[first:last], together.segments[first:last]
        np.testing.assert_array_equal(vectors(engine, alone), found[first:last], err_msg=f"{last - first} tokens")


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 52},
        {"hidden_size": 44, "num_attention_heads": 2, "intermediate_size": 28},
        {"hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 20},
    ],
    ids=lambda sizes: str(sizes["hidden_size"]),
)
@pytest.mark.parametrize("precision", abi.PRECISIONS)
@pytest.mark.parametrize("kernels", library.kernels())
def test_widths_that_no_vector_divides_are_computed_to_their_end(tmp_path, monkeypatch, kernels, precision, sizes):
    model = a_model(make_bert(tmp_path / "bert", **sizes))
    engine = engine_of(monkeypatch, model, precision, kernels)
    assert engine.kernels == kernels
    pack = a_pack([1, 7, 16, 33])
    with torch.inference_mode():
        plain = model.encoder(TensorPack.from_pack(pack)).numpy()
    far = {"fp32": 1e-5, "bf16": 5e-2, "int8": 2e-1}[precision]
    np.testing.assert_allclose(vectors(engine, pack), plain, rtol=0, atol=far)


@needs_amx
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31, 32, 33, 95, 96, 97, 300])
def test_bytes_in_tile_registers_are_multiplied_as_those_of_vectors(tmp_path, monkeypatch, rows):
    model = a_model(make_bert(tmp_path / "bert", **DEEP))
    one = a_pack([1] * rows)  # a token alone is all that it attends to: nothing but products of bytes can differ
    found, wanted = (vectors(engine_of(monkeypatch, model, "int8", kernels), one) for kernels in (AMX, "avx512_bf16"))
    np.testing.assert_allclose(found, wanted, atol=2e-6, rtol=0)  # a byte that differs is seen in the third digit


@needs_amx
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_torch_and_ours_take_turns_with_the_tile_registers(tmp_path, monkeypatch, precision):
    engine = engine_of(monkeypatch, a_model(make_bert(tmp_path / "bert", **DEEP)), precision, AMX)
    one, random = a_pack([33, 20, 1]), torch.Generator().manual_seed(0)
    wanted = engine.logits(one)
    for rows in (1, 7, 16, 40):
        x, weight = torch.randn(rows, 96, generator=random), torch.randn(48, 96, generator=random)
        with torch.inference_mode():
            theirs = F.linear(x.bfloat16(), weight.bfloat16()).float()
        torch.testing.assert_close(theirs, x @ weight.T, atol=0.3, rtol=2e-2)
        np.testing.assert_array_equal(engine.logits(one), wanted)
