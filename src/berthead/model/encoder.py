"""BERT_theta: packed tokens to one vector a token.

Source: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".
"""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import Tensor, nn

from berthead.model.attention import attention
from berthead.model.dropout import Dropout
from berthead.model.families import EncoderConfig
from berthead.model.tensors import Run, TensorPack


def activation(name: str) -> nn.Module:
    """The feed-forward network's function by its name in config.json."""
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        return nn.GELU(approximate="tanh")
    makers: dict[str, type[nn.Module]] = {
        "gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "swish": nn.SiLU, "tanh": nn.Tanh,
    }  # fmt: skip
    return makers[name]()


class Embeddings(nn.Module):
    """Token, position and segment vectors, summed and normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Embedding(config.positions, config.width)
        self.segment = nn.Embedding(config.segments, config.width)
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, pack: TensorPack) -> Tensor:
        """Vectors of the pack's tokens, [tokens, width]."""
        summed = self.word(pack.ids) + self.segment(pack.segments) + self.position(pack.positions)
        normed: Tensor = self.dropout(self.norm(summed))
        return normed


class Attention(nn.Module):
    """Self-attention with queries, keys and values from one product."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, hidden: Tensor, runs: tuple[Run, ...]) -> Tensor:
        """Attended vectors, [tokens, width]."""
        mixed = attention(self.qkv(hidden), runs, self.heads, self.dropout if self.training else 0.0)
        projected: Tensor = self.out(mixed)
        return projected


class Block(nn.Module):
    """One transformer block: attention and feed-forward network, each with residual and layer norm after it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.width, config.eps)
        self.mlp = nn.Sequential()
        self.mlp.add_module("up", nn.Linear(config.width, config.inner))
        self.mlp.add_module("activation", activation(config.activation))
        self.mlp.add_module("down", nn.Linear(config.inner, config.width))
        self.mlp_norm = nn.LayerNorm(config.width, config.eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, runs: tuple[Run, ...]) -> Tensor:
        """The block's output, [tokens, width]."""
        hidden = self.attention_norm(hidden + self.dropout(self.attention(hidden, runs)))
        normed: Tensor = self.mlp_norm(hidden + self.dropout(self.mlp(hidden)))
        return normed


class Encoder(nn.Module):
    """BERT_theta, padding-free.

    Args:
        config: the sizes.

    Example:
        >>> from berthead.model.families import EncoderConfig
        >>> sizes = EncoderConfig(vocabulary=10, width=8, layers=2, heads=2, inner=16, positions=6, segments=2)
        >>> sum(p.numel() for p in Encoder(sizes).parameters())
        1360
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, pack: TensorPack) -> Tensor:
        """The last layer's vectors.

        Args:
            pack: rows laid end to end.

        Returns:
            float32 (or the engine's precision) [tokens, width].
        """
        hidden: Tensor = self.embeddings(pack)
        for block in self.blocks:
            hidden = block(hidden, pack.runs)
        return hidden

    def part(self, first: int, last: int) -> Encoder:
        """The blocks from `first` to below `last` as an encoder that shares their weights, and the embeddings."""
        part = copy.copy(self)
        part._modules = dict(self._modules)
        part.config, part.blocks = replace(self.config, layers=last - first), self.blocks[first:last]
        return part

    def hidden_states(self, pack: TensorPack) -> list[Tensor]:
        """The embeddings' output and each block's: layers + 1 tensors [tokens, width]."""
        states = [self.embeddings(pack)]
        for block in self.blocks:
            states.append(block(states[-1], pack.runs))
        return states
