"""Too little memory: recognising the error, and releasing what is cached."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from berthead.errors import MachineError
from berthead.kernels import training_passes as passes

# Messages of torch's plain RuntimeErrors; the last is oneDNN without room for its code.
_WORDS = (
    "not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory", "std::bad_alloc",
    "cublas_status_alloc_failed", "could not create a primitive",
)  # fmt: skip
WAYS_OUT = "Give more memory, a lower --max-tokens, or --adapt frozen, top:K or lora:R."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was too little memory, on the CPU or on a GPU.

    Example:
        >>> said = "DefaultCPUAllocator: can't allocate memory", "mat1 and mat2 shapes cannot be multiplied"
        >>> [is_out_of_memory(RuntimeError(words)) for words in said]
        [True, False]
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


def give_back() -> None:
    """Free memory that is held for reuse."""
    passes.forget_tapes()
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


@contextmanager
def explained() -> Iterator[None]:
    """Turn an out-of-memory error into a MachineError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise MachineError("fit", f"is out of memory ({said})", "", WAYS_OUT) from error
