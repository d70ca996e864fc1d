"""Packed attention: every row attends to itself, and there are no padding tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from berthead.model.dropout import keep_mask
from berthead.model.positions import Bias
from berthead.model.tensors import RowGroup

# Measured on CPU at head size 32: plain products win on short rows, the fused kernel with its low memory on long ones.
LONGEST_MATMUL = 128
# In bfloat16, oneDNN compiles a kernel for each shape of a product: up to this length that costs more than it gains.
LONGEST_FLOAT32 = 64
# Attention weights in one step of the chunked kernel; between 2**17 and 2**20 speed differs little.
CHUNK_WEIGHTS = 2**18
# The same on a GPU, which has no such cache and waits for launches.
GPU_CHUNK_WEIGHTS = 2**25
# Queries of a long row computed at once in local attention.
LOCAL_QUERIES = 256
# Scores held at once for rows with relative positions.
MOST_SCORES = 2**23


def kernel_for(device: torch.device, length: int, dropout: float) -> str:
    """The kernel that computes rows of this length: `matmul`, `sdpa` or `chunked`.

    Args:
        device: the tensors' device.
        length: tokens in a row.
        dropout: share of attention weights dropped; above 0 only in training.

    Returns:
        `matmul` (product, softmax, product), `sdpa` (torch's fused kernel) or `chunked` (the products of a few rows at
        a time, with dropout).
    """
    if dropout > 0:
        return "chunked"
    return "matmul" if device.type == "cpu" and length <= LONGEST_MATMUL else "sdpa"


def attention(
    qkv: Tensor,
    groups: tuple[RowGroup, ...],
    heads: int,
    dropout: float = 0.0,
    *,
    scale: float | None = None,
    bias: Bias | None = None,
    local: int = 0,
) -> Tensor:
    """Multi-head self-attention within each row of a pack.

    Args:
        qkv: queries, keys and values side by side, [tokens, 3 * width].
        groups: the pack's rows in groups of equal length.
        heads: attention heads; width is a multiple of it.
        dropout: share of attention weights dropped (0 in evaluation: the caller gates it).
        scale: factor of the queries; None: 1 / sqrt(head size).
        bias: relative position terms added to the scores.
        local: how many tokens each way a token attends to; 0: all.

    Returns:
        The attended values, [tokens, width].

    Example:
        >>> attention(torch.zeros(5, 12), (RowGroup(0, 1, 2), RowGroup(2, 1, 3)), heads=2).shape
        torch.Size([5, 4])

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.
    """
    width = qkv.shape[1] // 3
    attended = []
    for group in groups:
        tokens = qkv[group.first : group.first + group.rows * group.length]
        split = tokens.view(group.rows, group.length, 3, heads, width // heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)  # each [rows, heads, length, size]
        if bias is not None:
            mixed = _biased(query * (scale or _scale(query)), key, value, dropout, bias)
        elif 0 < local < group.length - 1:
            mixed = _local(query, key, value, dropout, local)
        else:
            mixed = _attend(query, key, value, dropout)
        attended.append(mixed.transpose(1, 2).reshape(group.rows * group.length, width))
    return attended[0] if len(attended) == 1 else torch.cat(attended)


def _scale(query: Tensor) -> float:
    return 1 / math.sqrt(query.shape[-1])


def _attend(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    kernel = kernel_for(query.device, query.shape[2], dropout)
    if kernel == "sdpa":
        return F.scaled_dot_product_attention(query, key, value)
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and query.shape[2] <= LONGEST_FLOAT32:
        with torch.autocast("cpu", enabled=False):
            return _products(query.float(), key.float(), value.float(), dropout).to(query.dtype)
    return _products(query, key, value, dropout)


def _biased(query: Tensor, key: Tensor, value: Tensor, dropout: float, bias: Bias) -> Tensor:
    """Attention with terms added to the scores, a few rows at a time; queries are already scaled."""
    _, heads, length, _ = query.shape
    step = max(1, MOST_SCORES // (heads * length**2))
    parts = [slice(first, first + step) for first in range(0, len(query), step)]
    scores = (query[part] @ key[part].transpose(2, 3) + bias(query[part], key[part]) for part in parts)
    return torch.cat([_weighted(some, value[part], dropout) for some, part in zip(scores, parts, strict=True)])


def _local(query: Tensor, key: Tensor, value: Tensor, dropout: float, local: int) -> Tensor:
    """Attention within a window, some queries of all rows at a time: linear in the length."""
    length, mixed = query.shape[2], []
    positions = torch.arange(length, device=query.device)
    for first in range(0, length, LOCAL_QUERIES):
        last = min(first + LOCAL_QUERIES, length)
        low, high = max(0, first - local), min(length, last + local)
        near = (positions[first:last, None] - positions[low:high]).abs() <= local
        q, k, v = query[:, :, first:last], key[:, :, low:high], value[:, :, low:high]
        if dropout == 0:
            mixed.append(F.scaled_dot_product_attention(q, k, v, attn_mask=near))
        else:
            scores = (q * _scale(q)) @ k.transpose(2, 3)
            mixed.append(_weighted(scores.masked_fill(~near, -torch.inf), v, dropout))
    return torch.cat(mixed, 2)


def _weighted(scores: Tensor, value: Tensor, dropout: float) -> Tensor:
    weights = scores.softmax(-1)
    if dropout > 0:
        weights = weights * keep_mask(weights.shape, dropout, weights.device) / (1 - dropout)
    return weights @ value


def _products(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    if dropout > 0:
        grouped = (side.flatten(0, 1) for side in (query, key, value))
        mixed: Tensor = _Chunked.apply(*grouped, dropout)  # type: ignore[no-untyped-call]
        return mixed.view_as(query)
    scores = (query * _scale(query)) @ key.transpose(-1, -2)  # [rows, heads, length, length]
    return scores.softmax(-1) @ value


class _Chunked(torch.autograd.Function):
    """Attention with dropout, a few [length, length] products at a time: they stay in the processor's cache.

    Everything is computed in the inputs' precision: autocast computes softmax in float32 on GPUs, and is off in
    `backward`, where float32 values would meet bfloat16 gradients.

    Source of the gradient: Dao et al. 2022, "FlashAttention", appendix B.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Each [groups, length, size] -> [groups, length, size]."""
        scaled = query * _scale(query)
        mixed = torch.empty_like(scaled)
        ctx.dropout, ctx.kept = dropout, []
        with torch.autocast(query.device.type, enabled=False):
            for chunk in _chunks(query):
                weights = (scaled[chunk] @ key[chunk].transpose(1, 2)).softmax(-1)
                mask = keep_mask(weights.shape, dropout, weights.device)
                mixed[chunk] = (weights * mask) @ value[chunk]
                ctx.kept.append((weights, mask))
        mixed.mul_(1 / (1 - dropout))
        ctx.save_for_backward(scaled, key, value, mixed)
        return mixed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of query, key and value."""
        scaled, key, value, mixed = ctx.saved_tensors
        to_query, to_key, to_value = torch.empty_like(scaled), torch.empty_like(key), torch.empty_like(value)
        through_softmax = (grads[0].float() * mixed.float()).sum(-1, keepdim=True).to(scaled.dtype)
        grad = grads[0] * (1 / (1 - ctx.dropout))
        for chunk, (weights, mask) in zip(_chunks(scaled), ctx.kept, strict=True):
            to_value[chunk] = (weights * mask).transpose(1, 2) @ grad[chunk]
            to_scores = (grad[chunk] @ value[chunk].transpose(1, 2)).mul_(mask)
            to_scores.sub_(through_softmax[chunk]).mul_(weights)
            to_query[chunk] = to_scores @ key[chunk]
            to_key[chunk] = to_scores.transpose(1, 2) @ scaled[chunk]
        return to_query.mul_(_scale(scaled)), to_key, to_value, None


def _chunks(query: Tensor) -> list[slice]:
    groups, length, _ = query.shape
    step = max(1, (CHUNK_WEIGHTS if query.device.type == "cpu" else GPU_CHUNK_WEIGHTS) // length**2)
    return [slice(first, min(first + step, groups)) for first in range(0, groups, step)]
