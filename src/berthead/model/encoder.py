"""BERT_theta: packed tokens to one vector a token.

Source: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".
"""

from __future__ import annotations

import copy
import math

from torch import Tensor, nn

from berthead.model.attention import attention
from berthead.model.config import EncoderConfig
from berthead.model.dropout import Dropout
from berthead.model.positions import PackPositions, positions
from berthead.model.tensors import RowGroup, TensorPack


def activation(name: str) -> nn.Module:
    """The feed-forward network's function by its name in config.json."""
    if name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
        return nn.GELU(approximate="tanh")
    makers: dict[str, type[nn.Module]] = {
        "gelu": nn.GELU, "gelu_python": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "swish": nn.SiLU, "tanh": nn.Tanh,
    }  # fmt: skip
    return makers[name]()


class Gated(nn.Module):
    """One half of the values through the activation, times the other half.

    Source: Shazeer 2020, "GLU Variants Improve Transformer".
    """

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        """[tokens, 2 * inner] -> [tokens, inner]."""
        first, second = values.chunk(2, -1)
        gated: Tensor = self.function(first) * second
        return gated


class Embeddings(nn.Module):
    """Token, position and segment vectors, summed and normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.embedding or config.width
        self.first_position = config.first_position
        self.word = nn.Embedding(config.vocabulary, size)
        self.position = self.segment = None
        if config.first_position is not None:
            self.position = nn.Embedding(config.positions + config.first_position, size)
        if config.segments:
            self.segment = nn.Embedding(config.segments, size)
        self.project = None
        if config.projection:
            self.project = nn.Linear(size, config.width, bias=config.projection == "after")
        self.projects_first = config.projection == "before"
        self.norm = nn.LayerNorm(config.width if self.projects_first else size, config.eps, bias=config.norm_bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, pack: TensorPack) -> Tensor:
        """Vectors of the pack's tokens, [tokens, width]."""
        summed: Tensor = self.word(pack.ids)
        if self.segment is not None:
            summed = summed + self.segment(pack.segments)
        if self.position is not None:
            summed = summed + self.position(
                pack.positions + self.first_position if self.first_position else pack.positions
            )
        if self.project is None:
            normed: Tensor = self.dropout(self.norm(summed))
            return normed
        if self.projects_first:
            return self.dropout(self.norm(self.project(summed)))  # type: ignore[no-any-return]
        return self.project(self.dropout(self.norm(summed)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention with queries, keys and values from one product.

    Args:
        config: of the encoder.
        layer: its number, from 0.
    """

    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        relative = config.relative
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.base = config.rotary[layer] if config.rotary else None
        self.local = config.local[layer] if config.local else 0
        self.scale = 1 / math.sqrt(config.width // config.heads * (1 + len(relative.terms if relative else ())))
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.attention_bias)
        self.out = nn.Linear(config.width, config.width, bias=config.attention_bias)
        self.distance_query = self.distance_key = None
        if relative is not None and not relative.shared:
            self.distance_query = nn.Linear(config.width, config.width) if "p2c" in relative.terms else None
            self.distance_key = nn.Linear(config.width, config.width) if "c2p" in relative.terms else None

    def forward(self, hidden: Tensor, groups: tuple[RowGroup, ...], positions: PackPositions) -> Tensor:
        """Attended vectors, [tokens, width]."""
        mixed = attention(
            positions.rotated(self.qkv(hidden), self), groups, self.heads, self.dropout if self.training else 0.0,
            scale=self.scale, bias=positions.bias(self), local=self.local,
        )  # fmt: skip
        projected: Tensor = self.out(mixed)
        return projected


class Block(nn.Module):
    """One transformer block: attention and feed-forward network, each with a residual and a layer norm.

    Args:
        config: of the encoder.
        layer: its number, from 0.
    """

    def __init__(self, config: EncoderConfig, layer: int = 0) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = Attention(config, layer)
        # With pre-norm, the embeddings' own norm already ran.
        first = config.norm_first and layer == 0
        self.attention_norm = nn.Identity() if first else nn.LayerNorm(config.width, config.eps, bias=config.norm_bias)
        self.mlp = nn.Sequential()
        function = activation(config.activation)
        up = config.inner * 2 if config.gated else config.inner
        self.mlp.add_module("up", nn.Linear(config.width, up, bias=config.mlp_bias))
        self.mlp.add_module("activation", Gated(function) if config.gated else function)
        if config.inner_dropout:
            self.mlp.add_module("dropout", Dropout(config.inner_dropout))
        self.mlp.add_module("down", nn.Linear(config.inner, config.width, bias=config.mlp_bias))
        self.mlp_norm = nn.LayerNorm(config.width, config.eps, bias=config.norm_bias)
        self.attention_dropout, self.mlp_dropout = (Dropout(share) for share in config.output_dropout)

    def forward(self, hidden: Tensor, groups: tuple[RowGroup, ...], positions: PackPositions) -> Tensor:
        """The block's output, [tokens, width]."""
        if self.norm_first:
            hidden = hidden + self.attention_dropout(self.attention(self.attention_norm(hidden), groups, positions))
            summed: Tensor = hidden + self.mlp_dropout(self.mlp(self.mlp_norm(hidden)))
            return summed
        hidden = self.attention_norm(hidden + self.attention_dropout(self.attention(hidden, groups, positions)))
        normed: Tensor = self.mlp_norm(hidden + self.mlp_dropout(self.mlp(hidden)))
        return normed


class Encoder(nn.Module):
    """BERT_theta, padding-free.

    Args:
        config: sizes and parts.

    Example:
        >>> sizes = EncoderConfig(vocabulary=10, width=8, layers=2, heads=2, inner=16, positions=6, segments=2)
        >>> sum(p.numel() for p in Encoder(sizes).parameters())
        1360
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.positions = positions(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.blocks))
        self.order = config.order or tuple(range(config.layers))
        self.final_norm = nn.Identity()
        if config.norm_first:
            self.final_norm = nn.LayerNorm(config.width, config.eps, bias=config.norm_bias)  # type: ignore[assignment]

    def forward(self, pack: TensorPack) -> Tensor:
        """The last layer's vectors.

        Args:
            pack: rows laid end to end.

        Returns:
            float32 (or the engine's precision) [tokens, width].
        """
        hidden, positions = self.begin(pack)
        normed: Tensor = self.final_norm(self.through(hidden, pack, positions, 0, len(self.order)))
        return normed

    def begin(self, pack: TensorPack) -> tuple[Tensor, PackPositions]:
        """The embeddings' vectors [tokens, width], and the tokens' positions."""
        hidden: Tensor = self.embeddings(pack)
        return hidden, self.positions(pack, hidden.dtype)

    def through(self, hidden: Tensor, pack: TensorPack, positions: PackPositions, first: int, last: int) -> Tensor:
        """Vectors [tokens, width] after the layers from `first` to below `last`."""
        for number in self.order[first:last]:
            hidden = self.blocks[number](hidden, pack.groups, positions)
        return hidden

    def part(self, first: int, last: int) -> Encoder:
        """The layers from `first` to below `last` as an encoder that shares their weights, and the embeddings."""
        used = sorted(set(self.order[first:last]))
        part = copy.copy(self)
        part._modules = dict(self._modules)
        part.blocks = nn.ModuleList(self.blocks[number] for number in used)
        part.order = tuple(used.index(number) for number in self.order[first:last])
        if first == last or last < len(self.order):
            part.final_norm = nn.Identity()
        return part

    def hidden_states(self, pack: TensorPack) -> list[Tensor]:
        """The embeddings' output and each layer's: layers + 1 tensors [tokens, width]."""
        first, positions = self.begin(pack)
        states = [first]
        for layer in range(len(self.order)):
            states.append(self.through(states[-1], pack, positions, layer, layer + 1))
        return [*states[:-1], self.final_norm(states[-1])]
