"""Quantization of activations to int8: smoothing scales shift magnitude from large channels into the weights, and
outlier channels stay float32.

Source: Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models";
Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale".
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from berthead.kernels.abi import OUTLIERS
from berthead.model.encoder import Embeddings, Encoder
from berthead.model.tensors import RowGroup, TensorPack

# Rows and tokens of the synthetic text for finding large channels, which depend on the weights, not on the text.
ROWS, TOKENS = 16, 32
SMOOTHED = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
WITH_OUTLIERS = ("attention.qkv", "mlp.up", "mlp.down")


@dataclass(frozen=True, slots=True)
class Smoothing:
    """How the inputs of a block's layers are quantized, by the name of the layer.

    Args:
        scales: the smoothing scale of each channel, float32 [inputs]: activations are multiplied by it, and the
            weights of that channel are divided by it.
        outliers: the channels that stay float32, int64 [OUTLIERS].
    """

    scales: Mapping[str, Tensor] = field(default_factory=dict)
    outliers: Mapping[str, Tensor] = field(default_factory=dict)


def smoothing(encoder: Encoder) -> list[Smoothing]:
    """The smoothing scales and outlier channels of an encoder, found with synthetic rows.

    Args:
        encoder: it is not changed.

    Returns:
        One for each block; empty ones if rows do not come from embeddings.

    Example:
        >>> from berthead.model.config import EncoderConfig
        >>> sizes = EncoderConfig(vocabulary=10, width=8, layers=1, heads=2, inner=16, positions=6, segments=2)
        >>> {name: list(scales.shape) for name, scales in smoothing(Encoder(sizes))[0].scales.items()}
        {'attention.qkv': [8], 'attention.out': [8], 'mlp.up': [8], 'mlp.down': [16]}
    """
    embeddings: nn.Module = encoder.embeddings
    if not isinstance(embeddings, Embeddings):
        return [Smoothing() for _ in encoder.blocks]
    watched = copy.deepcopy(encoder, {id(tensor): tensor for tensor in encoder.parameters()}).eval()
    statistics: dict[nn.Module, _Statistics] = defaultdict(_Statistics)

    def watch(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        statistics[layer].add(given[0])

    for block in watched.blocks:
        for name in SMOOTHED:
            block.get_submodule(name).register_forward_pre_hook(watch)
    with torch.no_grad():
        watched(_synthetic_rows(encoder))
        return [_smoothing_of(block, statistics) for block in watched.blocks]


@dataclass(slots=True)
class _Statistics:
    """Statistics of a layer's inputs for each channel, over all passes: the maximum, and the mean square."""

    largest: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    times: int = 0

    def add(self, values: Tensor) -> None:
        self.largest = values.abs().amax(0).clamp_min(torch.as_tensor(self.largest))
        self.squares = self.squares + values.square().mean(0)
        self.times += 1

    def usual(self) -> Tensor:
        return (torch.as_tensor(self.squares) / self.times).sqrt()


def split_outliers(weight: Tensor, outliers: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's weights [outputs, inputs] without the outlier channels, and those channels', [OUTLIERS, outputs]."""
    rest = weight.clone()
    rest[:, outliers] = 0
    return rest, weight[:, outliers].T


def _smoothing_of(block: nn.Module, statistics: Mapping[nn.Module, _Statistics]) -> Smoothing:
    scales, outliers = {}, {}
    for name in SMOOTHED:
        layer = block.get_submodule(name)
        weights: Tensor = layer.weight.abs().amax(0)  # type: ignore[operator]
        # Balances a channel's largest weight and its usual size: not its extremes, because all weights meet that size.
        factors = (weights.clamp_min(1e-5) / statistics[layer].usual().clamp_min(1e-3)).sqrt()
        scales[name] = factors / factors.median()
        if name in WITH_OUTLIERS:
            outliers[name] = (statistics[layer].largest * weights).topk(OUTLIERS).indices
    return Smoothing(scales, outliers)


def _synthetic_rows(encoder: Encoder) -> TensorPack:
    """Rows of tokens drawn from the whole vocabulary, the same ones every time."""
    length = min(TOKENS, encoder.config.positions)
    ids = torch.randint(encoder.config.vocabulary, (ROWS * length,), generator=torch.Generator().manual_seed(0))
    places = torch.arange(ROWS * length)
    lengths = torch.full((ROWS,), length)
    return TensorPack(
        ids, torch.zeros_like(ids), places % length, places[::length], lengths, (RowGroup(0, ROWS, length),)
    )  # fmt: skip
