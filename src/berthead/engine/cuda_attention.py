"""Attention on a GPU for rows of any lengths in one launch (varlen attention)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from berthead.engine.prepacked import PRECISIONS, CastEmbeddings, check_bf16
from berthead.model.attention import attention
from berthead.model.encoder import Attention, Block, Encoder
from berthead.model.model import Model
from berthead.model.positions import NoPositions, PackPositions, Rotary
from berthead.model.tensors import RowGroup, TensorPack


class Rows(NamedTuple):
    """Row boundaries on the device, for a kernel.

    Args:
        edges: the first token of each row, and the end of the last, int32 [rows + 1]; rows may be empty.
        longest: an upper bound of the longest row's tokens.
    """

    edges: Tensor
    longest: int


Attend = Callable[[Tensor, Tensor, Tensor, Rows, float, int], Tensor]
"""Queries, keys, values, each [tokens, heads, size], the rows, the scores' scale, how many tokens each way are seen (0:
all) -> the attended values, [tokens, heads, size]."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A varlen attention kernel.

    Args:
        name: the name in `bench`.
        attend: the function.
    """

    name: str
    attend: Attend


def flash(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, local: int) -> Tensor:
    """FlashAttention, in bfloat16.

    Source: Dao 2023, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning".
    """
    from torch.nn.attention.varlen import varlen_attn  # imports torch's compiler, for seconds

    window = (local, local) if local else (-1, -1)
    lengths = (rows.edges, rows.edges, rows.longest, rows.longest)
    mixed: Tensor = varlen_attn(query, key, value, *lengths, scale=scale, window_size=window)  # type: ignore[assignment]
    return mixed


def efficient(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, local: int) -> Tensor:
    """Memory-efficient attention, in float32: torch's kernel for nested tensors.

    Source: Rabe and Staats 2021, "Self-attention Does Not Need O(n^2) Memory".
    """
    if local:
        raise NotImplementedError("it sees all tokens of a row")
    sides = (side[None] for side in (query, key, value))
    lengths = (rows.edges, rows.edges, rows.longest, rows.longest)
    mixed: Tensor = torch.ops.aten._efficient_attention_forward(*sides, None, *lengths, 0.0, 0, scale=scale)[0]
    return mixed[0]


KERNELS = {"fp32": Kernel("efficient", efficient), "bf16": Kernel("flash", flash)}
# The tolerance of a kernel against plain products, on values of size 1.
TOLERANCES = {"fp32": 1e-4, "bf16": 3e-2}
# Errors of a torch that lacks a kernel, or has it with other arguments (2.10: `varlen_attn` without `scale`).
REFUSALS = (RuntimeError, ImportError, AttributeError, TypeError, ValueError)


# Supported positions: none, or rotary. No kernel here adds to the scores.
POSITIONS = frozenset({NoPositions, Rotary})


def supports(encoder: Encoder) -> bool:
    """Whether an encoder's attention may be replaced; by exact type: a subclass may compute something else."""
    blocks = all(type(block) is Block and type(block.attention) is Attention for block in encoder.blocks)
    return type(encoder.positions) in POSITIONS and blocks


def kernel_for(encoder: Encoder, precision: str, device: torch.device) -> Kernel | None:
    """The kernel for an encoder's attention; None: each row length is computed separately.

    Args:
        encoder: of any parts.
        precision: `fp32` or `bf16`.
        device: where it is computed.
    """
    return KERNELS[precision] if agrees(KERNELS[precision], encoder, precision, device) else None


def agrees(kernel: Kernel, encoder: Encoder, precision: str, device: torch.device) -> bool:
    """Whether a kernel on a device agrees with plain attention on a CPU, tested with the encoder's own sizes.

    Relative positions add to the scores, which no kernel here supports. Other limits of a kernel (head size, window,
    the GPU's age) show when it is called.
    """
    if not supports(encoder):
        return False
    config = encoder.config
    size, dtype = config.width // config.heads, PRECISIONS[precision]
    for local in set(config.local or (0,)):
        lengths = (2 * local + 9, 5, 1, 0)
        edges = torch.tensor((0, *lengths)).cumsum(0)
        tokens = int(edges[-1])
        qkv = torch.randn(tokens, 3 * config.width, generator=torch.Generator().manual_seed(0)).to(dtype)
        groups = tuple(RowGroup(int(first), 1, length) for first, length in zip(edges, lengths, strict=False) if length)
        wanted = attention(qkv.float(), groups, config.heads, local=local)
        query, key, value = qkv.to(device).view(tokens, 3, config.heads, size).unbind(1)
        try:
            mixed = kernel.attend(query, key, value, Rows(edges.int().to(device), tokens), size**-0.5, local)
        except REFUSALS:
            return False
        if not torch.allclose(mixed.reshape(wanted.shape).float().cpu(), wanted, atol=TOLERANCES[precision], rtol=0):
            return False
    return True


class VarlenAttention(nn.Module):
    """Self-attention by a kernel, with the linear layers of the attention that it replaces.

    Args:
        attention: what it replaces.
        kernel: the kernel.
    """

    def __init__(self, attention: Attention, kernel: Kernel) -> None:
        super().__init__()
        self.attention, self.kernel = attention, kernel

    def forward(self, hidden: Tensor, groups: tuple[RowGroup, ...], positions: RowPositions) -> Tensor:
        """Attended vectors, [tokens, width]."""
        inner = self.attention
        qkv = positions.rotated(inner.qkv(hidden), inner)
        query, key, value = qkv.view(len(qkv), 3, inner.heads, -1).unbind(1)  # each [tokens, heads, size]
        mixed = self.kernel.attend(query, key, value, positions.rows, inner.scale, inner.local)
        projected: Tensor = inner.out(mixed.reshape(len(qkv), -1))
        return projected


class RowPositions(PackPositions):
    """The positions of the encoder's own part, and the row boundaries."""

    def __init__(self, positions: PackPositions, rows: Rows) -> None:
        self.positions, self.rows = positions, rows

    def rotated(self, qkv: Tensor, attention: Any) -> Tensor:
        """Queries, keys and values as attention reads them, [tokens, 3 * width]."""
        return self.positions.rotated(qkv, attention)


class WithRows(nn.Module):
    """The positions part of an encoder, with the row boundaries added.

    Args:
        positions: the encoder's own part.
    """

    def __init__(self, positions: nn.Module) -> None:
        super().__init__()
        self.positions = positions

    def forward(self, pack: TensorPack, dtype: torch.dtype) -> RowPositions:
        """The pack's positions and rows, once for all layers."""
        edges = torch.cat((pack.starts, pack.starts[-1:] + pack.lengths[-1:])).int()
        return RowPositions(self.positions(pack, dtype), Rows(edges, max(group.length for group in pack.groups)))


def prepared(
    model: Model, precision: str, device: torch.device, kernel: Kernel | None, memo: dict[Any, Any] | None = None
) -> Model:
    """A copy of the model on a device.

    Args:
        model: the fitted model; it is not changed.
        precision: arithmetic of the encoder, `fp32` or `bf16`; the head computes in float32.
        device: the device of the copy.
        kernel: the attention kernel; None: torch, one row length after another.
        memo: parts already copied for other models; shared parts are copied once.

    Returns:
        The copy, in evaluation mode. In float32 a GPU's products are exact from now on: TF32 is off in this process.

    Raises:
        UsageError: bfloat16 with a part that is not known to support it.
    """
    known, dtype = {} if memo is None else memo, PRECISIONS[precision]
    if dtype != torch.float32:
        check_bf16(model.encoder)
    if device.type == "cuda" and dtype == torch.float32:
        torch.set_float32_matmul_precision("highest")
    copied = copy.deepcopy(model, known)
    encoder: Any = copied.encoder
    if kernel is not None:
        encoder.positions = known.setdefault(("rows of", id(encoder.positions)), WithRows(encoder.positions))
        for block in encoder.blocks:
            if type(block.attention) is Attention:  # not replaced yet in a block that models share
                block.attention = VarlenAttention(block.attention, kernel)
    if dtype != torch.float32:
        encoder.embeddings = CastEmbeddings(encoder.embeddings, dtype)
        encoder.blocks.to(dtype)
        encoder.final_norm.to(dtype)
    return copied.to(device).eval()
