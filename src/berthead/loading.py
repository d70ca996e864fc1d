"""load(): whatever berthead wrote, from its folder; torch is imported for what needs it alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from berthead.errors import ModelError, UsageError
from berthead.exported import Exported, is_exported
from berthead.options import PredictOptions

if TYPE_CHECKING:
    from berthead.fitted import Fitted
    from berthead.verbs.join import Joined


def load(
    folder: str | Path,
    *,
    engine: str | None = None,
    precision: str | None = None,
    token_budget: int | None = None,
    threads: int | None = None,
    base: str | Path | None = None,
    device: str | None = None,
) -> Fitted | Joined | Exported:
    """A fitted function from its folder, several from a joined one, or an exported one.

    Args:
        folder: the model folder, or one that `join` or `export` wrote.
        engine: `onnx` takes exported functions alone; `auto`, the default, any.
        precision: `fp32` (exact, the default), `bf16`, `int8`, or `auto`: the fastest that was measured to answer
            alike. Exported functions compute in float32.
        token_budget: tokens computed at once; None: what suits the device.
        threads: processor threads; None: what this process may use.
        base: where the encoder of an adapter folder lies; None: where it was at the fit, or beside the folder.
        device: `cpu` (the default), or `cuda`: all NVIDIA GPUs of this machine, for several functions the first.

    Returns:
        The function, or the functions.

    Raises:
        ModelError: the folder is missing, broken or not to be trusted, or it needs torch, and there is none.
        UsageError: an option that this folder cannot have, or torch sees no such device.

    Example:
        >>> model = load("tickets-model")  # doctest: +SKIP
    """
    given = {
        "precision": precision, "device": device, "token_budget": token_budget, "threads": threads, "base": base,
    }  # fmt: skip
    options, place = PredictOptions.from_sources(given | {"engine": engine}), Path(folder)
    if is_exported(place):
        return Exported(place, options)
    if options.engine == "onnx":
        fix = f"Write one: berthead export {folder} --onnx DIR"
        raise UsageError(
            "--engine onnx", f"{folder} is no exported function", "a folder that berthead export wrote", fix
        )
    try:
        from berthead.verbs import join as joining
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        fix = f"Install torch, or where it is installed: berthead export {folder} --onnx DIR"
        raise ModelError(str(folder), "is no exported function, and torch is not installed", "", fix) from error
    return joining.load(folder, **given)  # type: ignore[arg-type]
