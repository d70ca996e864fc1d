"""Channels of large values, before activations become bytes: a part of their size moves into the weights.

Source: Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models".
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from berthead.model.encoder import Embeddings, Encoder
from berthead.model.tensors import Run, TensorPack

# Rows and tokens of the made-up text that shows which channels are large: that is a trait of the weights.
ROWS, TOKENS = 16, 32
# The layers that read what a norm leaves.
SMOOTHED = ("attention.qkv", "mlp.up")


def shrinks(encoder: Encoder) -> list[dict[str, Tensor]]:
    """What each channel is multiplied with before it is rounded; the weights that meet it are divided by the same.

    Args:
        encoder: it is not changed.

    Returns:
        Of each block, a factor a channel, float32 [width], by the name of the layer; nothing where rows do not come
        from embeddings.

    Example:
        >>> from berthead.model.config import EncoderConfig
        >>> sizes = EncoderConfig(vocabulary=10, width=8, layers=1, heads=2, inner=16, positions=6, segments=2)
        >>> {name: list(factors.shape) for name, factors in shrinks(Encoder(sizes))[0].items()}
        {'attention.qkv': [8], 'mlp.up': [8]}
    """
    embeddings: nn.Module = encoder.embeddings
    if not isinstance(embeddings, Embeddings):
        return [{} for _ in encoder.blocks]
    watched = copy.deepcopy(encoder, {id(tensor): tensor for tensor in encoder.parameters()}).eval()
    largest: dict[nn.Module, Tensor] = {}

    def watch(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        found = given[0].abs().amax(0)
        largest[layer] = found.maximum(largest[layer]) if layer in largest else found

    for block in watched.blocks:
        for name in SMOOTHED:
            block.get_submodule(name).register_forward_pre_hook(watch)
    with torch.no_grad():
        watched(_made_up(encoder))
        return [{name: _factors(largest, block.get_submodule(name)) for name in SMOOTHED} for block in watched.blocks]


def _factors(largest: dict[nn.Module, Tensor], layer: nn.Module) -> Tensor:
    weights = layer.weight.abs().amax(0).clamp_min(1e-5)  # type: ignore[operator]
    factors = (weights / largest[layer].clamp_min(1e-3)).sqrt()
    return factors / factors.median()


def _made_up(encoder: Encoder) -> TensorPack:
    """Rows of tokens drawn from the whole vocabulary, the same ones every time."""
    length = min(TOKENS, encoder.config.positions)
    ids = torch.randint(encoder.config.vocabulary, (ROWS * length,), generator=torch.Generator().manual_seed(0))
    places = torch.arange(ROWS * length)
    lengths = torch.full((ROWS,), length)
    return TensorPack(
        ids, torch.zeros_like(ids), places % length, places[::length], lengths, (Run(0, ROWS, length),)
    )  # fmt: skip
