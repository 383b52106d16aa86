"""What mutations are made of: a place or a piece that is drawn, and what is done to it."""

from __future__ import annotations

from collections.abc import Callable

from numpy.random import Generator

Mutation = Callable[[bytes, Generator], bytes]


def place_in(data: bytes, rng: Generator) -> int:
    """A position in the data."""
    return int(rng.integers(0, max(1, len(data))))


def piece_of(data: bytes, rng: Generator) -> tuple[int, int]:
    """Where a piece of the data begins and ends."""
    begin, end = sorted(rng.integers(0, len(data) + 1, 2))
    return int(begin), int(end)


def flip_bits(data: bytes, rng: Generator, first: int = 0, last: int | None = None) -> bytes:
    """Flip one to eight bits of the bytes from `first` to `last`."""
    found = bytearray(data)
    for place in rng.integers(first, min(last or len(data), len(data)), rng.integers(1, 9)):
        found[place] ^= 1 << int(rng.integers(0, 8))
    return bytes(found)


def insert(what: bytes) -> Mutation:
    """Insert something somewhere."""

    def mutation(data: bytes, rng: Generator) -> bytes:
        place = place_in(data, rng)
        return data[:place] + what + data[place:]

    return mutation


def replace_once(old: bytes, *new: bytes) -> Mutation:
    """Replace the first `old` by one of several."""
    return lambda data, rng: data.replace(old, new[int(rng.integers(0, len(new)))], 1)
