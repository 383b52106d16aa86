"""Mutations of binary files: headers of MRC files, of NumPy arrays and of safetensors that claim something else."""

from __future__ import annotations

import struct
from collections.abc import Callable

from numpy.random import Generator

from spoilt.mutations.tools import Mutation, flip_bits, replace_once

_STRANGE_INTEGERS = (0, -1, 1, 2, 3, 7, 2**15, 2**16 - 1, 2**16, 2**28, 2**30, 2**31 - 1, -(2**31))
_STRANGE_FLOATS = (0.0, 1.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"))
_STRANGE_LENGTHS = (b"10**12", b"1000000000000", b"-1", b"1e3", b"9" * 5000, b"3, 4", b"", b"True", b"'a'")


def integer_at(offsets: tuple[int, ...], values: tuple[int, ...]) -> Mutation:
    """Write one of the values, as a little-endian integer of four bytes, to one of the places."""

    def mutation(data: bytes, rng: Generator) -> bytes:
        found = bytearray(data)
        struct.pack_into("<i", found, int(rng.choice(offsets)), int(rng.choice(values)))
        return bytes(found)

    return mutation


def float_at(offsets: tuple[int, ...], values: tuple[float, ...]) -> Mutation:
    """Write one of the values, as a little-endian float of four bytes, to one of the places."""

    def mutation(data: bytes, rng: Generator) -> bytes:
        found = bytearray(data)
        struct.pack_into("<f", found, int(rng.choice(offsets)), float(rng.choice(values)))
        return bytes(found)

    return mutation


def strange_float(rng: Generator) -> bytes:
    """Four bytes of a float that is not finite, or far from ordinary."""
    return struct.pack("<f", float(rng.choice(_STRANGE_FLOATS)))


MRC: dict[str, Mutation] = {
    "size claimed": integer_at((0, 4, 8), _STRANGE_INTEGERS),
    "terabytes claimed": lambda data, rng: struct.pack("<3i", 60000, 60000, 60000) + data[12:],
    "mode": integer_at((12,), (-1, 0, 1, 2, 3, 4, 5, 6, 7, 12, 16, 101, 2**24, 2**31 - 1)),
    "start": integer_at((16, 20, 24), _STRANGE_INTEGERS),
    "sampling": integer_at((28, 32, 36), _STRANGE_INTEGERS),
    "cell": float_at((40, 44, 48), _STRANGE_FLOATS),
    "axes": integer_at((64, 68, 72), (-1, 0, 1, 2, 3, 4, 2**31 - 1)),
    "extended header claimed": integer_at((92,), (-1, -1024, 1, 3, 1024, 2**29, 2**30, 2**31 - 1)),
    "origin": float_at((196, 200, 204), _STRANGE_FLOATS),
    "machine stamp": integer_at((212,), (0, 0x11, 0x1111, 0x44, 0x4144, -1)),
    "header's bits flipped": lambda data, rng: flip_bits(data, rng, 0, 224),
    "pixels not finite": lambda data, rng: data[:1024] + strange_float(rng) + data[1028:],
}


def numpy_header(change: Callable[[bytes, Generator], bytes]) -> Mutation:
    """Change the header of a NumPy array file; its length field is left as it was, or corrected."""

    def mutation(data: bytes, rng: Generator) -> bytes:
        (length,) = struct.unpack_from("<H", data, 8)
        header = change(data[10 : 10 + length], rng)
        said = len(header) if rng.random() < 0.7 else length
        return data[:8] + struct.pack("<H", min(said, 65535)) + header + data[10 + length :]

    return mutation


def another_number_of_rows(header: bytes, rng: Generator) -> bytes:
    """A NumPy header that claims another shape."""
    rows = _STRANGE_LENGTHS[int(rng.integers(0, len(_STRANGE_LENGTHS)))]
    return header[: header.index(b"'shape'")] + b"'shape': (" + rows + b",), }\n"


NPY: dict[str, Mutation] = {
    "rows claimed": numpy_header(another_number_of_rows),
    "type": numpy_header(
        replace_once(b"'<f4'", b"'|O'", b"'<f8'", b"'<f4000000000'", b"'|S1000000000'", b"'|V0'", b"'M8'", b"None")
    ),
    "objects": numpy_header(replace_once(b"'<u8'", b"'|O'", b"'O'", b"object")),
    "order": numpy_header(
        replace_once(b"'fortran_order': False", b"'fortran_order': True", b"'fortran_order': 1", b"")
    ),
    "code": numpy_header(lambda header, rng: b"__import__('os').system('touch executed')"),
    "nested": numpy_header(lambda header, rng: b"(" * 60000),
    "length of the header": lambda data, rng: data[:8] + rng.bytes(2) + data[10:],
    "version": lambda data, rng: data[:6] + bytes([int(rng.choice([0, 2, 3, 9, 255])), 0]) + data[8:],
    "header's bits flipped": lambda data, rng: flip_bits(data, rng, 0, 1024),
}


def safetensors_header(change: Callable[[bytes, Generator], bytes]) -> Mutation:
    """Change the header of a safetensors file, and correct its length field."""

    def mutation(data: bytes, rng: Generator) -> bytes:
        (length,) = struct.unpack_from("<Q", data)
        header = change(data[8 : 8 + length], rng)
        return struct.pack("<Q", len(header)) + header + data[8 + length :]

    return mutation


SAFETENSORS: dict[str, Mutation] = {
    "length of the header": lambda data, rng: (
        struct.pack("<Q", int(rng.choice([0, 1, 7, 2**20, 2**40, 2**62]))) + data[8:]
    ),
    "shape": safetensors_header(
        replace_once(b"[40,3]", b"[3,40]", b"[1000000000000,3]", b"[-1,3]", b"[120]", b"[40,3,1]")
    ),
    "type": safetensors_header(replace_once(b'"F32"', b'"F64"', b'"I32"', b'"XYZ"', b'"BOOL"', b"32")),
    "offsets": safetensors_header(
        replace_once(b'"data_offsets":[0', b'"data_offsets":[4', b'"data_offsets":[-1', b'"data_offsets":[1e3')
    ),
    "name": safetensors_header(replace_once(b'"centres"', b'"centre"', b'"log_masses"', b"centres")),
    "nested": safetensors_header(lambda header, rng: b"[" * 100_000),
    "header's bits flipped": lambda data, rng: flip_bits(data, rng, 8, 900),
    "values not finite": lambda data, rng: data[:-4] + strange_float(rng),
}


CISTEM: dict[str, Mutation] = {
    "columns claimed": integer_at((0,), _STRANGE_INTEGERS),
    "rows claimed": integer_at((4,), (*_STRANGE_INTEGERS, 39, 41)),
    "codes": integer_at(tuple(range(8, 8 + 9 * 18, 9)), (*_STRANGE_INTEGERS, 4, 8, 64, 16777216)),
    "types": lambda data, rng: flip_bits(data, rng, 16, 17) if rng.random() < 0.5 else flip_bits(data, rng, 8, 170),
    "values": lambda data, rng: float_at(tuple(range(170, len(data) - 4)), _STRANGE_FLOATS)(data, rng),
    "lengths of texts": lambda data, rng: data.replace(struct.pack("<i", 10), rng.bytes(4), int(rng.integers(1, 40))),
    "texts": replace_once(b"stack.mrcs", b"../../../x", b"stack\nmrcs", b"\xff\xfeack.mrcs", b"\0\0\0\0\0\0\0\0\0\0"),
}

GZIP: dict[str, Mutation] = {
    "checksum": lambda data, rng: flip_bits(data, rng, len(data) - 8, len(data) - 4),
    "length at the end": lambda data, rng: flip_bits(data, rng, len(data) - 4, len(data)),
    "flags": lambda data, rng: data[:3] + rng.bytes(1) + data[4:],
    "two of them": lambda data, rng: data + data,
    "something behind": lambda data, rng: data + rng.bytes(int(rng.integers(1, 100))),
    "zeros behind": lambda data, rng: data + bytes(int(rng.integers(1, 100))),
}
