"""berthead.json: reading the record of a folder, and finding its kind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from berthead.errors import ModelError, listed, shown
from berthead.function.checks import refuse_strange_files
from berthead.storage.model_files import RECORD, read_json

_SEAL = "record_sha256"
# model: a whole function. adapter: a LoRA change of an encoder that lies elsewhere. part: what differs from the encoder
# beside it. onnx: a graph for ONNX Runtime. joined: an encoder, and a folder of each function on it.
KINDS = ("model", "adapter", "part", "onnx", "joined")
# Before folders said their kind, it was told by what they held.
_TOLD_BY = {"functions": "joined", "export": "onnx", "adapter": "adapter", "base": "part"}


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a folder, after a check for files that do not belong in it.

    Args:
        folder: written by berthead.

    Returns:
        berthead.json, with `kind` filled in if an older berthead wrote it.

    Raises:
        ModelError: the folder is missing, has files that could run or links that lead out, or no valid record.
    """
    refuse_strange_files(folder)
    record = read_json(folder / RECORD)
    return record | {"kind": kind_of(record, str(folder / RECORD))}


def kind_of(record: Mapping[str, Any], where: str) -> str:
    """The kind of a folder: one of `KINDS`.

    Args:
        record: its berthead.json, of any age.
        where: the file, for errors.

    Returns:
        The recorded kind; for an older folder the one that its content implies.

    Raises:
        ModelError: an unknown kind, or one that contradicts the rest of the record.

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


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the sha256 of everything in it, under `record_sha256`.

    Args:
        record: a JSON object.

    Returns:
        The record to write.
    """
    return {**record, _SEAL: _hash(record)}


def check_seal(record: Mapping[str, Any], where: str) -> None:
    """Check that a record is as it was written.

    Args:
        record: as `read_record` gives it; records of an older berthead hold no sha256.
        where: the file, for errors.

    Raises:
        ModelError: it was changed.
    """
    if _SEAL in record and record[_SEAL] != _hash(record):
        fix = f"Copy the folder again. If you meant to change the record, remove {_SEAL} from it."
        raise ModelError(where, f"does not match its own {_SEAL}", "the record as it was written", fix)


def _hash(record: Mapping[str, Any]) -> str:
    # As JSON gives it back: tuples are lists, and keys are texts.
    plain = json.loads(json.dumps({key: value for key, value in record.items() if key != _SEAL}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
