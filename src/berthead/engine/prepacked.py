"""An encoder on torch's operators, with linear layers prepacked by oneDNN; used without our own kernels."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from berthead.errors import UsageError
from berthead.model.capabilities import Supported
from berthead.model.encoder import Block, Encoder
from berthead.model.model import Model
from berthead.model.tensors import TensorPack

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# In float32 every part works. These also accept and return bfloat16.
BF16_SUPPORTED = Supported()
# The number of activation rows for which oneDNN packs weights; other numbers work with the same packing.
TYPICAL_TOKENS = 2048


class PackedLinear(nn.Module):
    """A linear layer with weights prepacked for oneDNN and a fused activation.

    Args:
        linear: the layer it replaces.
        dtype: arithmetic.
        fused: oneDNN's name and algorithm of the activation, such as ("gelu", "none"); ("none", "none") for none.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, fused: tuple[str, str] = ("none", "none")) -> None:
        super().__init__()
        weight = linear.weight.detach().to(dtype).contiguous()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_TOKENS)
        self.bias = _cast(linear.bias, dtype)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        """Activations [tokens, in] -> [tokens, out]."""
        kind, algorithm = self.fused
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, kind, [], algorithm)
        return y


class CastLinear(nn.Module):
    """A linear layer with its weights cast once: used without oneDNN, or if it does not support this processor."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight.detach().to(dtype), _cast(linear.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Activations [tokens, in] -> [tokens, out]."""
        return F.linear(x, self.weight, self.bias)


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.detach().to(dtype)


class CastEmbeddings(nn.Module):
    """Embeddings computed in float32, with output in the engine's precision."""

    def __init__(self, embeddings: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.embeddings, self.dtype = embeddings, dtype

    def forward(self, pack: TensorPack) -> Tensor:
        """Vectors of the pack's tokens, [tokens, width]."""
        vectors: Tensor = self.embeddings(pack).to(self.dtype)
        return vectors


def check_bf16(encoder: Encoder) -> None:
    """Refuse an encoder with parts that are not known to support bfloat16.

    Args:
        encoder: of any parts.

    Raises:
        UsageError: names the part.
    """
    if part := BF16_SUPPORTED.why_not(encoder):
        raise UsageError("--precision bf16", f"{part}, which is not supported in bfloat16", "fp32")


def prepacked(model: Model, precision: str, memo: dict[Any, Any] | None = None) -> Model:
    """A copy of the model with its encoder's linear layers replaced; unchanged parameters are shared.

    Args:
        model: the fitted model.
        precision: arithmetic of the encoder, `fp32` or `bf16`; the head stays in float32.
        memo: the memo of `copy.deepcopy`, with parts of other models; shared parts are prepared once.

    Returns:
        The prepared model, in evaluation mode.

    Raises:
        UsageError: bfloat16 with a part that is not known to support it.
    """
    copied, dtype = {} if memo is None else memo, PRECISIONS[precision]
    if dtype != torch.float32:
        check_bf16(model.encoder)
    copied |= {id(tensor): tensor for tensor in model.parameters()}
    prepared = copy.deepcopy(model, copied)
    for block in prepared.encoder.blocks:
        if type(block) is not Block:
            continue  # it needs no change
        for name, layer in list(block.attention.named_children()):
            if type(layer) is nn.Linear:  # a subclass may compute something else
                setattr(block.attention, name, linear(layer, dtype))
        _prepare_mlp(block.mlp, dtype)
    if dtype != torch.float32:
        prepared.encoder.embeddings = CastEmbeddings(prepared.encoder.embeddings, dtype)  # type: ignore[assignment]
    return prepared.eval()


def _prepare_mlp(mlp: nn.Sequential, dtype: torch.dtype) -> None:
    up, function, down = mlp.get_submodule("up"), mlp.get_submodule("activation"), mlp.get_submodule("down")
    if not (type(up) is nn.Linear and type(down) is nn.Linear):
        return  # already prepared, or needs no change
    fused = _fused(function) if has_onednn(dtype) else None
    if fused is not None:
        mlp.add_module("up", PackedLinear(up, dtype, fused))
        mlp.add_module("activation", nn.Identity())
    else:
        mlp.add_module("up", linear(up, dtype))
    mlp.add_module("down", linear(down, dtype))


def _fused(function: nn.Module) -> tuple[str, str] | None:
    if type(function) is nn.GELU:
        return "gelu", function.approximate
    return ("relu", "none") if type(function) is nn.ReLU else None


def linear(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """The replacement of a linear layer in this arithmetic."""
    return PackedLinear(layer, dtype) if has_onednn(dtype) else CastLinear(layer, dtype)


def has_onednn(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch has oneDNN's prepacked linear layers, in this arithmetic on this processor."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
