"""Which rank does what of the pass over the images.

A grid, that of b or that of T of one subset of the images, is a sum, and its rounding depends on the order of the
terms. Up to four ranks are therefore given whole grids, of which two subsets of each half have eight: each sum is taken
by one rank, over the same blocks of images, so that any number of them comes to the same bits, with nothing to add up
and no memory for it. For b the images are read, for T alone their CTFs suffice: no image is read twice. More ranks than
that take a stretch of a half's images each, and their grids are summed, with another rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.particles.batches import Rows
from emsplat.statistics.accumulate import blocks_of

_MOST_WITH_WHOLE_GRIDS = 4  # ranks: of more, some would have to idle
# Of the work on an image of which a rank fills both grids: what it takes for either, for b and for T.
_EITHER, _OF_B, _OF_T = 0.1, 0.5, 0.4
_ABOUT_AS_GOOD = 1.03  # times the least work of the busiest rank, which is known no better
_SNAP = 0.2  # of a rank's share: by so much it may differ so that it has one half's images alone

GridId = tuple[int, int]  # number of a subset; 0 for the grid of b, 1 for that of T


@dataclass(frozen=True)
class Share:
    """What one rank does."""

    blocks: list[Rows]  # of rows, as they are to be read
    grids: frozenset[GridId]  # that it fills


def ranks_told_apart(size: int) -> str:
    """Numbers of ranks that come to the same bits (on processors) have one name: any goes on with another's states."""
    return f"up to {_MOST_WITH_WHOLE_GRIDS}" if size <= _MOST_WITH_WHOLE_GRIDS else str(size)


def deal(
    order: Rows, subset: NDArray[np.int8], owners: Mapping[int, int], size: int, box_size: int, whole: bool = True
) -> list[Share]:
    """The shares of `size` ranks, about as much work for each.

    Args:
        order: (M,) rows as they lie on the disk.
        subset: (N,) number of each row's subset.
        owners: the rank that is given the statistics of each subset; of those in it.
        box_size: of the images.
        whole: whether ranks may be given whole grids.
    """
    if not whole or size > _MOST_WITH_WHOLE_GRIDS:
        return _stretches(order, subset, owners, size, box_size)
    numbers = sorted(owners)
    counts = np.bincount(subset[order], minlength=numbers[-1] + 1)[numbers]
    blocks = blocks_of(order, box_size)
    shares = []
    for grids in _whole_grids(numbers, counts, [owners[number] for number in numbers], size):
        mine = np.isin(np.arange(numbers[-1] + 1), [number for number, _ in grids])
        kept = (block[mine[subset[block]]] for block in blocks)
        shares.append(Share([block for block in kept if len(block)], grids))
    return shares


def _whole_grids(
    numbers: list[int], counts: NDArray[np.int64], owners: list[int], size: int
) -> list[frozenset[GridId]]:
    """Those of every rank: the busiest has little to do, and few grids are filled by another rank than their owner."""
    n = len(numbers)
    # All ways to deal n grids of b, then n of T: at most 4⁸.
    ways = np.stack(np.unravel_index(np.arange(size ** (2 * n)), (size,) * (2 * n)), axis=1).astype(np.int8)
    of_b, of_t = ways[:, :n], ways[:, n:]
    work = np.stack(
        [
            ((of_b == r) * _OF_B + (of_t == r) * _OF_T + ((of_b == r) | (of_t == r)) * _EITHER) @ counts
            for r in range(size)
        ],
        axis=1,
    ).max(axis=1)
    moved = np.count_nonzero(ways != np.array(owners * 2), axis=1)
    good = np.flatnonzero(work <= _ABOUT_AS_GOOD * work.min())
    chosen = ways[good[np.lexsort((work[good], moved[good]))[0]]]
    grids = [(number, kind) for kind in (0, 1) for number in numbers]
    return [frozenset(grid for grid, rank in zip(grids, chosen, strict=True) if rank == r) for r in range(size)]


def _stretches(
    order: Rows, subset: NDArray[np.int8], owners: Mapping[int, int], size: int, box_size: int
) -> list[Share]:
    """About as many images for each rank, and of as few owners as can be; also the grids of what a rank owns."""
    to = np.array([owners.get(number, 0) for number in range(max(owners) + 1)])  # by subset
    owner = to[subset[order]]
    cuts = [len(order) * rank // size for rank in range(size + 1)]
    for border in np.cumsum(np.bincount(owner)):
        nearest = int(np.argmin(np.abs(np.subtract(cuts, border))))
        if 0 < nearest < size and abs(cuts[nearest] - border) <= _SNAP * len(order) / size:
            cuts[nearest] = int(border)
    shares = []
    for rank, rows in enumerate(np.split(order[np.argsort(owner, kind="stable")], cuts[1:-1])):
        here = {rank, *to[subset[rows]].tolist()}
        grids = frozenset((number, kind) for number in owners if owners[number] in here for kind in (0, 1))
        shares.append(Share(blocks_of(rows, box_size), grids))
    return shares
