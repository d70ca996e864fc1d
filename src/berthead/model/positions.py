"""Positions for attention: rotary positions and relative positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from berthead.model.config import EncoderConfig, Relative
from berthead.model.dropout import Dropout
from berthead.model.tensors import TensorPack

Bias = Callable[[Tensor, Tensor], Tensor]
"""Scaled queries and keys, each [rows, heads, length, size] -> what is added to their scores, [..., length, length]."""


class PackPositions:
    """What all blocks of one forward pass share about positions; this base has nothing."""

    def rotated(self, qkv: Tensor, attention: Any) -> Tensor:
        """Queries, keys and values as attention reads them, [tokens, 3 * width]."""
        return qkv

    def bias(self, attention: Any) -> Bias | None:
        """The terms added to the scores of this attention, or None."""
        return None


class NoPositions(nn.Module):
    """Positions are part of the embeddings."""

    def forward(self, pack: TensorPack, dtype: torch.dtype) -> PackPositions:
        """Nothing to share."""
        return PackPositions()


class Rotary(nn.Module):
    """Queries and keys rotated by an angle that grows with the position.

    Args:
        size: the size of a head's vector.
        bases: the bases of all layers.

    Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding".
    """

    def __init__(self, size: int, bases: tuple[float, ...]) -> None:
        super().__init__()
        self.size, self.bases = size, sorted(set(bases))

    def forward(self, pack: TensorPack, dtype: torch.dtype) -> PackPositions:
        """Cosines and sines of the pack's tokens, once for all layers of a base."""
        return _Rotations({base: self.waves(pack.positions, base) for base in self.bases})

    def waves(self, positions: Tensor, base: float) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions [tokens], each [tokens, size / 2]."""
        angles = positions[:, None] * base ** -(torch.arange(0, self.size, 2, device=positions.device) / self.size)
        return angles.cos(), angles.sin()


class _Rotations(PackPositions):
    def __init__(self, waves: dict[float, tuple[Tensor, Tensor]]) -> None:
        self.waves = waves

    def rotated(self, qkv: Tensor, attention: Any) -> Tensor:
        cos, sin = (wave[:, None, None] for wave in self.waves[attention.base])
        parts = qkv.view(len(qkv), 3, attention.heads, -1)
        first, second = parts[:, :2].float().chunk(2, -1)
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
        return torch.cat((rotated.to(qkv.dtype), parts[:, 2:]), 1).view_as(qkv)


class RelativeBias(nn.Module):
    """A number for each head and distance, the same in all blocks.

    Args:
        heads: attention heads.
        relative: buckets and distances.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning" (T5), section 2.1; Song et al. 2020, MPNet.
    """

    def __init__(self, heads: int, relative: Relative) -> None:
        super().__init__()
        self.relative = relative
        self.bias = nn.Embedding(relative.buckets, heads)

    def forward(self, pack: TensorPack, dtype: torch.dtype) -> PackPositions:
        """Biases of each length of row in the pack."""
        lengths = {group.length for group in pack.groups}
        buckets = {length: self.buckets(_distances(length, pack.ids.device)) for length in lengths}
        return _PackBiases({length: self.bias(found).permute(2, 0, 1).to(dtype) for length, found in buckets.items()})

    def buckets(self, apart: Tensor) -> Tensor:
        """The bucket of each distance from key to query: half for each direction, far ones by logarithm."""
        half = self.relative.buckets // 2
        exact = half // 2
        far = (apart.abs().float() / exact).log() / math.log(self.relative.max_distance / exact) * (half - exact)
        coarse = (exact + far.long()).clamp(max=half - 1)
        return torch.where(apart.abs() < exact, apart.abs(), coarse) + half * (apart < 0)


class _PackBiases(PackPositions):
    def __init__(self, biases: dict[int, Tensor]) -> None:
        self.biases = biases

    def bias(self, attention: Any) -> Bias:
        return lambda query, key: self.biases[query.shape[2]]


class Disentangled(nn.Module):
    """A vector for each distance, multiplied with queries and keys in each block.

    Args:
        config: of the encoder; `relative` says how.

    Source: He et al. 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", section 3.1.
    """

    def __init__(self, config: EncoderConfig, relative: Relative) -> None:
        super().__init__()
        self.relative = relative
        self.embeddings = nn.Embedding(2 * _span(relative), config.width)
        self.norm = nn.LayerNorm(config.width, config.eps) if relative.normed else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def forward(self, pack: TensorPack, dtype: torch.dtype) -> PackPositions:
        """The distance vectors, and their indices for each query and key, by row length."""
        lengths = {group.length for group in pack.groups}
        rows = {length: self.rows(_distances(length, pack.ids.device)) for length in lengths}
        table = self.norm(self.embeddings.weight)
        return _PackDistances(self, lambda: self.dropout(table).to(dtype), rows)

    def sides(self, table: Tensor, attention: Any) -> tuple[Tensor | None, Tensor | None]:
        """The distance vectors for keys and those for queries, from a block's own layers."""
        if self.relative.shared:
            query_side, key_side, _ = attention.qkv(table).chunk(3, -1)
            terms = self.relative.terms
            return query_side if "p2c" in terms else None, key_side if "c2p" in terms else None
        layers = attention.distance_query, attention.distance_key
        query_side, key_side = (layer(table) if layer is not None else None for layer in layers)
        return query_side, key_side

    def rows(self, apart: Tensor) -> Tensor:
        """The row of the table for each distance from key to query; far distances share one, by logarithm."""
        span = _span(self.relative)
        if self.relative.buckets > 0:
            exact = span // 2
            # In float32, as in training, so that distances on a boundary fall into the same bucket.
            whole = torch.tensor((self.relative.max_distance - 1) / exact, device=apart.device).log()
            far = (apart.abs().clamp(min=exact) / exact).log() / whole
            coarse = ((far * (exact - 1)).ceil() + exact).long() * apart.sign()
            apart = torch.where(apart.abs() <= exact, apart, coarse)
        return (apart + span).clamp(0, 2 * span - 1)


class _PackDistances(PackPositions):
    def __init__(self, part: Disentangled, table: Callable[[], Tensor], rows: dict[int, Tensor]) -> None:
        self.part, self.table, self.rows = part, table, rows

    def bias(self, attention: Any) -> Bias:
        query_side, key_side = self.part.sides(self.table(), attention)  # in training each block has its own dropout

        def by_head(vectors: Tensor) -> Tensor:  # [distances, width] -> [heads, size, distances]
            return vectors.view(len(vectors), attention.heads, -1).permute(1, 2, 0)

        def scores(query: Tensor, key: Tensor) -> Tensor:
            rows = self.rows[query.shape[2]].expand(*query.shape[:3], -1)
            added = torch.zeros((), dtype=query.dtype, device=query.device)
            if key_side is not None:
                added = added + (query @ by_head(key_side).to(query.dtype)).gather(-1, rows)
            if query_side is not None:
                side = by_head(query_side * attention.scale).to(key.dtype)
                added = added + (key @ side).gather(-1, rows.transpose(2, 3)).transpose(2, 3)
            return added

        return scores


def _span(relative: Relative) -> int:
    return relative.buckets if relative.buckets > 0 else relative.max_distance


def _distances(length: int, device: torch.device) -> Tensor:
    """Query position minus key position, int64 [length, length]."""
    positions = torch.arange(length, device=device)
    return positions[:, None] - positions


def positions(config: EncoderConfig) -> nn.Module:
    """The positions part of an encoder."""
    if config.rotary:
        return Rotary(config.width // config.heads, config.rotary)
    if config.relative is None:
        return NoPositions()
    match config.relative.kind:
        case "bias":
            return RelativeBias(config.heads, config.relative)
        case "disentangled":
            return Disentangled(config, config.relative)
        case kind:
            raise ValueError(f"relative positions are of the kind {kind!r}; expected bias or disentangled")
