"""Mutations of any file."""

from __future__ import annotations

from numpy.random import Generator

from spoilt.mutations.tools import Mutation, flip_bits, piece_of, place_in


def cut_anywhere(data: bytes, rng: Generator) -> bytes:
    """Lose the end, as when a program is killed while it writes."""
    return data[: place_in(data, rng)]


def cut_at_a_block(data: bytes, rng: Generator) -> bytes:
    """Lose the end from a disk block on, as when a disk is full or a copy breaks off."""
    return data[: int(rng.integers(0, len(data) // 512 + 1)) * 512]


def set_bytes(data: bytes, rng: Generator) -> bytes:
    """Set one to eight bytes to something else."""
    found = bytearray(data)
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        found[place] = int(rng.integers(0, 256))
    return bytes(found)


def zero_a_piece(data: bytes, rng: Generator) -> bytes:
    """Set a piece to zeros, as where a file system lost blocks."""
    begin, end = piece_of(data, rng)
    return data[:begin] + bytes(end - begin) + data[end:]


def scramble_a_piece(data: bytes, rng: Generator) -> bytes:
    """Replace a piece by noise."""
    begin, end = piece_of(data, rng)
    return data[:begin] + rng.bytes(end - begin) + data[end:]


def remove_a_piece(data: bytes, rng: Generator) -> bytes:
    """Leave out a piece."""
    begin, end = piece_of(data, rng)
    return data[:begin] + data[end:]


def repeat_a_piece(data: bytes, rng: Generator) -> bytes:
    """Have a piece twice."""
    begin, end = piece_of(data, rng)
    return data[:end] + data[begin:]


def append_noise(data: bytes, rng: Generator) -> bytes:
    """Add bytes behind the end."""
    return data + rng.bytes(int(rng.integers(1, 5000)))


def append_zeros(data: bytes, rng: Generator) -> bytes:
    """Add zeros behind the end."""
    return data + bytes(int(rng.integers(1, 5000)))


def exchange_halves(data: bytes, rng: Generator) -> bytes:
    """Put the second half before the first."""
    return data[len(data) // 2 :] + data[: len(data) // 2]


def swap_words(data: bytes, rng: Generator) -> bytes:
    """Put the bytes of each word of four into the other order, as between machines of another byte order."""
    return b"".join(data[i : i + 4][::-1] for i in range(0, len(data), 4))


ANY: dict[str, Mutation] = {
    "cut anywhere": cut_anywhere,
    "cut at a disk block": cut_at_a_block,
    "last byte lost": lambda data, rng: data[:-1],
    "empty": lambda data, rng: b"",
    "bits flipped": flip_bits,
    "bits flipped at the start": lambda data, rng: flip_bits(data, rng, 0, 256),
    "bytes set": set_bytes,
    "piece zeroed": zero_a_piece,
    "piece scrambled": scramble_a_piece,
    "piece removed": remove_a_piece,
    "piece repeated": repeat_a_piece,
    "bytes appended": append_noise,
    "zeros appended": append_zeros,
    "halves exchanged": exchange_halves,
    "noise": lambda data, rng: rng.bytes(len(data)),
    "words of 4 bytes swapped": swap_words,
    "line ends changed": lambda data, rng: data.replace(b"\n", b"\r\n"),
    "byte-order mark": lambda data, rng: b"\xef\xbb\xbf" + data,
}
