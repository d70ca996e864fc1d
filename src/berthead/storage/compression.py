"""gzip and zstd: recognised by name or first bytes, decompressed and compressed as streams."""

from __future__ import annotations

import gzip
import io
import zlib
from contextlib import suppress
from typing import Any, BinaryIO

from berthead.errors import DataError

# An extension behind the format's own, and what unpacks it; "" is nothing.
CODECS = {".gz": "gzip", ".zst": "zstd"}
_FIRST_BYTES = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BUFFER = 1 << 16


def split_codec(name: str) -> tuple[str, str]:
    """A name without its compression extension, and the compression.

    Args:
        name: a file name or path, in lower case.

    Returns:
        The rest of the name, and "gzip", "zstd" or "".

    Example:
        >>> split_codec("reviews.csv.zst")
        ('reviews.csv', 'zstd')
    """
    return next(
        ((name.removesuffix(extension), codec) for extension, codec in CODECS.items() if name.endswith(extension)),
        (name, ""),
    )


class Unpacked:
    """The bytes of a stream, decompressed if its name or first bytes say that they are compressed.

    Args:
        binary: the stream.
        codec: the compression that its name says.
        name: the file, for errors.
    """

    def __init__(self, binary: io.BufferedReader[Any], codec: str, name: str) -> None:
        with suppress(OSError):  # the first read meets it again, and names it
            head = binary.peek(4)
            codec = codec or next((one for first, one in _FIRST_BYTES.items() if head.startswith(first)), "")
        self._codec, self._name = codec, name
        self._stream: Any = binary
        if codec == "gzip":
            self._stream = gzip.GzipFile(fileobj=binary)
        elif codec == "zstd":
            import pyarrow as pa

            self._stream = pa.CompressedInputStream(pa.PythonFile(_Kept(binary), "r"), "zstd")

    def read(self, size: int) -> bytes:
        """At most this many bytes; empty at the end.

        Raises:
            DataError: the compressed data is damaged.
        """
        again = "Copy or compress the file again."
        try:
            return bytes(self._stream.read(size))
        except EOFError as error:
            raise DataError(self._name, "is a gzip file that ends too early", fix=again) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(self._name, f"is not a sound gzip file ({error})", fix=again) from error
        except OSError as error:
            if self._codec != "zstd" or error.errno is not None:
                raise
            early = "Truncated" in str(error)
            saw = "is a zstd file that ends too early" if early else f"is not a sound zstd file ({error})"
            raise DataError(self._name, saw, fix=again) from error


def packed(file: BinaryIO, codec: str) -> BinaryIO:
    """A stream that compresses what is written to it; closing it finishes the compression and leaves the file open.

    Args:
        file: the output of the compressed bytes.
        codec: "gzip" or "zstd".

    Returns:
        The stream. The same bytes, written in the same pieces, give the same compressed bytes.
    """
    if codec == "gzip":
        # No name and no time inside.
        raw: Any = gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0)
    else:
        raw = _Zstd(file)
    return io.BufferedWriter(raw, _BUFFER)


class _Zstd(io.RawIOBase):
    """One zstd frame: not every reader continues after the first."""

    def __init__(self, file: BinaryIO) -> None:
        import pyarrow as pa

        self._stream = pa.CompressedOutputStream(pa.PythonFile(_Kept(file), "w"), "zstd")

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._stream.write(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._stream.close()


class _Kept:
    """A file that stays open when Arrow closes its stream."""

    closed = False

    def __init__(self, file: Any) -> None:
        self.read, self.write, self.flush = file.read, getattr(file, "write", None), file.flush

    def close(self) -> None:
        pass
