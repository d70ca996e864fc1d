"""Tensors as files that others may read as far as the user's umask says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_tensors(tensors: Mapping[str, Any], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    The library writes to a name of its own first, beside the path: this belongs in a folder that is written aside.

    Args:
        tensors: torch tensors by name, each with memory of its own.
        path: where to.
        metadata: what the file says of itself.

    Raises:
        OSError: it cannot be written.
        SafetensorError: the same, as the library says it.
    """
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata=dict(metadata))
    path.chmod(mode)  # the library lets the owner alone read
