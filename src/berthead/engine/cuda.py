"""Pack -> logits on GPUs: an engine for one GPU, and one engine a GPU for all of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from queue import LifoQueue
from typing import Any

import torch
from torch import Tensor

from berthead.engine.cuda_attention import Kernel, kernel_for, prepared
from berthead.engine.cuda_graphs import Graphs, Record, recorded
from berthead.engine.forks import refuse_child
from berthead.errors import UsageError, counted
from berthead.model.model import Model
from berthead.model.tensors import TensorPack
from berthead.records import FloatArray, Pack
from berthead.text.bounds import check_pack

# The error in a forked child: where, what was found, what to do.
NO_GPU = (
    "--device cuda", "this process was forked from one that used the GPU; CUDA does not survive a fork",
    'Start the process with multiprocessing\'s method "spawn", and load the function there.',
)  # fmt: skip


@contextmanager
def memory_explained(pack: Pack) -> Iterator[None]:
    """Turn out-of-memory errors of a GPU into an error that says what helps."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        saw = f"the GPU has too little memory to compute {counted(len(pack.ids), 'token')} at once"
        raise UsageError("--device cuda", saw, "fewer tokens", "Give a smaller --token-budget.") from error


class CudaEngine:
    """A prepared model on one GPU; safe to call from many threads.

    Args:
        model: the fitted model; it is copied.
        precision: `fp32` or `bf16`.
        device: the GPU.
        kernel: the attention kernel for all rows of a pack at once; None: torch, one row length after another.
        record: records the launches of small packs, if there is a kernel; None: no recording.

    Attributes:
        kernels: what computes the encoder: `cuda`, and the kernel of attention.
    """

    def __init__(
        self, model: Model, precision: str, device: torch.device, kernel: Kernel | None, record: Record | None
    ) -> None:
        self.precision, self.device = precision, device
        self.kernels = f"cuda varlen {kernel.name}" if kernel else "cuda torch"
        self.model = prepared(model, precision, device, kernel)
        self._graphs = Graphs(self.model.encoder, device, record) if kernel and record else None
        self._lock = threading.Lock()

    def logits(self, pack: Pack) -> FloatArray:
        """Logits of the pack's rows or tokens, float32 [rows or tokens, outputs]."""
        return self._run(self.model.head, pack)

    def pooled(self, pack: Pack) -> FloatArray:
        """The head's input of the pack's rows or tokens, float32 [rows or tokens, width]."""
        return self._run(self.model.head.pool, pack)

    def _run(self, function: Callable[[Tensor, TensorPack], Tensor], pack: Pack) -> FloatArray:
        check_pack(pack, self.model.encoder.config)  # out-of-bounds reads make a GPU unusable for the process
        here = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with memory_explained(pack), self._lock, here, torch.inference_mode():
            found: FloatArray = function(*self._encoded(pack)).float().cpu().numpy()
        return found

    def _encoded(self, pack: Pack) -> tuple[Tensor, TensorPack]:
        replayed = self._graphs.encoded(pack) if self._graphs else None
        if replayed is not None:
            return replayed
        tensors = TensorPack.from_pack(pack, self.device)
        return self.model.encoder(tensors), tensors


class Engines:
    """An engine on each of several devices; a pack goes to a free one. Safe to call from many threads.

    Args:
        make: makes an engine on a device; engines after the first are made when there is work for them.
        devices: one or more.

    Attributes:
        workers: the number of packs computed at once.
    """

    def __init__(self, make: Callable[[torch.device], Any], devices: Sequence[torch.device]) -> None:
        self._make, self.workers, self._process = make, len(devices), os.getpid()
        first = make(devices[0])
        self.precision, self.kernels, self.model = first.precision, first.kernels, first.model
        # The last one used comes first: a caller with one pack at a time stays on one device.
        self._free: LifoQueue[tuple[torch.device, Any]] = LifoQueue()
        for device in reversed(devices[1:]):
            self._free.put((device, None))
        self._free.put((devices[0], first))

    def logits(self, pack: Pack) -> FloatArray:
        """Logits of the pack's rows or tokens, float32 [rows or tokens, outputs]."""
        with self._one() as engine:
            found: FloatArray = engine.logits(pack)
        return found

    def pooled(self, pack: Pack) -> FloatArray:
        """The head's input of the pack's rows or tokens, float32 [rows or tokens, width]."""
        with self._one() as engine:
            found: FloatArray = engine.pooled(pack)
        return found

    @contextmanager
    def _one(self) -> Iterator[Any]:
        refuse_child(self._process, *NO_GPU)
        device, engine = self._free.get()
        try:
            engine = engine or self._make(device)
            yield engine
        finally:
            self._free.put((device, engine))


def all_gpus(model: Model, precision: str) -> Engines:
    """An engine on each GPU that torch finds, in `fp32` or `bf16`."""

    def make(device: torch.device) -> CudaEngine:
        return CudaEngine(model, precision, device, kernel_for(model.encoder, precision, device), recorded)

    return Engines(make, [torch.device("cuda", number) for number in range(torch.cuda.device_count())])
