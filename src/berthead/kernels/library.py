"""The library of kernels of our own: which of them this processor can run, and what is handed over to them."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache

from berthead.errors import UsageError

# Chooses the kernels: `torch` for none of ours, or the name of an instruction set that this processor has.
SWITCH = "BERTHEAD_KERNELS"
PRECISIONS = {"fp32": 0, "bf16": 1, "int8": 2}
# Columns of the widest tile of any kernel.
WIDEST_TILE = 32
_EXTENSION = "berthead.kernels._native"
_POINTER = ctypes.c_void_p

ACTIVATIONS = {
    "gelu": 0, "gelu_python": 0, "gelu_new": 1, "gelu_fast": 1, "gelu_pytorch_tanh": 1, "relu": 2, "silu": 3,
    "swish": 3, "tanh": 4,
}  # fmt: skip
WEIGHTS = (
    "qkv", "qkv_bias", "out", "out_bias", "attention_norm", "attention_norm_bias", "up", "up_bias", "down", "down_bias",
    "mlp_norm", "mlp_norm_bias",
)  # fmt: skip
"""The parameters of a block, in the order of csrc/engine.h."""


class BlockSpec(ctypes.Structure):
    """BlockSpec in csrc/engine.h."""

    _fields_ = [
        *((name, _POINTER) for name in (
            *WEIGHTS, "cosines", "sines", "distance_bias", "distance_keys", "distance_queries", "distance_rows",
            "qkv_shrink", "up_shrink", "down_shrink", "qkv_apart", "up_apart", "down_apart", "qkv_columns",
            "up_columns", "down_columns",
        )),
        *((name, ctypes.c_int32) for name in (
            "width", "heads", "inner", "activation", "gated", "norm_first", "local", "reach", "distances",
        )),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    ]  # fmt: skip


class TrainingSpec(ctypes.Structure):
    """TrainingSpec in csrc/engine.h: a block that learns."""

    _fields_ = [
        *((name, _POINTER) for name in WEIGHTS),
        *((name, ctypes.c_int32) for name in ("width", "heads", "inner", "activation")),
        *((name, ctypes.c_float) for name in ("eps", "scale", "attention_dropout", "output_dropout", "mlp_dropout")),
        ("seed", ctypes.c_uint32),
    ]


class TrainingGrads(ctypes.Structure):
    """TrainingGrads in csrc/engine.h: where gradients go."""

    _fields_ = [(name, _POINTER) for name in WEIGHTS]


class Training(ctypes.Structure):
    """Training in csrc/engine.h."""

    _fields_ = [
        *((name, _POINTER) for name in ("input", "output", "starts", "wanted", "wanted_starts")),
        *((name, ctypes.c_int32) for name in ("tokens", "going", "rows", "wants_input")),
        *((name, _POINTER) for name in ("tape", "arena")),
        ("grads", TrainingGrads),
    ]


class TableSteps(ctypes.Structure):
    """TableSteps in csrc/engine.h: rows of a table that learns."""

    _fields_ = [
        *((name, _POINTER) for name in ("weights", "first", "second", "done", "moved", "chosen", "grads")),
        *((name, _POINTER) for name in ("shrink", "rate", "root", "shrunk")),
        *((name, ctypes.c_double) for name in ("beta1", "beta2")),
        *((name, ctypes.c_int32) for name in ("count", "width", "step")),
        ("eps", ctypes.c_float),
    ]


class EmbeddingSpec(ctypes.Structure):
    """EmbeddingSpec in csrc/engine.h."""

    _fields_ = [
        *((name, _POINTER) for name in ("word", "position", "segment", "norm", "norm_bias")),
        ("width", ctypes.c_int32),
        ("first_position", ctypes.c_int32),
        ("eps", ctypes.c_float),
    ]


@cache
def loaded() -> ctypes.CDLL | None:
    """The library; None: it was not built when this package was installed."""
    found = importlib.util.find_spec(_EXTENSION)
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    library.berthead_kernels.restype = ctypes.c_char_p
    library.berthead_open.restype = _POINTER
    library.berthead_open.argtypes = [ctypes.c_char_p, ctypes.c_int]
    library.berthead_add.argtypes = [_POINTER, ctypes.POINTER(BlockSpec)]
    library.berthead_run.argtypes = [
        _POINTER, _POINTER, ctypes.c_int, ctypes.POINTER(EmbeddingSpec), _POINTER, _POINTER, _POINTER, _POINTER,
        _POINTER, ctypes.c_int, _POINTER, ctypes.c_int, ctypes.c_int,
    ]  # fmt: skip
    library.berthead_peak.restype = ctypes.c_double
    library.berthead_peak.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_double]
    library.berthead_close.argtypes = [_POINTER]
    library.berthead_tape_bytes.restype = ctypes.c_size_t
    library.berthead_tape_bytes.argtypes = [
        ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(TrainingSpec), ctypes.c_int, ctypes.c_int,
    ]  # fmt: skip
    library.berthead_train.argtypes = [
        ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(TrainingSpec), ctypes.POINTER(Training), ctypes.c_int,
        ctypes.c_int,
    ]  # fmt: skip
    library.berthead_close.restype = None
    library.berthead_advance.restype = None
    library.berthead_advance.argtypes = [ctypes.c_char_p, ctypes.POINTER(TableSteps), ctypes.c_int]
    return library


def built() -> bool:
    """Whether the kernels were built when this package was installed."""
    return loaded() is not None


def kernels() -> list[str]:
    """Names of the kernels that this processor can run, the best last; none where they were not built."""
    library, names = loaded(), list[str]()
    if library is not None:
        while (name := library.berthead_kernels(len(names))) is not None:
            names.append(name.decode())
    return names


def chosen() -> str:
    """The kernels that are used: the best, or what the environment variable BERTHEAD_KERNELS says.

    Returns:
        One of `kernels()`, or `torch`.

    Raises:
        UsageError: the variable names kernels that are not here.
    """
    usable, wanted = ["torch", *kernels()], os.environ.get(SWITCH, "")
    if wanted and wanted not in usable:
        raise UsageError(SWITCH, f"is {wanted!r}", f"one of {', '.join(usable)}", "Unset it to use the best kernels.")
    return wanted or usable[-1]


def has_bf16(name: str) -> bool:
    """Whether kernels multiply bfloat16 in hardware."""
    return name.endswith(("bf16", "amx"))


def peak(precision: str, threads: int, seconds: float = 0.1) -> float:
    """What this machine multiplies at most: a tile's product in the nearest cache, by the kernels that are chosen.

    Args:
        precision: `fp32`, `bf16` or `int8`, which they compute.
        threads: that multiply at once.
        seconds: how long.

    Returns:
        Operations a second of all threads; an addition and a multiplication are two.
    """
    library = loaded()
    assert library is not None
    rate: float = library.berthead_peak(chosen().encode(), PRECISIONS[precision], threads, seconds)
    assert rate > 0, (chosen(), precision)
    return rate
