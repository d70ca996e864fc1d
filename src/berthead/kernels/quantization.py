"""Channels of large values, before activations become bytes: a part of their size moves into the weights, and the few
largest stay float32.

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

from berthead.model.encoder import Embeddings, Encoder
from berthead.model.tensors import Run, TensorPack

# Rows and tokens of the made-up text that shows which channels are large: that is a trait of the weights.
ROWS, TOKENS = 16, 32
SMOOTHED = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
# The layers some of whose channels stay float32, and how many: APART in csrc/engine.h.
PARTED = ("attention.qkv", "mlp.up", "mlp.down")
APART = 4


@dataclass(frozen=True, slots=True)
class Channels:
    """How the inputs of a block's layers become bytes, by the name of the layer.

    Args:
        shrinks: what each channel is multiplied with before it is rounded, float32 [inputs]; the weights that meet it
            are divided by the same.
        apart: the channels that stay float32, int64 [APART].
    """

    shrinks: Mapping[str, Tensor] = field(default_factory=dict)
    apart: Mapping[str, Tensor] = field(default_factory=dict)


def channels(encoder: Encoder) -> list[Channels]:
    """What is large in an encoder, as its weights tell.

    Args:
        encoder: it is not changed.

    Returns:
        Of each block; nothing is known where rows do not come from embeddings.

    Example:
        >>> from berthead.model.config import EncoderConfig
        >>> sizes = EncoderConfig(vocabulary=10, width=8, layers=1, heads=2, inner=16, positions=6, segments=2)
        >>> {name: list(factors.shape) for name, factors in channels(Encoder(sizes))[0].shrinks.items()}
        {'attention.qkv': [8], 'attention.out': [8], 'mlp.up': [8], 'mlp.down': [16]}
    """
    embeddings: nn.Module = encoder.embeddings
    if not isinstance(embeddings, Embeddings):
        return [Channels() for _ in encoder.blocks]
    watched = copy.deepcopy(encoder, {id(tensor): tensor for tensor in encoder.parameters()}).eval()
    seen: dict[nn.Module, _Seen] = defaultdict(_Seen)

    def watch(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[layer].add(given[0])

    for block in watched.blocks:
        for name in SMOOTHED:
            block.get_submodule(name).register_forward_pre_hook(watch)
    with torch.no_grad():
        watched(_made_up(encoder))
        return [_channels(block, seen) for block in watched.blocks]


@dataclass(slots=True)
class _Seen:
    """What passed a layer, maybe several times, by the channel: the largest, and the mean of the squares."""

    largest: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    times: int = 0

    def add(self, values: Tensor) -> None:
        self.largest = values.abs().amax(0).clamp_min(torch.as_tensor(self.largest))
        self.squares = self.squares + values.square().mean(0)
        self.times += 1

    def usual(self) -> Tensor:
        return (torch.as_tensor(self.squares) / self.times).sqrt()


def apart_from(weight: Tensor, some: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's weights [outputs, inputs] without some channels, and those channels' weights, [APART, outputs]."""
    rest = weight.clone()
    rest[:, some] = 0
    return rest, weight[:, some].T


def _channels(block: nn.Module, seen: Mapping[nn.Module, _Seen]) -> Channels:
    shrinks, apart = {}, {}
    for name in SMOOTHED:
        layer = block.get_submodule(name)
        weights: Tensor = layer.weight.abs().amax(0)  # type: ignore[operator]
        # Between a channel's largest weight and its usual size: that size, not its extremes, meets all weights.
        factors = (weights.clamp_min(1e-5) / seen[layer].usual().clamp_min(1e-3)).sqrt()
        shrinks[name] = factors / factors.median()
        if name in PARTED:
            apart[name] = (seen[layer].largest * weights).topk(APART).indices
    return Channels(shrinks, apart)


def _made_up(encoder: Encoder) -> TensorPack:
    """Rows of tokens drawn from the whole vocabulary, the same ones every time."""
    length = min(TOKENS, encoder.config.positions)
    ids = torch.randint(encoder.config.vocabulary, (ROWS * length,), generator=torch.Generator().manual_seed(0))
    places = torch.arange(ROWS * length)
    lengths = torch.full((ROWS,), length)
    return TensorPack(
        ids, torch.zeros_like(ids), places % length, places[::length], lengths, (Run(0, ROWS, length),)
    )  # fmt: skip
