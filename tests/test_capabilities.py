"""Parts that nobody knows: each path computes them right or refuses them, and never leaves them out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import run_graph, session
from torch import Tensor, nn

from berthead.engine.cpu import CPU, CpuEngine
from berthead.engine.cuda import CudaEngine
from berthead.engine.cuda_attention import Kernel, Rows, agrees
from berthead.errors import ModelError, UsageError
from berthead.export.encoder import vectors
from berthead.export.graph import Graph
from berthead.export.heads import logits
from berthead.kernels import library, native, training
from berthead.model import heads, units
from berthead.model.capabilities import Supported
from berthead.model.config import EncoderConfig, Relative
from berthead.model.encoder import Encoder, Gated
from berthead.model.heads import Pooling, RowHead
from berthead.model.model import Model
from berthead.model.positions import NoPositions, PackPositions
from berthead.model.tensors import TensorPack
from berthead.options import POOLINGS
from berthead.predict.precision import candidates
from berthead.records import Pack
from berthead.text.packing import pack
from berthead.text.tokenizer import Encoded

# The largest difference that float32 may make; every dummy part changes the logits by more than ten times that.
TOLERANCE = 1e-4


class Reversed(NoPositions):
    """Positions that no path knows: each token's query is scaled by where it stands. A subclass of a known part."""

    def forward(self, pack: TensorPack, dtype: torch.dtype) -> PackPositions:
        return Scaled((1 + pack.positions % 5).to(dtype))


class Scaled(PackPositions):
    """What attention reads of Reversed."""

    def __init__(self, factors: Tensor) -> None:
        self.factors = factors

    def rotated(self, qkv: Tensor, attention: object) -> Tensor:
        query, rest = qkv[:, : qkv.shape[1] // 3], qkv[:, qkv.shape[1] // 3 :]
        return torch.cat((query * self.factors[:, None], rest), 1)


class Added(NoPositions):
    """Positions that no path knows: something is added to the scores."""

    def forward(self, pack: TensorPack, dtype: torch.dtype) -> PackPositions:
        return AddedScores()


class AddedScores(PackPositions):
    """What attention reads of Added."""

    def bias(self, attention: object):
        return lambda query, key: -3.0 * torch.arange(query.shape[2], dtype=query.dtype)


class Cubed(nn.GELU):
    """An activation that no path knows, and a subclass of one that is known."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values) + 0.1 * values.clamp(-2, 2) ** 3


class RootMean(nn.Module):
    """A norm that no path knows."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, values: Tensor) -> Tensor:
        return self.weight * values * (values.square().mean(-1, keepdim=True) + self.eps).rsqrt()


class Shifted(nn.LayerNorm):
    """A norm that no path knows, and a subclass of one that is known."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values) + 1


class Doubled(nn.Linear):
    """A linear layer that no path knows, and a subclass of one that is known."""

    def forward(self, values: Tensor) -> Tensor:
        return 2 * super().forward(values)


def largest(hidden: Tensor, pack: TensorPack) -> Tensor:
    """A pooling that no path knows: the largest of each channel."""
    return torch.stack([one.amax(0) for one in hidden.float().split(pack.lengths.tolist())])


def with_positions(part: type[nn.Module]):
    def change(model: Model) -> None:
        model.encoder.positions = part()

    return change


def with_activation(model: Model) -> None:
    for block in model.encoder.blocks:
        block.mlp.activation = Cubed()


def with_activation_behind_a_gate(model: Model) -> None:
    for block in model.encoder.blocks:
        assert isinstance(block.mlp.activation, Gated)
        block.mlp.activation.function = Cubed()


def with_root_mean(model: Model) -> None:
    for block in model.encoder.blocks:
        block.mlp_norm = RootMean(block.mlp_norm)


def with_embedding_norm(model: Model) -> None:
    model.encoder.embeddings.norm = RootMean(model.encoder.embeddings.norm)


def with_shifted_norm(model: Model) -> None:
    for block in model.encoder.blocks:
        block.attention_norm.__class__ = Shifted


def with_other_eps(model: Model) -> None:
    model.encoder.blocks[0].mlp_norm.eps = 0.5


def with_doubled_layer(model: Model) -> None:
    model.encoder.blocks[1].mlp.up.__class__ = Doubled


def with_doubled_values(model: Model) -> None:
    model.encoder.blocks[1].attention.qkv.__class__ = Doubled


def with_pooling(model: Model) -> None:
    torch.manual_seed(0)
    model.head = RowHead(model.encoder.config.width, 3, "largest").eval()
    model.head.out.weight.data *= 20


PARTS = {
    "positions that turn": ("bert", with_positions(Reversed)),
    "positions that add": ("bert", with_positions(Added)),
    "positions in place of rotary": ("rotary", with_positions(Added)),
    "positions in place of relative": ("relative", with_positions(Reversed)),
    "activation": ("bert", with_activation),
    "activation behind a gate": ("gated", with_activation_behind_a_gate),
    "norm": ("bert", with_root_mean),
    "norm of the embeddings": ("bert", with_embedding_norm),
    "norm, a subclass": ("bert", with_shifted_norm),
    "norm, another eps": ("bert", with_other_eps),
    "linear layer": ("bert", with_doubled_layer),
    "linear layer of attention": ("bert", with_doubled_values),
    "pooling": ("bert", with_pooling),
}


@pytest.fixture(autouse=True)
def own_pooling(monkeypatch):
    monkeypatch.setitem(heads.POOLINGS, "largest", Pooling(largest, "the largest numbers of a row's vectors"))


SIZES = {"vocabulary": 50, "width": 32, "layers": 2, "heads": 4, "inner": 48, "positions": 40, "segments": 0}
ENCODERS = {
    "bert": EncoderConfig(**SIZES),
    "gated": EncoderConfig(**SIZES, gated=True, activation="silu"),
    "rotary": EncoderConfig(**SIZES, first_position=None, rotary=(10_000.0, 10_000.0)),
    "relative": EncoderConfig(**SIZES, relative=Relative("bias", buckets=32, max_distance=128)),
}


def a_model(name: str) -> Model:
    """A model with random weights far from their first values."""
    torch.manual_seed(0)
    model = Model(Encoder(ENCODERS[name]), RowHead(32, 3, "mean"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def a_pack(*lengths: int) -> Pack:
    """Random tokens in rows of these lengths."""
    random = np.random.default_rng(0)
    ones = [Encoded(random.integers(5, 50, length), np.zeros(length, np.int64), length, False) for length in lengths]
    return pack(ones, np.arange(len(ones)))


def plain(query: Tensor, key: Tensor, value: Tensor, where: Rows, scale: float, local: int) -> Tensor:
    """Attention of all rows as a GPU's kernel is called, by plain products."""
    mixed = torch.empty_like(query)
    for first, last in pairwise(where.edges.tolist()):
        q, k, v = (side[first:last].transpose(0, 1) for side in (query, key, value))
        mixed[first:last] = ((q * scale @ k.transpose(1, 2)).softmax(-1) @ v).transpose(0, 1)
    return mixed


def by_modules(model: Model, some: Pack) -> np.ndarray:
    """What every path is compared with: the modules as they are."""
    with torch.inference_mode():
        return model(TensorPack.from_pack(some)).numpy()


def by_training(model: Model, some: Pack) -> np.ndarray:
    """The forward pass of a fit, as `train/modes.py` chooses it."""
    if not training.supports_training(model.encoder, "fp32", CPU):
        return by_modules(model, some)
    tensors = TensorPack.from_pack(some)
    with torch.no_grad():
        return model.head(training.hidden(model.encoder, tensors, "fp32"), tensors).numpy()


def by_gpu(model: Model, some: Pack, precision: str = "fp32") -> np.ndarray:
    """The path on GPUs, all but the GPU: a kernel that attends by plain products."""
    kernel = Kernel("plain", plain)
    taken = kernel if agrees(kernel, model.encoder, precision, CPU) else None
    return CudaEngine(model, precision, CPU, taken, None).logits(some)


def by_onnx(model: Model, some: Pack, tmp_path: Path) -> np.ndarray:
    """The exported graph in ONNX Runtime, row by row."""
    graph = Graph(tmp_path / "model.onnx")
    found = logits(graph, model.head, vectors(graph, model.encoder, "ids", "segments"))
    inputs = {"ids": ["rows", "tokens"]}
    graph.save(inputs, found, ["rows", 3], {"doc": "a test"})
    runtime = session(tmp_path / "model.onnx")
    rows = [run_graph(runtime, some.ids[None, a:b], some.segments[None, a:b]) for a, b in pairwise(some.starts)]
    return np.concatenate(rows)


PATHS = {
    "kernels": lambda model, some, folder: CpuEngine(model).logits(some),
    "torch": lambda model, some, folder: CpuEngine(model).logits(some),
    "training": lambda model, some, folder: by_training(model, some),
    "gpu": lambda model, some, folder: by_gpu(model, some),
    "onnx": by_onnx,
    "int8": lambda model, some, folder: CpuEngine(model, "int8").logits(some),
    "bf16": lambda model, some, folder: CpuEngine(model, "bf16").logits(some),
    "gpu in bf16": lambda model, some, folder: by_gpu(model, some, "bf16"),
}
LOWER = ("int8", "bf16", "gpu in bf16")
# Embeddings and heads compute in float32, by their own modules, in every precision.
ALWAYS = {"norm of the embeddings", "pooling"}
IN_BLOCKS = [part for part in PARTS if part not in ALWAYS]
# What a path refuses; in float32 on this machine everything is computed, by torch where nothing faster knows it.
REFUSED = {"onnx": list(PARTS), "int8": IN_BLOCKS, "bf16": IN_BLOCKS, "gpu in bf16": IN_BLOCKS}
needs_kernels = pytest.mark.skipif(library.loaded() is None, reason="the kernels are not built")


@needs_kernels
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_not_known_is_computed_right_or_refused(part, path, monkeypatch, tmp_path):
    if path == "torch":
        monkeypatch.setenv(library.SWITCH, "torch")
    encoder, change = PARTS[part]
    model, some = a_model(encoder), a_pack(23, 4, 4, 11, 1, 36)
    known = by_modules(model, some)
    change(model)
    wanted = by_modules(model, some)
    assert np.abs(wanted - known).max() > 10 * TOLERANCE  # the part does something
    if part in REFUSED.get(path, ()):
        with pytest.raises((ModelError, UsageError), match=r"not supported|does not support|do not support"):
            PATHS[path](model, some, tmp_path)
        return
    tolerance = 0.2 if path in LOWER else TOLERANCE
    np.testing.assert_allclose(PATHS[path](model, some, tmp_path), wanted, atol=tolerance, rtol=tolerance)


@needs_kernels
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_parts_of_our_families_are_known(encoder, path, monkeypatch, tmp_path):
    if path == "torch":
        monkeypatch.setenv(library.SWITCH, "torch")
    model, some = a_model(encoder), a_pack(23, 4, 4, 11, 1, 36)
    tolerance = 0.2 if path in LOWER else TOLERANCE
    found = PATHS[path](model, some, tmp_path)
    np.testing.assert_allclose(found, by_modules(model, some), atol=tolerance, rtol=tolerance)
    assert path != "kernels" or native.computes(model.encoder, "fp32")
    assert path != "training" or training.supports_training(model.encoder, "fp32", CPU) == (encoder == "bert")
    assert Supported().why_not(model.encoder) is None


@needs_kernels
@pytest.mark.parametrize("part", IN_BLOCKS)
def test_lower_precisions_are_no_candidates_where_a_part_is_not_known(part):
    encoder, change = PARTS[part]
    model = a_model(encoder)
    change(model)
    assert candidates(model) == []


def test_the_options_name_every_pooling():
    assert set(heads.POOLINGS) - {"largest"} == set(POOLINGS) - {"auto"}


def test_windows_are_pooled_in_no_unknown_way():
    with pytest.raises(ValueError, match="expected"):
        heads.pool_windows(torch.ones(2, 1), torch.zeros(2, dtype=torch.long), 1, "least", torch.empty(2, 0))
    with pytest.raises(ValueError, match="expected"):
        units.pooled(np.ones((2, 1), np.float32), np.zeros(2, np.int64), 1, "least", 1)
