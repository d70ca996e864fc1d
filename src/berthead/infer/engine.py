"""A model prepared once for a precision: linear layers prepacked for this processor, then Pack -> logits."""

from __future__ import annotations

import copy
import os
import threading
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from berthead.errors import UsageError
from berthead.model.encoder import Block
from berthead.model.model import Model
from berthead.model.tensors import TensorPack
from berthead.records import FloatArray, Pack

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The rows of activations that oneDNN lays the weights out for; other numbers work with the same layout.
TYPICAL_TOKENS = 2048


class PackedLinear(nn.Module):
    """A linear layer whose weights lie as oneDNN wants them, with the activation after it computed in one pass.

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
    """A linear layer with its weights cast once: where oneDNN is absent."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight.detach().to(dtype), _cast(linear.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Activations [tokens, in] -> [tokens, out]."""
        return F.linear(x, self.weight, self.bias)


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.detach().to(dtype)


class CastEmbeddings(nn.Module):
    """Embeddings in float32, handed on in the engine's precision."""

    def __init__(self, embeddings: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.embeddings, self.dtype = embeddings, dtype

    def forward(self, pack: TensorPack) -> Tensor:
        """Vectors of the pack's tokens, [tokens, width]."""
        vectors: Tensor = self.embeddings(pack).to(self.dtype)
        return vectors


class Engine:
    """A model ready to be applied; safe to call from many threads.

    Args:
        model: the fitted model; it is not changed, and its embeddings are shared.
        precision: `fp32` or `bf16`.
    """

    def __init__(self, model: Model, precision: str = "fp32") -> None:
        self.precision = precision
        self.kernels = "oneDNN, weights prepacked" if _has_onednn() else "torch"
        self.model = prepare(model, PRECISIONS[precision])
        # One pack at a time: every pack uses all threads already.
        self._lock = threading.Lock()

    def logits(self, pack: Pack) -> FloatArray:
        """Logits of the pack's rows, float32 [rows, outputs]."""
        return self._run(self.model, pack)

    def pooled(self, pack: Pack) -> FloatArray:
        """The head's input of the pack's rows, float32 [rows, width]."""
        return self._run(lambda tensors: self.model.head.pool(self.model.encoder(tensors), tensors), pack)

    def _run(self, function: Any, pack: Pack) -> FloatArray:
        with self._lock, torch.inference_mode():
            result: FloatArray = function(TensorPack.from_pack(pack)).float().numpy()
        return result


class DeviceEngine:
    """A model applied as it is, where its parameters lie: what scores held-out rows while a GPU fits.

    Args:
        model: it is not changed, but put into evaluation mode while it computes.
        device: where its parameters lie.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model, self.device = model, device

    def logits(self, pack: Pack) -> FloatArray:
        """Logits of the pack's rows or tokens, float32 [rows or tokens, outputs]."""
        return self._run(self.model, pack)

    def pooled(self, pack: Pack) -> FloatArray:
        """The head's input of the pack's rows or tokens, float32 [rows or tokens, width]."""
        return self._run(lambda tensors: self.model.head.pool(self.model.encoder(tensors), tensors), pack)

    def _run(self, function: Any, pack: Pack) -> FloatArray:
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                result: FloatArray = function(TensorPack.from_pack(pack, self.device)).float().cpu().numpy()
        finally:
            self.model.train(training)
        return result


def engine_for(model: Model, device: torch.device, precision: str = "fp32") -> Engine | DeviceEngine:
    """What applies a model during a fit: the engine on a CPU, the model itself, in float32, elsewhere."""
    return Engine(model, precision) if device.type == "cpu" else DeviceEngine(model, device)


def prepare(model: Model, dtype: torch.dtype, memo: dict[int, Any] | None = None) -> Model:
    """A copy of the model with its encoder's linear layers replaced; parameters that stay are shared.

    Args:
        model: the fitted model.
        dtype: arithmetic of the encoder; the head stays in float32.
        memo: what `copy.deepcopy` has copied of other models: parts that models share are prepared once.

    Returns:
        The prepared model, in evaluation mode.
    """
    copied = {} if memo is None else memo
    copied |= {id(tensor): tensor for tensor in model.parameters()}
    prepared = copy.deepcopy(model, copied)
    for block in prepared.encoder.blocks:
        assert isinstance(block, Block)
        for name, layer in list(block.attention.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(block.attention, name, _linear(layer, dtype))
        _prepare_mlp(block.mlp, dtype)
    if dtype != torch.float32:
        prepared.encoder.embeddings = CastEmbeddings(prepared.encoder.embeddings, dtype)  # type: ignore[assignment]
    return prepared.eval()


def _prepare_mlp(mlp: nn.Sequential, dtype: torch.dtype) -> None:
    up, function, down = mlp.get_submodule("up"), mlp.get_submodule("activation"), mlp.get_submodule("down")
    if not (isinstance(up, nn.Linear) and isinstance(down, nn.Linear)):
        return  # prepared already
    fused = _fused(function) if _has_onednn() else None
    if fused is not None:
        mlp.add_module("up", PackedLinear(up, dtype, fused))
        mlp.add_module("activation", nn.Identity())
    else:
        mlp.add_module("up", _linear(up, dtype))
    mlp.add_module("down", _linear(down, dtype))


def _fused(function: nn.Module) -> tuple[str, str] | None:
    if isinstance(function, nn.GELU):
        return "gelu", function.approximate
    return ("relu", "none") if isinstance(function, nn.ReLU) else None


def _linear(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    return PackedLinear(linear, dtype) if _has_onednn() else CastLinear(linear, dtype)


def _has_onednn() -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def has_fast_bf16(device: torch.device | None = None) -> bool:
    """Whether this processor, or that device, multiplies bfloat16 in hardware."""
    if device is not None and device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch says so only through private names; without them the exact arithmetic is used.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def find_device(name: str) -> torch.device:
    """A device by its name.

    Args:
        name: `cpu` or `cuda`.

    Returns:
        The device.

    Raises:
        UsageError: torch sees no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        fix = "Leave --device out, or install a torch that was built for this machine's GPU."
        raise UsageError("--device cuda", "torch sees no CUDA device", "cpu", fix)
    return torch.device(name)


def use_threads(wanted: int | None) -> int:
    """Let torch use this many processor threads.

    Args:
        wanted: how many; None: what this process may use.

    Returns:
        How many are used now.
    """
    torch.set_num_threads(wanted or available_threads())
    return torch.get_num_threads()


def available_threads() -> int:
    """Threads that this process may use: affinity, cgroup quota and OMP_NUM_THREADS respected."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [affinity, _cgroup_quota()]
    words = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if words.isdecimal():
        limits.append(int(words))
    return max(1, min(limit for limit in limits if limit))


def _cgroup_quota() -> int:
    """Whole processors of the control group's quota; 0 where there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period)) if quota != "max" else 0
    except (OSError, ValueError, ZeroDivisionError):
        return 0
