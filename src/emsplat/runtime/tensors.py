"""Arrays in a safetensors file, written from where they lie in memory and read to where they belong.

The safetensors library first assembles a file in memory, which doubles the memory, and arrays here may fill most of it.
The format is that of safetensors (a header in JSON, then the bytes), so that other programs can read the files. The
CRC-32 of each array is in the metadata; it is the cheapest checksum of the standard library that notices every damaged
sector.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.runtime.files import open_regular

_TYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "u1", "I8": "i1", "BOOL": "?"}
_NAMES = {np.dtype(code): name for name, code in _TYPES.items()}
_LENGTH_BYTES, _ALIGNMENT = 8, 8
_CHECKSUMS = "crc32"


@dataclass(frozen=True)
class Header:
    """The contents of a file according to its header."""

    metadata: dict[str, str]
    entries: dict[str, tuple[np.dtype, tuple[int, ...], int]]  # type, shape and first byte in the file of every array


def write_tensors(file: BufferedWriter, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write C-contiguous arrays of real numbers without copying them."""
    sums = {name: zlib.crc32(_bytes(array)) for name, array in arrays.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata) | {_CHECKSUMS: json.dumps(sums)}}
    offset = 0
    for name, array in arrays.items():
        place = [offset, offset + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": place}
        offset += array.nbytes
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % _ALIGNMENT)
    file.write(len(content).to_bytes(_LENGTH_BYTES, "little") + content)
    for array in arrays.values():
        file.write(_bytes(array))


def read_header(path: Path) -> Header:
    """Read the header of a file; ValueError if the file is shorter than its header says, or has another format."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 0 < length <= size - _LENGTH_BYTES:
            raise ValueError("its header is cut short")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    entries = {}
    for name, entry in header.items():
        kind, shape, (start, stop) = np.dtype(_TYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
        if stop - start != kind.itemsize * math.prod(shape) or start < 0:
            raise ValueError(f"the length of {name} does not fit its shape")
        if _LENGTH_BYTES + length + stop > size:
            raise ValueError(f"it ends within {name}")
        entries[name] = kind, shape, _LENGTH_BYTES + length + start
    return Header(metadata, entries)


def read_tensors(path: Path, header: Header, into: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """All arrays of a file.

    Args:
        into: C-contiguous arrays to fill with those of the same name; the others are new arrays.
    Raises:
        ValueError: a checksum is wrong, or the type or shape of an array differs from that of the array to fill.
    """
    sums = json.loads(header.metadata[_CHECKSUMS])
    arrays = {}
    with open_regular(path) as file:
        for name, (kind, shape, start) in header.entries.items():
            array = into[name] if name in into else np.empty(shape, dtype=kind)
            if (array.dtype, array.shape) != (kind, shape):
                raise ValueError(f"{name} has the shape {shape} instead of {array.shape}")
            file.seek(start)
            left = _bytes(array)
            while len(left) and (read := file.readinto(left)):
                left = left[read:]
            if len(left) or zlib.crc32(_bytes(array)) != sums[name]:
                raise ValueError(f"the checksum of {name} is wrong")
            arrays[name] = array
    return arrays


def _bytes(array: NDArray[Any]) -> memoryview:
    """The memory of an array, without a copy."""
    return array.reshape(-1).view(np.uint8).data
