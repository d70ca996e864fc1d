"""Loading a folder of any kind: the function and its engine; torch is imported only if needed."""

from __future__ import annotations

from pathlib import Path

from berthead.errors import ModelError, UsageError
from berthead.function.protocol import AnyFunction
from berthead.function.record import read_record
from berthead.options import PredictOptions
from berthead.predict.engines import Engine
from berthead.predict.graph_engine import read_onnx


def read_function(folder: Path, options: PredictOptions) -> tuple[AnyFunction, Engine]:
    """Read a folder that berthead wrote.

    Args:
        folder: the folder, of any kind.
        options: the options of the computation.

    Returns:
        The function and its engine.

    Raises:
        ModelError: the folder is missing, broken or not to be trusted, or it needs torch, which is not installed.
        UsageError: an option that this folder does not support, or a device that torch does not find.
    """
    record = read_record(folder)
    if record["kind"] == "onnx":
        return read_onnx(folder, record, options)
    export = f"berthead export {folder} --onnx DIR"
    if options.engine == "onnx":
        allowed = "a folder that berthead export wrote"
        raise UsageError("--engine onnx", f"{folder} is not an exported function", allowed, f"Write one: {export}")
    try:
        from berthead.predict.torch_engine import read_torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        fix = f"Install torch, or export the function where torch is installed: {export}"
        raise ModelError(str(folder), "is not an exported function, and torch is not installed", "", fix) from error
    return read_torch(folder, record, options)
