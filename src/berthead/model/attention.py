"""Packed attention: every row attends to itself, and no padding token is ever computed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from berthead.model.tensors import Run

# Measured on CPU at head size 32: plain products win on short rows, the fused kernel's memory on long ones.
LONGEST_MATMUL = 128
# In bfloat16, oneDNN makes a kernel for each shape of a product: up to this length that costs more than it gains.
LONGEST_FLOAT32 = 64


def kernel_for(device: torch.device, length: int, dropout: float) -> str:
    """The kernel that computes rows of this length: `matmul` or `sdpa`.

    Args:
        device: where the tensors lie.
        length: tokens in a row.
        dropout: share of attention weights dropped; above 0 only in training.

    Returns:
        `matmul` (product, softmax, product) or `sdpa` (torch's fused kernel).
    """
    if dropout > 0 or (device.type == "cpu" and length <= LONGEST_MATMUL):
        return "matmul"
    return "sdpa"


def attention(qkv: Tensor, runs: tuple[Run, ...], heads: int, dropout: float = 0.0) -> Tensor:
    """Multi-head self-attention within each row of a pack.

    Args:
        qkv: queries, keys and values side by side, [tokens, 3 * width].
        runs: the pack's rows as runs of equal length.
        heads: attention heads; width is a multiple of it.
        dropout: share of attention weights dropped (0 in evaluation: the caller gates it).

    Returns:
        The attended values, [tokens, width].

    Example:
        >>> attention(torch.zeros(5, 12), (Run(0, 1, 2), Run(2, 1, 3)), heads=2).shape
        torch.Size([5, 4])

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.
    """
    width = qkv.shape[1] // 3
    attended = []
    for run in runs:
        tokens = qkv[run.first : run.first + run.rows * run.length]
        split = tokens.view(run.rows, run.length, 3, heads, width // heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)  # each [rows, heads, length, size]
        mixed = _attend(query, key, value, dropout)
        attended.append(mixed.transpose(1, 2).reshape(run.rows * run.length, width))
    return attended[0] if len(attended) == 1 else torch.cat(attended)


def _attend(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    if kernel_for(query.device, query.shape[2], dropout) == "sdpa":
        return F.scaled_dot_product_attention(query, key, value)
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and query.shape[2] <= LONGEST_FLOAT32:
        with torch.autocast("cpu", enabled=False):
            return _products(query.float(), key.float(), value.float(), dropout).to(query.dtype)
    return _products(query, key, value, dropout)


def _products(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2)  # [rows, heads, length, length]
    weights = scores.softmax(-1)
    if dropout > 0:
        weights = F.dropout(weights, dropout)
    return weights @ value
