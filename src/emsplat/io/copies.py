"""Images that are copies of others under another name, found by their pixels.

Star files are joined that name the same particles in different stacks: those of the extraction, and one that a program
wrote anew. If such copies lie in both half sets, the halves share their noise. A few hundred bytes from the middle of
an image tell it from every other image, because noise does not repeat. Those that agree in them are compared whole.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.io.mrc import StackReader
from emsplat.particles.table import Particles

_PIECE_IN_BYTES = 512
# All images of small sets are looked at, and of large sets a sample in which five pairs are expected if 1 % of the
# images have a copy: m² × 0.01 / (2 N) = 5. If it holds any, all images are.
_ALWAYS = 50_000
_PER_IMAGE = 1000
_COMPARED = 200  # pairs that are compared whole before the pieces are believed
_THREADS = 8  # that wait for the file system; the reads are too small to keep it busy one by one
_SEED = 0


def copies_by_content(particles: Particles, image: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) numbers of the images, equal also for rows whose images agree in every pixel.

    Images without any variation are never taken for copies. What cannot be read is left to those who read it next.

    Args:
        image: (N,) numbers, equal for rows that show the image of one place.
    """
    _, rows, number = np.unique(image, return_index=True, return_inverse=True)
    n = len(rows)
    most = max(_ALWAYS, math.isqrt(_PER_IMAGE * n))
    if n > most:
        chosen = np.sort(np.random.default_rng(_SEED).choice(n, most, replace=False))
        if not _repeated(_fingerprints(particles, rows[chosen])).any():
            return image
    prints = _fingerprints(particles, rows)
    candidates = np.flatnonzero(_repeated(prints))
    if not len(candidates):
        return image
    alone = prints.max() + np.arange(1, n + 1, dtype=np.uint64)
    alone[candidates] = prints[candidates]
    label = np.unique(alone, return_inverse=True)[1].reshape(-1).astype(np.int64)
    first = np.full(n, -1)
    first[label[candidates][::-1]] = candidates[::-1]
    pairs = np.stack([first[label[candidates]], candidates], axis=1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    differ = _that_differ(particles, rows, pairs)
    label[differ] = n + np.arange(len(differ))
    return label[number.reshape(-1)]


def _repeated(prints: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """(n,) whether another fingerprint is the same; 0 stands for none."""
    _, number, count = np.unique(prints, return_inverse=True, return_counts=True)
    return (count[number.reshape(-1)] > 1) & (prints > 0)


def _fingerprints(particles: Particles, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(n,) fingerprints of the images of these rows; 0 for a piece without variation and for what cannot be read."""
    found = np.zeros(len(rows), dtype=np.uint64)
    order = np.lexsort((particles.section[rows], particles.stack[rows]))
    ends = np.flatnonzero(np.diff(particles.stack[rows[order]])) + 1

    def of_stack(places: NDArray[np.intp]) -> None:
        path = particles.stacks[particles.stack[rows[places[0]]]]
        found[places] = _of_stack(str(path), particles.section[rows[places]].tolist())

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(of_stack, np.split(order, ends)))
    return found


def _of_stack(path: str, sections: Sequence[int]) -> list[int]:
    try:
        with StackReader(path) as stack:
            return [_fingerprint(stack.middle_of(section, _PIECE_IN_BYTES)) for section in sections]
    except InputError:
        return [0] * len(sections)


def _fingerprint(piece: NDArray) -> int:
    if piece.min() == piece.max():
        return 0
    return int.from_bytes(hashlib.blake2b(piece.tobytes(), digest_size=8).digest(), "big") >> 1 | 1


def _that_differ(particles: Particles, rows: NDArray[np.int64], pairs: NDArray[np.intp]) -> NDArray[np.intp]:
    """The second images of those of (n, 2) pairs that differ. All pairs are compared only if one of a few differs."""
    few = pairs[np.linspace(0, len(pairs) - 1, min(_COMPARED, len(pairs))).astype(int)]
    if all(_are_same(particles, rows[a], rows[b]) for a, b in few):
        return np.empty(0, dtype=np.intp)
    return np.array([b for a, b in pairs if not _are_same(particles, rows[a], rows[b])], dtype=np.intp)


def _are_same(particles: Particles, first: int, second: int) -> bool:
    try:
        a, b = (_image(particles, row) for row in (first, second))
    except InputError:
        return False
    return np.array_equal(a, b)


def _image(particles: Particles, row: int) -> NDArray[np.float32]:
    with StackReader(particles.stacks[particles.stack[row]]) as stack:
        return stack.read([particles.section[row]])
