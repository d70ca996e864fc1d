"""safetensors files with the permissions of the user's umask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_tensors(tensors: Mapping[str, Any], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    The library first writes to its own name beside the path: use this in a folder that is not yet in place.

    Args:
        tensors: torch tensors by name, which share no memory.
        path: the file.
        metadata: the file's metadata.

    Raises:
        OSError: it cannot be written.
        SafetensorError: the same, raised by the library.
    """
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata=dict(metadata))
    path.chmod(mode)  # the library lets the owner alone read
