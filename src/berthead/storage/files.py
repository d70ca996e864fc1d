"""Files written beside their place under another name, and renamed when they are whole and on the disk."""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from berthead.errors import OutputError
from berthead.storage.compression import packed


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
        """Seal and rename, for good: the new name is on the disk too."""
        self.seal()
        final = self.rename(suffix)
        sync_folder(final.parent)
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


def write_json(path: Path, record: Any, *, replace: bool = True) -> None:
    """Write a small record; whoever reads the path sees the old one or the new one, whole.

    Args:
        path: the file.
        record: what JSON can hold.
        replace: put it in the place of one that is there.

    Raises:
        FileExistsError: there is one, and it is not to be replaced.
        OSError: it cannot be written.
    """
    aside = Aside(path)
    try:
        aside.stream.write(json.dumps(record, indent=1).encode())
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


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can do that."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


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
        saw, fix = "the file is larger than is allowed here", "Raise `ulimit -f`, or write elsewhere."
    return OutputError(name, saw, fix=f"{fix} {then}".rstrip())
