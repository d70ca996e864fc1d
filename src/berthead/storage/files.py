"""Files written beside their place under another name, and renamed when they are whole and on the disk."""

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
    """A hidden file beside the target that takes its name at the end.

    Args:
        target: the file to be replaced.
        codec: how what is written is packed, "gzip" or "zstd"; "": it is not.
        mark: what the hidden name ends in; None: a name of this process's own.

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
        """End the file: what was written is on the disk."""
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
        """Seal and rename, for good: the new name is on the disk too, and nothing that killed processes left."""
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
    """The name of a file while it is written: hidden, and of this process's own unless there is another mark."""
    return target.with_name(f".{target.name}.{mark or f'part-{os.getpid()}'}")


def put_in_place(written: Path, target: Path) -> None:
    """Give a file that others wrote its name: it is on the disk, and so is the name.

    Args:
        written: the file, on the target's disk.
        target: the file to be replaced.

    Raises:
        OSError: it cannot be; the target is as it was.
    """
    sync_file(written)
    written.replace(target)
    sync_folder(target.parent)


def write_json(path: Path, value: Any, *, replace: bool = True, compact: bool = False) -> None:
    """Write a small record; whoever reads the path sees the old one or the new one, whole.

    Args:
        path: the file.
        value: what JSON can hold.
        replace: put it in the place of one that is there.
        compact: in ASCII, as programs read it; else as people read it best.

    Raises:
        FileExistsError: there is one, and it is not to be replaced.
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
    """Give a file its name unless there is one of that name; False: this disk has no links."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        return False
    part.unlink()
    return True


def sync_file(path: Path) -> None:
    """Have what a file holds on the disk.

    Raises:
        OSError: it cannot be written there.
    """
    with path.open("rb+") as written:
        os.fsync(written.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can do that."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def hold(descriptor: int) -> None:
    """Say that what is open is being written, until it is closed or this process ends; some disks have no locks."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def clear_leftovers(target: Path) -> None:
    """Remove what processes that were killed while they wrote a file or a folder left beside it.

    Args:
        target: the file or folder, which is whole now. What another process may be writing is left alone.
    """
    for left in target.parent.glob(f".{glob.escape(target.name)}.*-*"):
        number = _OURS.fullmatch(left.name.removeprefix(f".{target.name}."))
        if number is None or left.is_symlink() or not _is_abandoned(left, int(number[1])):
            continue
        with suppress(OSError):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _is_abandoned(left: Path, process: int) -> bool:
    """Whether nobody writes this: no process of its number here, and nobody holds it from another machine."""
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
    """The file that will be replaced, links followed.

    Raises:
        OutputError: a folder, a device, or a folder that does not exist.
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
    """What the user is told; a reader of stdout that has gone away is no error of ours.

    Args:
        name: the output.
        error: of the system.
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
