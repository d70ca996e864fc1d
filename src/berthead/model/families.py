"""Per family: the checkpoint's config.json and weight names to ours and back, strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from berthead.errors import ModelError, did_you_mean, listed

FAMILIES = ("bert",)
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")

# Ours -> the checkpoint's. Several names: they are stacked along the first axis.
_EMBEDDINGS = {
    "embeddings.word.weight": "embeddings.word_embeddings.weight",
    "embeddings.position.weight": "embeddings.position_embeddings.weight",
    "embeddings.segment.weight": "embeddings.token_type_embeddings.weight",
    "embeddings.norm.weight": "embeddings.LayerNorm.weight",
    "embeddings.norm.bias": "embeddings.LayerNorm.bias",
}
_BLOCK = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.out": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "mlp.up": ("intermediate.dense",),
    "mlp.down": ("output.dense",),
    "mlp_norm": ("output.LayerNorm",),
}
POOLER = {"dense.weight": "pooler.dense.weight", "dense.bias": "pooler.dense.bias"}

# Not parameters of the encoder: a buffer, and the heads of the pre-training or of another task.
_NOT_ENCODER = re.compile(
    r"(embeddings\.position_ids$)|((cls|classifier|qa_outputs|label_classifier|window_attention|crf|head)\.)"
)


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Sizes of BERT_theta.

    Args:
        vocabulary: token numbers.
        width: size of a token's vector.
        layers: transformer blocks.
        heads: attention heads a block.
        inner: width inside the feed-forward network.
        positions: longest row in tokens.
        segments: token types.
        activation: the feed-forward network's function.
        eps: added to the variance in layer norms.
        dropout: share dropped after embeddings and sub-layers, in training.
        attention_dropout: share of attention weights dropped, in training.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    segments: int
    activation: str = "gelu"
    eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], where: str) -> EncoderConfig:
        """Sizes from a config.json.

        Args:
            config: the parsed file.
            where: its path, for errors.

        Returns:
            The checked sizes.

        Raises:
            ModelError: another family, a missing key, or a value that no encoder has.
        """
        family = config.get("model_type")
        if family not in FAMILIES:
            hint = did_you_mean(str(family), FAMILIES)
            raise ModelError(where, f'model_type is "{family}"', f"known families: {listed(FAMILIES)}", hint)
        kind = config.get("position_embedding_type") or "absolute"
        if kind != "absolute":
            raise ModelError(where, f'position_embedding_type is "{kind}"', "allowed: absolute")
        if config.get("is_decoder") or config.get("add_cross_attention"):
            raise ModelError(where, "describes a decoder", "an encoder: is_decoder and add_cross_attention false")
        activation = config.get("hidden_act", "gelu")
        if activation not in ACTIVATIONS:
            raise ModelError(where, f'hidden_act is "{activation}"', f"known: {listed(ACTIVATIONS)}")

        def whole(key: str, most: int) -> int:
            value = config.get(key)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ModelError(where, f"{key} is {value!r}", f"a whole number from 1 to {most}")
            return value

        def share(key: str) -> float:
            value = config.get(key, 0.1)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise ModelError(where, f"{key} is {value!r}", "a number from 0 to below 1")
            return float(value)

        eps = config.get("layer_norm_eps", 1e-12)
        if not isinstance(eps, float) or not 0 <= eps < 1:
            raise ModelError(where, f"layer_norm_eps is {eps!r}", "a number from 0 to below 1")
        sizes = cls(
            vocabulary=whole("vocab_size", 10_000_000),
            width=whole("hidden_size", 65_536),
            layers=whole("num_hidden_layers", 1_000),
            heads=whole("num_attention_heads", 1_024),
            inner=whole("intermediate_size", 1_000_000),
            positions=whole("max_position_embeddings", 1_000_000),
            segments=whole("type_vocab_size", 1_000),
            activation=activation,
            eps=eps,
            dropout=share("hidden_dropout_prob"),
            attention_dropout=share("attention_probs_dropout_prob"),
        )
        if sizes.width % sizes.heads:
            raise ModelError(where, f"hidden_size {sizes.width} is not a multiple of num_attention_heads {sizes.heads}")
        return sizes


def plain_name(name: str) -> str:
    """A weight's name without the `bert.` prefix and with today's layer-norm words."""
    name = name.removeprefix("bert.")
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


def is_encoder_name(name: str) -> bool:
    """Whether a plain name belongs to the encoder or its pooler, not to a head of other work."""
    return _NOT_ENCODER.match(name) is None


def encoder_names(layers: int) -> dict[str, tuple[str, ...]]:
    """Our weight names, each with the checkpoint's plain names in stacking order.

    Args:
        layers: transformer blocks.

    Returns:
        Names in the encoder's own order.
    """
    names: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in _EMBEDDINGS.items()}
    for layer in range(layers):
        for ours, theirs in _BLOCK.items():
            for part in ("weight", "bias"):
                stacked = tuple(f"encoder.layer.{layer}.{name}.{part}" for name in theirs)
                names[f"blocks.{layer}.{ours}.{part}"] = stacked
    return names


def from_checkpoint(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The checkpoint's tensors (plain names) as ours, float32.

    Args:
        tensors: plain name to tensor; complete.
        layers: transformer blocks.

    Returns:
        Our name to tensor.
    """
    return {
        ours: torch.cat([tensors[name].float() for name in theirs]) if len(theirs) > 1 else tensors[theirs[0]].float()
        for ours, theirs in encoder_names(layers).items()
    }


def to_checkpoint(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Our tensors under the checkpoint's plain names: the inverse of `from_checkpoint`.

    Args:
        weights: our name to tensor.
        layers: transformer blocks.

    Returns:
        Plain name to tensor.
    """
    tensors: dict[str, Tensor] = {}
    for ours, theirs in encoder_names(layers).items():
        parts = weights[ours].chunk(len(theirs)) if len(theirs) > 1 else (weights[ours],)
        tensors |= dict(zip(theirs, parts, strict=True))
    return tensors
