"""A folder that is whole or absent: written aside, on the disk, and renamed into place."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from berthead.errors import OutputError
from berthead.storage.model_files import RECORD

# A folder for transformers holds no record; this line of its page says whose it is.
PAGE, PAGE_LINE = "README.md", "Written by berthead for transformers."


def check_out(folder: Path, overwrite: bool) -> None:
    """Whether a model can be saved there, before any work is done.

    Args:
        folder: the model folder to be.
        overwrite: replace a model folder that exists.

    Raises:
        OutputError: something is there already, or the place cannot be written.
    """
    try:
        _refuse_taken(folder, overwrite)
        aside = _aside(folder)
        shutil.rmtree(aside, ignore_errors=True)  # from a process that was killed and had this number
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        aside.rmdir()
    except OSError as error:
        raise OutputError(str(folder), f"cannot be created ({error.strerror})", "", "Give another folder.") from error


def _refuse_taken(folder: Path, overwrite: bool) -> None:
    if folder.name in ("", ".."):
        raise OutputError(str(folder), "has no name of its own", "a new folder", "Give another folder.")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(str(folder), "is not a folder", "", "Give another folder.")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / RECORD).is_file() and not _is_for_transformers(folder):
            raise OutputError(str(folder), "holds other files", "a new or empty folder", "Give another folder.")
        if not overwrite:
            raise OutputError(str(folder), "holds a model already", "", "Give another folder, or add --overwrite.")


def _is_for_transformers(folder: Path) -> bool:
    try:
        return PAGE_LINE in (folder / PAGE).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return False


@contextmanager
def made_whole(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder that is written aside, and renamed into place when all went well: it is whole or absent.

    Args:
        folder: where to.
        overwrite: replace a model folder that exists.

    Yields:
        An empty folder beside it.

    Raises:
        OutputError: the place cannot be written, or the disk is full; nothing is left there.
    """
    check_out(folder, overwrite)
    aside = _aside(folder)
    try:
        aside.mkdir()
        yield aside
        _put_in_place(aside, folder)
    except (OSError, SafetensorError) as error:
        fix = "Free some space or give another place."
        reason = getattr(error, "strerror", None) or error
        raise OutputError(str(folder), f"could not be written ({reason})", "", fix) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while they wrote a folder left beside it.

    Args:
        folder: a model folder that nobody is writing now.
    """
    for kind in ("part", "old"):
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.{kind}-*"):
            shutil.rmtree(left, ignore_errors=True)


def _put_in_place(aside: Path, folder: Path) -> None:
    if not folder.is_dir():
        aside.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    try:
        aside.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part-{os.getpid()}")


def on_disk(folder: Path) -> None:
    """Wait until a folder's files are on the disk."""
    for path in folder.iterdir():
        with path.open("rb+") as written:
            os.fsync(written.fileno())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON object as a file."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace")
