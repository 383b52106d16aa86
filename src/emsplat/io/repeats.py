"""Rows that show the same image become one particle, whatever their format and however its stack is spelled.

A particle that is listed twice brings its noise twice. If one copy lay in each half set, both half maps would
hold the same noise, and their correlation would be taken for signal.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from emsplat.particles.table import Particles

SameImage = Callable[[Particles, NDArray[np.int64]], NDArray[np.int64]]

_SAMPLED_BYTES = 4096  # read at the start, in the middle and at the end of a file, to tell copies of it
_LARGEST_SHARE = 0.01  # share of the rows that may change their half; beyond it the halves were not refined apart


def with_repeats_joined(particles: Particles, same_image: SameImage = lambda particles, image: image) -> Particles:
    """The table with all rows of one image in one particle and one half set; its warnings tell what was found.

    Stacks are the same if their paths lead to one file, or if one is a copy of the other.

    Args:
        same_image: given (N,) numbers of the images by their places, makes equal those of images that are the same.
    """
    image = _image_numbers(particles)
    same = same_image(particles, image)
    n_repeated, n_copied = len(image) - len(np.unique(image)), len(np.unique(image)) - len(np.unique(same))
    lines = []
    together = "the rows of one image count as one particle and go to one half"
    if n_repeated:
        lines.append(f"{n_repeated} rows repeat an image that is in the file already; {together}")
    if n_copied:
        one, other = _first_copy(image, same)
        lines.append(
            f"{n_copied} images are copies of others under another name, pixel for pixel (the first is "
            f"{_name(particles, other)}, a copy of {_name(particles, one)}); {together}"
        )
    if not lines:
        return _with_whole_halves(particles)
    particle = joined(particles.particle, same)
    return _with_whole_halves(replace(particles, particle=particle, warnings=(*particles.warnings, *lines)))


def _first_copy(image: NDArray[np.int64], same: NDArray[np.int64]) -> tuple[int, int]:
    """The rows of the first image that has a copy at another place, and of that copy."""
    _, first, number = np.unique(same, return_index=True, return_inverse=True)
    original = first[number.reshape(-1)]
    copy = int(np.argmax(image != image[original]))
    return int(original[copy]), copy


def _name(particles: Particles, row: int) -> str:
    return f"{particles.section[row] + 1}@{particles.stacks[particles.stack[row]]}"


def joined(*labels: NDArray) -> NDArray[np.int64]:
    """(N,) numbers from 0, equal for rows that any of the labels, (N,) each, make equal, also by way of other rows."""
    n = len(labels[0])
    numbers = [np.unique(label, return_inverse=True)[1].reshape(-1) for label in labels]
    first = np.cumsum([n, *(len(np.unique(number)) for number in numbers)])
    columns = np.concatenate([offset + number for offset, number in zip(first, numbers, strict=False)])
    rows = np.tile(np.arange(n), len(labels))
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(first[-1], first[-1]))
    return connected_components(graph, directed=False)[1][:n].astype(np.int64)


def _image_numbers(particles: Particles) -> NDArray[np.int64]:
    """(N,) numbers of the images, equal for rows that show the same image."""
    stack = same_files(particles.stacks)[particles.stack].astype(np.int64)
    return stack * (int(particles.section.max(initial=0)) + 1) + particles.section


def same_files(paths: Sequence[Path]) -> NDArray[np.int64]:
    """(n,) numbers from 0, equal for paths that lead to one file, and for files that are copies of each other.

    Copies are known by their size and a sample of their bytes: files of one size are few, and two stacks of noise that
    agree in thousands of bytes do not occur. Paths that lead nowhere are told apart by their text.
    """
    number_of: dict[object, int] = {}
    of_path: list[int] = []
    by_size: dict[int, list[tuple[Path, int]]] = defaultdict(list)
    for path in paths:
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            of_path.append(number_of.setdefault(os.path.normpath(path), len(number_of)))
            continue
        known = len(number_of)
        number = number_of.setdefault((found.st_dev, found.st_ino), known)
        of_path.append(number)
        if number == known:
            by_size[found.st_size].append((path, number))
    original = np.arange(len(number_of))
    for alike in by_size.values():
        first_of: dict[bytes | Path, int] = {}
        for path, number in alike if len(alike) > 1 else ():
            original[number] = first_of.setdefault(_sampled(path) or path, number)
    return original[np.array(of_path, dtype=np.int64)]


def are_copies(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file, or to files that are copies of each other."""
    numbers = same_files((first, second))
    return bool(numbers[0] == numbers[1])


def _sampled(path: Path) -> bytes | None:
    """A digest of the start, the middle and the end of a file; None where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for offset in (0, size // 2, max(0, size - _SAMPLED_BYTES)):
                file.seek(offset)
                digest.update(file.read(_SAMPLED_BYTES))
    except OSError:
        return None
    return digest.digest()


def _with_whole_halves(particles: Particles) -> Particles:
    """The table with every particle in the half of its first row, unless too many are in both halves."""
    half = particles.half_set
    if not (half > 0).all():
        return particles
    _, first, particle = np.unique(particles.particle, return_index=True, return_inverse=True)
    whole = half[first][particle.reshape(-1)]
    n_moved = int((whole != half).sum())
    if n_moved == 0:
        return particles
    if n_moved > _LARGEST_SHARE * len(particles):
        warning = (
            "the file's half sets are not used: they put copies of one particle into both, and "
            f"{n_moved} of {len(particles)} rows would have to change theirs"
        )
        whole = np.zeros_like(half)
    else:
        warning = f"{n_moved} rows are in the other half than the file says: a copy of the particle is in that one"
    return replace(particles, half_set=whole, warnings=(*particles.warnings, warning))
