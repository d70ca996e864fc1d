"""Folders that are never half written: written under another name, flushed to disk, and renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from berthead.errors import OutputError
from berthead.storage.files import clear_leftovers, hidden, hold, sync_file, sync_folder
from berthead.storage.model_files import RECORD

# A folder for transformers holds no record; this line of its page says whose it is.
PAGE, PAGE_LINE = "README.md", "Written by berthead for transformers."


def check_out(folder: Path, overwrite: bool) -> None:
    """Check that a model can be saved there, before any work is done.

    Args:
        folder: the future model folder.
        overwrite: replace a model folder that exists.

    Raises:
        OutputError: something is there already, or the place cannot be written.
    """
    try:
        _refuse_taken(folder, overwrite)
        aside = hidden(folder)
        shutil.rmtree(aside, ignore_errors=True)  # from a process that was killed and had this number
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        aside.rmdir()
    except OSError as error:
        raise OutputError(str(folder), f"cannot be created ({error.strerror})", "", "Give another folder.") from error


def _refuse_taken(folder: Path, overwrite: bool) -> None:
    if folder.name in ("", ".."):
        raise OutputError(str(folder), "has no name of its own", "the name of a new folder", "Give another folder.")
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
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process has a folder locked, and lock it; a process that dies lets go of it.

    Args:
        folder: one that exists; on a disk without locks nothing is locked.

    Raises:
        OSError: it does not exist.
    """
    while True:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):
                fcntl.flock(held, fcntl.LOCK_EX)
            # While this process waited, another one may have put a new folder in its place.
            if os.path.samestat(os.fstat(held), folder.stat()):
                yield
                return
        finally:
            os.close(held)


@contextmanager
def made_whole(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A context for writing a model folder: it is renamed into place on success, and never half written.

    Args:
        folder: the target folder.
        overwrite: replace a model folder that exists.

    Yields:
        An empty folder beside it.

    Raises:
        OutputError: the place cannot be written, the disk is full, or another process has written there meanwhile;
            nothing is left there.
    """
    check_out(folder, overwrite)
    try:
        with folder_aside(folder, overwrite) as aside:
            yield aside
    except (OSError, SafetensorError) as error:
        fix = "Free some space, or give another folder."
        reason = getattr(error, "strerror", None) or error
        raise OutputError(str(folder), f"could not be written ({reason})", "", fix) from error


@contextmanager
def folder_aside(folder: Path, overwrite: bool = True) -> Iterator[Path]:
    """A hidden folder that is flushed to disk and renamed to its target at the end.

    Args:
        folder: the folder to be made or replaced.
        overwrite: replace a folder that exists; otherwise only an empty one.

    Yields:
        The hidden folder, empty; it is removed after an exception.

    Raises:
        OSError: it cannot be written; an existing folder is unchanged.
        OutputError: without `overwrite`, another process made the folder meanwhile.
    """
    aside = hidden(folder)
    shutil.rmtree(aside, ignore_errors=True)  # from a process that was killed and had this number
    aside.mkdir(parents=True)
    held = os.open(aside, os.O_RDONLY)
    try:
        hold(held)
        yield aside
        for path in sorted(aside.rglob("*")):
            sync_folder(path) if path.is_dir() else sync_file(path)
        sync_folder(aside)
        _put_in_place(aside, folder, overwrite)
    finally:
        os.close(held)
        shutil.rmtree(aside, ignore_errors=True)
    clear_leftovers(folder)


def _put_in_place(aside: Path, folder: Path, overwrite: bool) -> None:
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    while True:
        if overwrite:
            _move_away(folder, old)
        try:
            aside.rename(folder)  # of a folder that exists, only an empty one is replaced
            break
        except BaseException as error:
            if old.is_dir() and not folder.exists():
                old.rename(folder)
            if not isinstance(error, OSError) or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not overwrite:
                saw = "holds a model already, which another process wrote meanwhile"
                raise OutputError(str(folder), saw, "", "Give another folder, or add --overwrite.") from error
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _move_away(folder: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    with suppress(FileNotFoundError), locked(folder):  # a function may be added to it just now
        folder.rename(old)
