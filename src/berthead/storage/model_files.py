"""Names of files in the folders of encoders and functions, and reading their JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from berthead.errors import ModelError

RECORD = "berthead.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
INDEX = "model.safetensors.index.json"
# Of a function in a joined folder, which is no model without the encoder beside it: transformers finds no such name.
PART = "part.safetensors"
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.h5", "*.msgpack", "*.npy")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: the file.

    Returns:
        The object.

    Raises:
        ModelError: the file is missing or holds something else.
    """
    try:
        if path.exists() and not path.is_file():  # reading from a pipe or a device may never end
            raise ModelError(str(path), "is no regular file", "a file with a JSON object")
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(str(path.parent), f"holds no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(str(path), f"cannot be read as JSON ({error})") from error
    if not isinstance(loaded, dict):
        raise ModelError(str(path), "does not hold a JSON object")
    return loaded
