"""Pack -> logits on a CPU, by a model prepared once for a precision and this processor."""

from __future__ import annotations

from typing import Any

import torch

from berthead.engine import cuda, forks
from berthead.engine import cuda_attention as varlen
from berthead.engine.prepacked import PRECISIONS, has_onednn, prepacked
from berthead.engine.threads import available_threads, startable
from berthead.errors import MachineError, UsageError
from berthead.kernels import library, native
from berthead.model.model import Model
from berthead.model.tensors import TensorPack
from berthead.records import FloatArray, Pack
from berthead.text.bounds import check_pack

CPU = torch.device("cpu")


class CpuEngine:
    """A prepared model; safe to call from many threads.

    Args:
        model: the fitted model; it is not changed, and its embeddings are shared.
        precision: `fp32`, `bf16` or `int8`.

    Attributes:
        kernels: what computes the encoder: `torch`, `oneDNN`, or the name of our own kernels.
        workers: packs computed at once: one, by all threads.

    Raises:
        UsageError: this machine does not support this encoder in this precision.
    """

    workers = 1

    def __init__(self, model: Model, precision: str = "fp32") -> None:
        self.precision = precision
        self.kernels = kernels_of(model, precision)
        self.model = prepared(model, precision)
        self._lock = forks.fork_lock()

    def logits(self, pack: Pack) -> FloatArray:
        """Logits of the pack's rows, float32 [rows, outputs]."""
        return self._run(self.model, pack)

    def pooled(self, pack: Pack) -> FloatArray:
        """The head's input of the pack's rows, float32 [rows, width]."""
        return self._run(lambda tensors: self.model.head.pool(self.model.encoder(tensors), tensors), pack)

    def _run(self, function: Any, pack: Pack) -> FloatArray:
        check_pack(pack, self.model.encoder.config)
        with self._lock, torch.inference_mode():
            result: FloatArray = function(TensorPack.from_pack(pack)).float().numpy()
        return result


class DeviceEngine:
    """An unprepared model on the device of its parameters: scores held-out rows during a fit on a GPU.

    Args:
        model: it is put into evaluation mode while it computes, and otherwise not changed.
        device: the device of its parameters.
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
        check_pack(pack, self.model.encoder.config)
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                result: FloatArray = function(TensorPack.from_pack(pack, self.device)).float().cpu().numpy()
        finally:
            self.model.train(training)
        return result


def computed_by(kernels: str, device: torch.device) -> dict[str, Any]:
    """Everything that decides the last bits of numbers, as JSON.

    Args:
        kernels: the names of the kernels, separated by `, `.
        device: the device.

    Returns:
        `torch`, `kernels`, and `threads` or `gpus` if they matter.
    """
    by: dict[str, Any] = {"torch": str(torch.__version__), "kernels": kernels}
    if device.type == "cuda":
        names = {torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}
        return by | {"gpus": sorted(names)}
    # Our kernels give each row to one thread; torch may split a row's sums.
    ours = not {"torch", "oneDNN"} & {*kernels.split(", ")}
    return by if ours else by | {"threads": torch.get_num_threads()}


def kernels_of(model: Model, precision: str) -> str:
    """What computes a model's encoder: `torch`, `oneDNN`, or the name of our own kernels."""
    if native.computes(model.encoder, precision):
        return library.chosen()
    return "oneDNN" if has_onednn(PRECISIONS.get(precision, torch.float32)) else "torch"


def prepared(model: Model, precision: str, memo: dict[Any, Any] | None = None, device: torch.device = CPU) -> Model:
    """A copy of the model, prepared for speed on this machine; on a CPU unchanged parameters are shared.

    Args:
        model: the fitted model; it is not changed.
        precision: `fp32`, `bf16` or `int8`; the head computes in float32.
        memo: parts already prepared for other models; shared parts are prepared once.
        device: where it is computed.

    Returns:
        The prepared model, in evaluation mode.

    Raises:
        UsageError: this machine does not support this encoder in this precision.
    """
    if device.type == "cuda":
        kernel = varlen.kernel_for(model.encoder, precision, device)
        return varlen.prepared(model, precision, device, kernel, memo)
    if native.computes(model.encoder, precision):
        return native.pack_weights(model, precision, memo)
    if precision == "int8":
        saw = f"{native.why_not(model.encoder)}; torch does not support int8"
        raise UsageError("--precision int8", saw, "fp32 or bf16", "Leave --precision out.")
    return prepacked(model, precision, memo)


def applied(model: Model, precision: str, device: torch.device) -> CpuEngine | cuda.Engines:
    """The engine of a fitted model: one on a CPU, or one on each GPU for `cuda`."""
    return CpuEngine(model, precision) if device.type == "cpu" else cuda.all_gpus(model, precision)


def engine_for(model: Model, device: torch.device, precision: str = "fp32") -> CpuEngine | DeviceEngine:
    """The engine during a fit: the CPU engine, or on other devices the model itself in float32."""
    return CpuEngine(model, precision) if device.type == "cpu" else DeviceEngine(model, device)


def has_fast_bf16(device: torch.device | None = None) -> bool:
    """Whether this processor, or that device, multiplies bfloat16 in hardware."""
    if device is not None and device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch reports it only through private names; without them float32 is used.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def find_device(name: str, precision: str = "fp32") -> torch.device:
    """A device by its name.

    Args:
        name: `cpu` or `cuda`.
        precision: the precision to compute in.

    Returns:
        The device.

    Raises:
        UsageError: torch does not find the device, or it does not support this precision.
        MachineError: this process was forked from one that used the GPU.
    """
    # A private name: without it torch raises its own error at the first computation.
    if name == "cuda" and getattr(torch.cuda, "_is_in_bad_fork", bool)():
        raise MachineError(cuda.NO_GPU[0], cuda.NO_GPU[1], fix=cuda.NO_GPU[2])
    if name == "cuda" and precision == "int8":
        saw = "is not supported with --device cuda"
        raise UsageError("--precision int8", saw, "fp32 or bf16", "Leave --precision out.")
    if name == "cuda" and not torch.cuda.is_available():
        fix = "Leave --device out, or install a torch that was built for this machine's GPU."
        raise UsageError("--device cuda", "torch sees no CUDA device", "cpu", fix)
    return torch.device(name)


def use_threads(wanted: int | None) -> int:
    """Let torch use this many processor threads.

    Args:
        wanted: the number; None: all that this process may use.

    Returns:
        The number now in use.
    """
    torch.set_num_threads(1 if forks.is_alone() else startable(wanted or available_threads()))
    return torch.get_num_threads()
