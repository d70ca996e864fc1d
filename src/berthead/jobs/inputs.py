"""The input files of a job: matched by patterns, and identified by their content."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from berthead.errors import DataError, UsageError
from berthead.formats.lines import unreadable
from berthead.formats.readers import STDIO
from berthead.formats.registry import split_sheet


def matching(given: str | Path | Sequence[str | Path]) -> list[str]:
    """The files that paths and patterns match.

    Args:
        given: a path, a pattern such as `texts/*.csv` (`**` for folders of any depth), `-` for stdin, or several paths
            and patterns.

    Returns:
        Paths as given; those of a pattern in the order of their names.

    Raises:
        DataError: a pattern matches no file.
        UsageError: stdin or a pipe together with others, or nothing.

    Example:
        >>> matching("reviews.csv")
        ['reviews.csv']
    """
    paths: list[str] = []
    for one in map(str, [given] if isinstance(given, str | Path) else given):
        pattern, sheet = split_sheet(one)
        if one == STDIO or not glob.has_magic(pattern) or os.path.exists(pattern):  # noqa: PTH110
            paths.append(one)
            continue
        found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))  # noqa: PTH113, PTH207
        if not found:
            saw = f"matches no file (looked from {Path.cwd()})"
            raise DataError(
                one, saw, "a pattern: * for any letters of a name, ** for any folders", "Check the pattern."
            )
        paths += [path + sheet for path in found]
    if not paths:
        raise UsageError("predict", "got no input", "files, or -")
    for one in paths if len(paths) > 1 else ():
        if not is_file(one):
            saw = f"{'is stdin' if one == STDIO else 'is a pipe'}, among other inputs"
            raise UsageError(one, saw, "files only, or one pipe")
    return paths


def is_file(path: str) -> bool:
    """Whether this can be read more than once: not stdin, not a pipe."""
    path, _ = split_sheet(path)
    special = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112, PTH113
    return path != STDIO and not special


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The identity of a file when it was read.

    Args:
        name: as the user typed it; shown in the locations of bad rows.
        size: in bytes.
        sha256: of the whole file. Reading it costs seconds where predicting takes hours, and nothing less is certain.
        mtime_ns: the last change; used only to notice writes while the file is read.
    """

    name: str
    size: int
    sha256: str
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> Self:
        """The fingerprint of a file.

        Raises:
            DataError: it cannot be read.
        """
        try:
            with open(split_sheet(path)[0], "rb") as file:
                stat = os.fstat(file.fileno())
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(path, error) from error
        return cls(path, stat.st_size, sha256, stat.st_mtime_ns)

    def check_unchanged(self) -> None:
        """Check that nobody has written to the file since then.

        Raises:
            DataError: it was changed.
        """
        try:
            now = Path(split_sheet(self.name)[0]).stat()
        except OSError as error:
            raise unreadable(self.name, error) from error
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            fix = "Start again once nothing writes to it."
            raise DataError(self.name, "was changed while it was read", fix=fix)

    def to_json(self) -> dict[str, Any]:
        """The fields that decide whether a file is the same."""
        return {"name": self.name, "size": self.size, "sha256": self.sha256}
