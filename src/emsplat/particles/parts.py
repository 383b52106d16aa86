"""The parts of a half set: most of its images, and some that are kept from its fit until the annealing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emsplat.particles.table import Particles

SUBSETS = 4  # at most: two parts of each half
_UNSEEN_SHARE = 5  # one particle in five of a half is kept aside
_FEWEST_TO_SPLIT = 40  # images of a half below which nothing is


def subsets_of(table: Particles, seed: int) -> NDArray[np.int8]:
    """(N,) 0 and 1: the seen and the unseen part of half 1; 2 and 3: of half 2."""
    subset = np.zeros(len(table), dtype=np.int8)
    for half in (1, 2):
        rows = table.half_set == half
        subset[rows] = 2 * (half - 1)
        if can_split(table, half):
            subset[rows] += _unseen(table.particle[rows], seed + half)
    return subset


def can_split(table: Particles, half: int) -> bool:
    """Whether a half has enough images, of more than one particle, to keep some of them from its fit."""
    rows = table.half_set == half
    return bool(np.sum(rows) >= _FEWEST_TO_SPLIT and len(np.unique(table.particle[rows])) > 1)


def _unseen(particle: NDArray[np.int64], seed: int) -> NDArray[np.int8]:
    """(n,) 1 for the images of one particle in five."""
    names, inverse = np.unique(particle, return_inverse=True)
    chosen = np.arange(len(names)) % _UNSEEN_SHARE == 0
    np.random.default_rng(seed).shuffle(chosen)
    return chosen[inverse].astype(np.int8)
