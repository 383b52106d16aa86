"""Compressed files, unpacked while they are read: gzip, bzip2, xz and zstd, recognised by their first bytes.

A file of a few kilobytes can unpack to terabytes. The readers of maps and star files therefore bound what they take
from it, and nothing is unpacked to the disk.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from dataclasses import dataclass
from importlib import import_module
from io import BufferedReader, FileIO, RawIOBase
from pathlib import Path
from typing import Any

from emsplat.errors import InputError
from emsplat.io.kinds import kind_of_file
from emsplat.runtime.files import open_regular

_MAGIC = {b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
ENDINGS = (".gz", ".bz2", ".xz", ".zst")
_ZSTD_MODULES = ("compression.zstd", "zstandard")  # the first is Python's own, from version 3.14
_AT_ONCE = 1 << 20  # bytes that are unpacked together
_ZSTD_AT_ONCE = 1 << 10  # packed bytes that are unpacked together, which unpack to 32 MB at most


@dataclass(frozen=True)
class Bound:
    """The most that a compressed file may unpack to: a size that is always allowed, or a multiple of its own size."""

    in_bytes: int
    ratio: int

    def of(self, packed_in_bytes: int) -> int:
        return max(self.in_bytes, self.ratio * packed_in_bytes)


_OF_MAPS = Bound(in_bytes=1 << 30, ratio=5000)  # a mask is almost empty, and its ratio may reach 1000


def without_ending(path: Path) -> Path:
    """The name that a compressed file has when it is unpacked; another file's name is returned as it is."""
    return path.with_suffix("") if path.suffix.lower() in ENDINGS else path


def is_compressed(start: bytes) -> bool:
    """Whether a file that begins with these bytes can be unpacked while it is read."""
    return any(start.startswith(magic) for magic in _MAGIC)


def open_plain(path: Path, bound: Bound = _OF_MAPS) -> BufferedReader:
    """A file opened for reading, unpacked if it is compressed, up to the bound.

    Raises:
        InputError: the file cannot be opened, or no decompressor for it is installed. Reading raises it where the
            compressed data are damaged or unpack to more than is allowed.
    """
    file = open_regular(path)
    try:
        start = file.read(8)
        file.seek(0)
        if not is_compressed(start):
            return BufferedReader(file)
        return BufferedReader(_Unpacked(path, file, start, bound), _AT_ONCE)
    except OSError as error:
        file.close()
        raise InputError(f"{path}: cannot be read: {error.strerror}; check the disk it is on") from None
    except BaseException:
        file.close()
        raise


class _Unpacked(RawIOBase):
    """What a compressed file holds, as a file that can only be read from its start to its end."""

    def __init__(self, path: Path, file: FileIO, start: bytes, bound: Bound) -> None:
        super().__init__()
        self._path, self._packed = path, file
        self._size_in_bytes, self._position = os.fstat(file.fileno()).st_size, 0
        self._largest = bound.of(self._size_in_bytes)
        self._stream = _decompressor(path, file, start)

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        try:
            got = int(self._stream.readinto(buffer))
        except (OSError, EOFError, lzma.LZMAError, zlib.error, MemoryError, ValueError) as error:
            raise self._damaged(error) from None
        except Exception as error:  # the error types of zstd's modules, which need not be installed
            if type(error).__name__ != "ZstdError":
                raise
            raise self._damaged(error) from None
        self._position += got
        if self._position > self._largest:
            raise InputError(
                f"{self._path}: {self._size_in_bytes:,} bytes that unpack to more than {self._largest:,}; no file of "
                "its kind does: check where it came from, or unpack it yourself"
            )
        return got

    def _damaged(self, error: BaseException) -> InputError:
        return InputError(f"{self._path}: cannot be unpacked: {error or 'damaged'}; copy or write it again")

    def close(self) -> None:
        if not self.closed:
            self._packed.close()
        super().close()


class _ZstdFrames:
    """The frames of a zstd file, one after the other.

    The stream reader of the module zstandard ends silently where the file does, so that the rows that a truncated
    table has lost would not be missed.
    """

    def __init__(self, file: FileIO, decompressor: Any) -> None:
        self._file, self._decompressor = file, decompressor
        self._frame: Any = None  # the frame that has begun and not ended
        self._packed = b""  # what was read of the file and belongs to the next frame
        self._ready = memoryview(b"")

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as it goes at once; 0 at the end. Raises EOFError where the last frame is cut off."""
        while not self._ready:
            packed = self._packed or self._file.read(_ZSTD_AT_ONCE)
            if not packed:
                if self._frame is None:
                    return 0
                raise EOFError("the file ends within its compressed data")
            self._frame, self._packed = self._frame or self._decompressor.decompressobj(), b""
            self._ready = memoryview(self._frame.decompress(packed))
            if self._frame.eof:
                self._frame, self._packed = None, self._frame.unused_data
        n = min(len(buffer), len(self._ready))
        buffer[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n


def _decompressor(path: Path, file: FileIO, start: bytes) -> Any:
    """A readable object that unpacks the file."""
    method = next(name for magic, name in _MAGIC.items() if start.startswith(magic))
    if method == "gzip":
        return gzip.GzipFile(fileobj=file, mode="rb")
    if method == "bzip2":
        return bz2.BZ2File(file)
    if method == "xz":
        return lzma.LZMAFile(file)
    for name in _ZSTD_MODULES:
        try:
            module = import_module(name)
        except ImportError:
            continue
        if name == "zstandard":
            return _ZstdFrames(file, module.ZstdDecompressor())
        return module.ZstdFile(file)
    kind = kind_of_file(start)
    remedy = kind.remedy.format(path=path) if kind else ""
    raise InputError(
        f"{path}: compressed with zstd, which needs Python's zstandard; install it (pip install zstandard), or {remedy}"
    )
