"""Downloading an encoder from a model hub: the only code that may use the network, and only when asked."""

from __future__ import annotations

import shutil
from pathlib import Path

from berthead.errors import ModelError, UsageError
from berthead.model.checkpoint import read_checkpoint
from berthead.model.encoder_folders import models_home
from berthead.storage.files import hidden
from berthead.storage.folders import folder_aside
from berthead.text.tokenizer import Tokenizer

# Data only: no pickles, no code.
FILES = [
    "config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    "special_tokens_map.json", "1_Pooling/config.json", "LICENSE", "LICENSE.txt", "LICENSE.md",
]  # fmt: skip


def pull(name: str, revision: str | None = None) -> Path:
    """Download an encoder, check it, and keep it under its name.

    Args:
        name: the repository on the hub, `owner/name`.
        revision: a branch, tag or commit; None: the newest.

    Returns:
        The folder that now holds it.

    Raises:
        UsageError: the optional package is not installed.
        ModelError: the download failed, or is not a supported encoder.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        fix = "Install it: pip install 'berthead[hub]'"
        raise UsageError("berthead pull", "huggingface_hub is not installed", "", fix) from error
    folder = models_home() / name.replace("/", "--")
    aside = hidden(folder)
    try:
        with folder_aside(folder):
            snapshot_download(name, revision=revision, local_dir=aside, allow_patterns=FILES)
            shutil.rmtree(aside / ".cache", ignore_errors=True)
            read_checkpoint(str(aside))
            Tokenizer.from_checkpoint(aside)
    except ModelError as error:
        # The temporary folder is gone when the user reads this.
        where = f"berthead pull {error.where.replace(str(aside), name)}"
        raise ModelError(where, error.saw, error.expected, error.fix) from error
    except Exception as error:  # the library passes on errors of its transport, which change
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"berthead pull {name}", f"could not be downloaded ({reason})", "the owner/name of an encoder on the hub"
        ) from error
    return folder
