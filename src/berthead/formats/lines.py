"""Bytes to lines of text: compressed or not, UTF-8, UTF-16 or Windows-1252, with any line ends."""

from __future__ import annotations

import codecs
import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

from berthead.errors import DataError

CHUNK = 1 << 16  # bytes read at once
LONGEST_LINE = 1 << 27  # bytes of a row; what is longer is no file of rows, or has other line ends
_COPIED = 1 << 20  # bytes copied at once


def unreadable(name: str, error: OSError) -> DataError:
    """The error for a file that the system cannot read."""
    return DataError(name, f"cannot be read ({error.strerror or error})", fix="Check the path and its permissions.")


def _latin1(error: UnicodeError) -> tuple[str, int]:
    """A codec error handler: the bytes that Windows-1252 leaves undefined become the Latin-1 characters."""
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("berthead-latin1", _latin1)


class _Bytes(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Lines:
    """Physical lines as text with their line ends, and how many of them are not UTF-8."""

    def __init__(self, binary: _Bytes, name: str, longest: int | None = None) -> None:
        self.not_utf8, self._name, self._longest = 0, name, longest
        self._chunks = _utf8(_chunks(binary, name), name)

    def __iter__(self) -> Iterator[str]:
        for line in _split(self._chunks, self._name, self._longest):
            try:
                yield line.decode()
            except UnicodeDecodeError:
                self.not_utf8 += 1
                yield line.decode("cp1252", "berthead-latin1")


def _chunks(binary: _Bytes, name: str) -> Iterator[bytes]:
    while True:
        try:
            chunk = binary.read(CHUNK)
        except OSError as error:
            raise unreadable(name, error) from error
        if not chunk:
            return
        yield chunk


def _utf8(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The same text without its byte order mark, UTF-16 recoded to UTF-8."""
    first = next(chunks, b"")
    if not first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield from itertools.chain([first.removeprefix(codecs.BOM_UTF8)], chunks)
        return
    decoder = codecs.getincrementaldecoder("utf-16")()
    try:
        for chunk in itertools.chain([first], chunks):
            yield decoder.decode(chunk).encode()
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        saw = f"begins as UTF-16 and is not valid UTF-16 ({error.reason})"
        raise DataError(name, saw, fix="Save the file as UTF-8.") from error


def _split(chunks: Iterable[bytes], name: str, longest: int | None) -> Iterator[bytes]:
    """Lines that end in LF, CRLF or CR; Python's own line reading treats a CR file as one line."""
    held: list[bytes] = []
    size, number = 0, 1
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if b"\n" in chunk or b"\r" in chunk:
            lines = b"".join(held).splitlines(keepends=True)
            held = [lines.pop()]  # it may go on in the next chunk, a CR with its LF
            size, number = len(held[0]), number + len(lines)
            yield from lines
        elif longest is not None and size > longest:
            fix = "Check that this is a file of rows, one a line."
            raise DataError(f"{name}:{number}", "is a line without an end", f"lines of at most {longest:,} bytes", fix)
    yield from b"".join(held).splitlines(keepends=True)


def empty(name: str) -> NoReturn:
    """Refuse a file without rows."""
    raise DataError(name, "is empty", "a header or a first row", "Check that this is the right file.")


def count_line_ends(path: str) -> int:
    """How many lines a file has."""
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def copy_files(stream: BinaryIO, paths: Sequence[Path]) -> None:
    """Write files one after the other."""
    for path in paths:
        with open(path, "rb") as file:
            shutil.copyfileobj(file, stream, _COPIED)


def check_unique(where: str, columns: list[str]) -> None:
    """Refuse a header that names a column twice."""
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise DataError(where, f'has the column "{column}" twice', "each name once", "Rename one of them.")
        seen.add(column)
