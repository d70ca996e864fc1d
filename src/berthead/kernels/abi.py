"""The structs passed to the C++ library through ctypes (csrc/abi.h), and a check that the library has the same.

A library that was built from other sources would read wrong memory. So it describes what it was compiled with, line by
line (`berthead_abi`), and is refused if that differs from this module.
"""

from __future__ import annotations

import ctypes

from berthead.errors import UsageError

# The arguments of the functions and the meaning of the fields, which no description shows: kAbiVersion in csrc/abi.h.
VERSION = 2
PRECISIONS = {"fp32": 0, "bf16": 1, "int8": 2}
"""The arithmetic of the products."""
FUNCTIONS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "silu": 3, "tanh": 4}
"""The activations."""
OUTLIERS = 4
"""Input channels of an int8 product that stay float32."""
WIDEST_TILE = 32
"""Columns of the widest tile of any instruction set."""
WEIGHTS = (
    "qkv", "qkv_bias", "out", "out_bias", "attention_norm", "attention_norm_bias", "up", "up_bias", "down", "down_bias",
    "mlp_norm", "mlp_norm_bias",
)  # fmt: skip
"""The parameters of a block, in the order of the structs."""
REBUILD = "Build it again: python setup.py build_ext --inplace, or pip install. BERTHEAD_KERNELS=torch does without it."
"""What to do about a library that cannot be used."""
POINTER = ctypes.c_void_p
_KINDS = {
    POINTER: "pointer", ctypes.c_int32: "int32", ctypes.c_uint32: "uint32", ctypes.c_float: "float",
    ctypes.c_double: "double",
}  # fmt: skip


class BlockSpec(ctypes.Structure):
    """A transformer block."""

    __slots__ = ()
    _fields_ = [
        *((name, POINTER) for name in (
            *WEIGHTS, "cosines", "sines", "distance_bias", "distance_keys", "distance_queries", "distance_rows",
            "qkv_smoothing", "up_smoothing", "down_smoothing", "qkv_outliers", "up_outliers", "down_outliers",
            "qkv_outlier_weights", "up_outlier_weights", "down_outlier_weights",
        )),
        *((name, ctypes.c_int32) for name in (
            "width", "heads", "inner", "activation", "gated", "norm_first", "local", "max_positions", "num_distances",
        )),
        ("eps", ctypes.c_float),
        ("attention_scale", ctypes.c_float),
    ]  # fmt: skip


class EmbeddingSpec(ctypes.Structure):
    """The embedding tables."""

    __slots__ = ()
    _fields_ = [
        *((name, POINTER) for name in ("word", "position", "segment", "norm", "norm_bias")),
        ("width", ctypes.c_int32),
        ("first_position", ctypes.c_int32),
        ("eps", ctypes.c_float),
    ]


class TrainingSpec(ctypes.Structure):
    """A block in training."""

    __slots__ = ()
    _fields_ = [
        *((name, POINTER) for name in WEIGHTS),
        *((name, ctypes.c_int32) for name in ("width", "heads", "inner", "activation")),
        *((name, ctypes.c_float) for name in (
            "eps", "attention_scale", "attention_dropout", "output_dropout", "mlp_dropout",
        )),
        ("seed", ctypes.c_uint32),
    ]  # fmt: skip


class TrainingGrads(ctypes.Structure):
    """Pointers to the gradients of a block's weights."""

    __slots__ = ()
    _fields_ = [(name, POINTER) for name in WEIGHTS]


class TrainingPass(ctypes.Structure):
    """One pass through a block in training."""

    __slots__ = ()
    _fields_ = [
        *((name, POINTER) for name in ("input", "output", "starts", "selected", "selected_starts")),
        *((name, ctypes.c_int32) for name in ("tokens", "output_tokens", "sequences", "needs_input_grad")),
        *((name, POINTER) for name in ("tape", "arena")),
        ("grads", TrainingGrads),
    ]


class AdamWSteps(ctypes.Structure):
    """Rows of a trained embedding table."""

    __slots__ = ()
    _fields_ = [
        *((name, POINTER) for name in (
            "weights", "exp_avg", "exp_avg_sq", "row_steps", "has_moments", "row_ids", "grads", "decay_factor",
            "step_size", "rsqrt_correction", "decay_product",
        )),
        *((name, ctypes.c_double) for name in ("beta1", "beta2")),
        *((name, ctypes.c_int32) for name in ("count", "width", "step")),
        ("eps", ctypes.c_float),
    ]  # fmt: skip


STRUCTS: tuple[type[ctypes.Structure], ...] = (
    BlockSpec, EmbeddingSpec, TrainingSpec, TrainingGrads, TrainingPass, AdamWSteps,
)  # fmt: skip


def describe() -> dict[str, str]:
    """This module's structs in the format of csrc/abi.cpp: name of each fact to its value.

    Example:
        >>> describe()["BlockSpec.qkv_bias"]
        'pointer at 8'
    """
    numbers = {"version": VERSION, **PRECISIONS, **FUNCTIONS, "outliers": OUTLIERS, "widest tile": WIDEST_TILE}
    facts = {name: str(number) for name, number in numbers.items()}
    for struct in STRUCTS:
        facts[struct.__name__] = f"{ctypes.sizeof(struct)} bytes"
        for name, kind, *_ in struct._fields_:
            facts[f"{struct.__name__}.{name}"] = f"{_KINDS.get(kind, kind.__name__)} at {getattr(struct, name).offset}"
    return facts


def check(library: ctypes.CDLL, path: str) -> None:
    """Refuse a library that was not compiled with these structs.

    Args:
        library: the loaded file.
        path: its path, for the message.

    Raises:
        UsageError: it was built from other sources.
    """
    compiled: dict[str, str] = {}
    if hasattr(library, "berthead_abi"):
        library.berthead_abi.restype = ctypes.c_char_p
        compiled = dict(line.split(": ", 1) for line in library.berthead_abi().decode().splitlines())
    here = describe()
    for name in [*here, *compiled]:
        if compiled.get(name) != here.get(name):
            raise UsageError(
                path,
                f"is not of this version of berthead ({name}: {compiled.get(name, 'not known')})",
                f"{name}: {here.get(name, 'not known')}",
                REBUILD,
            )
