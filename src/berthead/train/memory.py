"""Too little memory: how it is told apart from other errors, and what can be given back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from berthead.errors import MachineError
from berthead.infer import native

# What torch says where it raises a plain RuntimeError.
_WORDS = (
    "not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory", "std::bad_alloc",
    "cublas_status_alloc_failed",
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
    """Free what is held for reuse: it was made for passes that were too large."""
    native.forget_tapes()
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


@contextmanager
def explained() -> Iterator[None]:
    """Where too little memory cannot be helped, it is an error with a way out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError("fit", "is out of memory", "", WAYS_OUT) from error
