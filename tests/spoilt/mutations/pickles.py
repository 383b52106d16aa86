"""Mutations of pickles, and pickles that would run code if they were obeyed."""

from __future__ import annotations

import struct

from numpy.random import Generator

from spoilt.mutations.tools import Mutation, replace_once

# Each would make a file called "executed" in the working directory if it were obeyed.
_COMMAND, _CODE = b"touch executed", b"__import__('os').mkdir('executed')"
HOSTILE_PICKLES = (
    b"cos\nsystem\n(S'" + _COMMAND + b"'\ntR.",
    b"\x80\x02cposix\nsystem\nX\x0e\0\0\0" + _COMMAND + b"\x85R.",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0e" + _COMMAND + b"\x85R.",
    b"(S'" + _COMMAND + b"'\nios\nsystem\n.",
    b"\x80\x02c__builtin__\neval\nX" + struct.pack("<I", len(_CODE)) + _CODE + b"\x85R.",
    b"\x80\x04\x8c\x05numpy\x8c\x04load\x93\x8c\x08executed\x85R.",
    b"\x80\x02(" + b"(" * 100_000 + b"t" * 100_000 + b".",
    b"\x80\x02]" + b"q\0(h\0h\0h\0h\0h\0h\0h\0h\0l" * 50 + b".",
    b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    b"\x80\x04\x8a\x04" + b"\xff\xff\xff\x7f.",
    b"\x80\x04\x8b" + struct.pack("<i", -5) + b".",
)
_N_OBEYED = 5  # the first ones, which Python's own reader obeys


def a_hostile_pickle(data: bytes, rng: Generator) -> bytes:
    """A hostile pickle in place of the file."""
    return HOSTILE_PICKLES[int(rng.integers(0, len(HOSTILE_PICKLES)))]


def a_hostile_pickle_before(data: bytes, rng: Generator) -> bytes:
    """Code that runs and whose result is dropped, before the valid content."""
    return HOSTILE_PICKLES[int(rng.integers(0, _N_OBEYED))][:-1] + b"0" + data


PICKLE: dict[str, Mutation] = {
    "hostile": a_hostile_pickle,
    "hostile before": a_hostile_pickle_before,
    "other module": replace_once(b"numpy", b"posix", b"types", b"shutil"),
    "other name": replace_once(b"_reconstruct", b"fromfile____", b"scalar______"),
    "shape": replace_once(
        b"K\x03K\x03", b"K\xffK\xff", b"J\xff\xff\xff\xffK\x03", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f"
    ),
}
