"""berthead.json: what a folder that berthead wrote holds, its kind first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from berthead.errors import ModelError, listed, shown
from berthead.function.checks import refuse_strange_files
from berthead.storage.model_files import RECORD, read_json

# model: a whole function. adapter: a LoRA change of an encoder that lies elsewhere. part: what differs from the encoder
# beside it. onnx: a graph for ONNX Runtime. joined: an encoder, and a folder of each function on it.
KINDS = ("model", "adapter", "part", "onnx", "joined")
# Before folders said their kind, it was told by what they held.
_TOLD_BY = {"functions": "joined", "export": "onnx", "adapter": "adapter", "base": "part"}


def read_record(folder: Path) -> dict[str, Any]:
    """What a folder says of itself, once nothing in it is found to be strange.

    Args:
        folder: that berthead wrote.

    Returns:
        berthead.json, its `kind` filled in where an older berthead wrote it.

    Raises:
        ModelError: the folder is missing, holds what could run or lead elsewhere, or does not say what it is.
    """
    refuse_strange_files(folder)
    record = read_json(folder / RECORD)
    return record | {"kind": kind_of(record, str(folder / RECORD))}


def kind_of(record: Mapping[str, Any], where: str) -> str:
    """What a folder holds: one of `KINDS`.

    Args:
        record: its berthead.json, of any age.
        where: the file, for errors.

    Returns:
        The kind that it says, or of an older folder the one that it shows.

    Raises:
        ModelError: it is no known kind, or not the one that the rest of the record is of.

    Example:
        >>> kind_of({"format_version": 1, "task": {}}, "model/berthead.json")
        'model'
    """
    holds = next((kind for key, kind in _TOLD_BY.items() if key in record), "model")
    kind = record.get("kind", holds)
    if kind not in KINDS:
        fix = "Install a newer berthead, or copy the folder again."
        raise ModelError(where, f"its kind is {shown(kind)[:60]}", f"one of {listed(KINDS)}", fix)
    if kind != holds:
        saw = f'its kind is "{kind}", but it holds the keys of "{holds}"'
        raise ModelError(where, saw, "one of the two", "Copy the folder again.")
    return str(kind)
