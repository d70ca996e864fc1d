"""Loading the C++ library, and choosing its kernels for this processor."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache

from berthead.errors import UsageError
from berthead.kernels import abi
from berthead.kernels.abi import POINTER, AdamWSteps, BlockSpec, EmbeddingSpec, TrainingPass, TrainingSpec

# Selects the kernels: `torch` for none of ours, or the name of an instruction set of this processor.
SWITCH = "BERTHEAD_KERNELS"
_EXTENSION = "berthead.kernels._native"

ACTIVATIONS = {
    name: abi.FUNCTIONS[function]
    for function, names in {
        "gelu": ("gelu", "gelu_python"), "gelu_tanh": ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
        "relu": ("relu",), "silu": ("silu", "swish"), "tanh": ("tanh",),
    }.items()
    for name in names
}  # fmt: skip
"""The activations that the kernels compute, by transformers' names."""


@cache
def loaded() -> ctypes.CDLL | None:
    """The library; None: it was not built when this package was installed.

    Raises:
        UsageError: it was built from other sources, or cannot be loaded.
    """
    spec = importlib.util.find_spec(_EXTENSION)
    return None if spec is None or spec.origin is None else load(spec.origin)


def load(path: str) -> ctypes.CDLL:
    """Load a library file.

    Args:
        path: the file's path.

    Raises:
        UsageError: it was built from other sources, or cannot be loaded.
    """
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise UsageError(path, f"cannot be loaded ({error})", fix=abi.REBUILD) from error
    abi.check(library, path)
    _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    """Declare the argument and return types of csrc/c_api.cpp."""
    name, integer, spec = ctypes.c_char_p, ctypes.c_int, ctypes.POINTER
    functions = {
        "kernel_name": (name, [integer]),
        "encoder_new": (POINTER, [name, integer]),
        "encoder_add_block": (integer, [POINTER, spec(BlockSpec)]),
        "encoder_run": (integer, [
            POINTER, POINTER, integer, spec(EmbeddingSpec), POINTER, POINTER, POINTER, POINTER, POINTER, integer,
            POINTER, integer, integer,
        ]),
        "encoder_free": (None, [POINTER]),
        "tape_bytes": (ctypes.c_size_t, [name, integer, spec(TrainingSpec), integer, integer]),
        "train": (integer, [name, integer, spec(TrainingSpec), spec(TrainingPass), integer, integer]),
        "adamw": (integer, [name, spec(AdamWSteps), integer]),
        "peak": (ctypes.c_double, [name, integer, integer, ctypes.c_double]),
    }  # fmt: skip
    for function, (returns, takes) in functions.items():
        entry = getattr(library, f"berthead_{function}")
        entry.restype, entry.argtypes = returns, takes


def built() -> bool:
    """Whether the kernels were built when this package was installed."""
    return loaded() is not None


def kernels() -> list[str]:
    """Names of the kernels that this processor can run, the best last; empty if they were not built."""
    library, names = loaded(), list[str]()
    if library is not None:
        while (name := library.berthead_kernel_name(len(names))) is not None:
            names.append(name.decode())
    return names


def chosen() -> str:
    """The kernels in use: the best, or those named by the environment variable BERTHEAD_KERNELS.

    Returns:
        One of `kernels()`, or `torch`.

    Raises:
        UsageError: the variable names unavailable kernels, or the library was built from other sources.
    """
    named = os.environ.get(SWITCH, "")
    if named == "torch":
        return named
    usable = ["torch", *kernels()]
    if named and named not in usable:
        raise UsageError(SWITCH, f"is {named!r}", f"one of {', '.join(usable)}", "Unset it to use the best kernels.")
    return named or usable[-1]


def has_bf16(name: str) -> bool:
    """Whether kernels multiply bfloat16 in hardware."""
    return name.endswith(("bf16", "amx"))


def peak(precision: str, threads: int, seconds: float = 0.1) -> float:
    """The peak speed of this machine: a tile's product in the L1 cache, by the chosen kernels.

    Args:
        precision: `fp32`, `bf16` or `int8`, supported by them.
        threads: the number of threads.
        seconds: how long to measure.

    Returns:
        Operations per second of all threads; an addition and a multiplication are two.
    """
    library = loaded()
    assert library is not None
    rate: float = library.berthead_peak(chosen().encode(), abi.PRECISIONS[precision], threads, seconds)
    if rate <= 0:
        raise MemoryError("no memory to measure the machine with")
    return rate
