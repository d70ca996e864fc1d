"""Files written beside their target under another name, and renamed when they are complete and on disk."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from berthead.errors import OutputError
from berthead.storage.compression import packed

_OURS = re.compile("(?:part|old)-([0-9]{1,9})")  # what hidden names end in, with the number of the process


class Aside:
    """A hidden file beside the target that is renamed to it at the end.

    Args:
        target: the file to be replaced.
        codec: the compression, "gzip" or "zstd"; "": none.
        mark: the end of the hidden name; None: a name for this process.

    Attributes:
        part: the hidden file.
        stream: where its content is written.
    """

    def __init__(self, target: Path, codec: str = "", mark: str | None = None) -> None:
        self.target = target
        self.part = hidden(target, mark)
        self.part.unlink(missing_ok=True)  # from a process that was killed and had this name
        self.file = self.part.open("xb")
        hold(self.file.fileno())
        self.stream: BinaryIO = packed(self.file, codec) if codec else self.file

    def seal(self) -> None:
        """Finish the file and flush it to disk."""
        if self.stream is not self.file:
            self.stream.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def rename(self, suffix: str = "") -> Path:
        """Give the sealed file the target's name, and a suffix."""
        final = self.target.with_name(self.target.name + suffix)
        self.part.replace(final)
        return final

    def publish(self, suffix: str = "") -> Path:
        """Seal and rename; flush the new name to disk, and remove leftovers of killed processes."""
        self.seal()
        final = self.rename(suffix)
        sync_folder(final.parent)
        clear_leftovers(self.target)
        return final

    def discard(self) -> None:
        """Leave nothing behind."""
        for stream in (self.stream, self.file):
            with suppress(OSError, ValueError):  # a full disk fails once more at close
                stream.close()
        with suppress(OSError):
            self.part.unlink(missing_ok=True)


def hidden(target: Path, mark: str | None = None) -> Path:
    """The hidden name of a file while it is written, unique to this process unless a mark is given."""
    return target.with_name(f".{target.name}.{mark or f'part-{os.getpid()}'}")


def put_in_place(written: Path, target: Path) -> None:
    """Rename a file written elsewhere to its target, with file and name flushed to disk.

    Args:
        written: the file, on the target's disk.
        target: the file to be replaced.

    Raises:
        OSError: it failed; the target is unchanged.
    """
    sync_file(written)
    written.replace(target)
    sync_folder(target.parent)


def write_json(path: Path, value: Any, *, replace: bool = True, compact: bool = False) -> None:
    """Write a small record; readers see either the old one or the new one, complete.

    Args:
        path: the file.
        value: a JSON value.
        replace: replace an existing one.
        compact: compact ASCII for programs; else formatted for people.

    Raises:
        FileExistsError: there is one, without `replace`.
        OSError: it cannot be written.
    """
    if compact:
        data = json.dumps(value, indent=1).encode()
    else:
        data = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    aside = Aside(path)
    try:
        aside.stream.write(data)
        aside.seal()
        if replace or not _linked(aside.part, path):
            aside.rename()
        sync_folder(path.parent)
    except BaseException:
        aside.discard()
        raise


def _linked(part: Path, path: Path) -> bool:
    """Link a file to its name unless the name exists; False: this disk has no links."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        return False
    part.unlink()
    return True


def sync_file(path: Path) -> None:
    """Flush a file's content to disk.

    Raises:
        OSError: it cannot be written there.
    """
    with path.open("rb+") as written:
        os.fsync(written.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, if the system supports it."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def hold(descriptor: int) -> None:
    """Lock an open file while it is written, until it is closed or this process ends; some disks have no locks."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def clear_leftovers(target: Path) -> None:
    """Remove what killed processes left beside a file or folder.

    Args:
        target: the file or folder, which is complete now. Files that another process may be writing are kept.
    """
    for left in target.parent.glob(f".{glob.escape(target.name)}.*-*"):
        number = _OURS.fullmatch(left.name.removeprefix(f".{target.name}."))
        if number is None or left.is_symlink() or not _is_abandoned(left, int(number[1])):
            continue
        with suppress(OSError):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _is_abandoned(left: Path, process: int) -> bool:
    """Whether nobody writes this file: its process is gone, and no other machine has it locked."""
    with suppress(OSError):
        os.kill(process, 0)
        return False
    try:
        opened = os.open(left, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(opened)
    return True


def target_of(path: str) -> Path:
    """The file that will be replaced, after following links.

    Raises:
        OutputError: it is a folder or a device, or its folder does not exist.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(path, "is a folder", "a file name", f"Name a file in it: {path.rstrip('/')}/predictions.csv")
    if target.exists() and not target.is_file():
        raise OutputError(path, "is a device or a pipe", "a regular file", "Use `-` to write to a pipe.")
    if not target.parent.exists():
        folder = os.path.dirname(path) or str(target.parent)  # noqa: PTH120
        raise OutputError(path, "its folder does not exist", fix=f"Create it: mkdir -p {folder}")
    return target


def output_error(name: str, error: OSError, then: str = "") -> OSError | OutputError:
    """The error for the user; a closed stdout is not our error.

    Args:
        name: the output.
        error: the system's error.
        then: what to do afterwards.
    """
    if isinstance(error, BrokenPipeError):
        return error
    fix = "Write to a folder that you may write to."
    saw = f"cannot be written ({error.strerror or error})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        saw, fix = "the disk is full", "Free some space, or write to another folder."
    elif error.errno == errno.EFBIG:
        saw, fix = "the file exceeds the allowed size", "Raise `ulimit -f`, or write elsewhere."
    return OutputError(name, saw, fix=f"{fix} {then}".rstrip())
