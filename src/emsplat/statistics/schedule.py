"""Division of the accumulation among ranks.

Each grid, of b or of T for one part of the images, is a sum, and its rounding depends on the order of the terms. Few
ranks are therefore given whole grids, of which the training and held-out images of two half sets have eight. One rank
takes each sum, over the same blocks of images, so that any number of ranks comes to the same bits, without adding up
grids and without memory for it. Images are read for b, while their CTFs suffice for T alone, so that an image that
belongs to one part is read once. If there are more ranks, each takes a stretch of the images, and their grids are
summed, which rounds differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from emsplat.particles.batches import Rows
from emsplat.particles.parts import Kind, PartWeights
from emsplat.statistics.accumulate import AccumulationSettings, GridId, blocks_of, grids_of, share_of_blocks

_MOST_WITH_WHOLE_GRIDS = 4  # ranks, of four parts at most: of more, some would have to idle
# Shares of the work on an image of which a rank fills both grids: the preparation for either, b alone, and T alone.
_EITHER, _OF_KIND = 0.1, {Kind.B: 0.5, Kind.T: 0.4}
_WORTH_A_MOVE = 0.97  # share of the busier rank's work: a smaller saving is within the error of the estimate
_SNAP = 0.2  # part by which a rank's share may differ so that its images belong to one owner's parts


@dataclass(frozen=True)
class Share:
    """The work of one rank."""

    blocks: list[Rows]  # rows in the order in which they are read
    grids: frozenset[GridId]  # the grids that it fills


def ranks_told_apart(size: int) -> str:
    """Name shared by numbers of ranks that come to the same bits on processors and can continue each other's states."""
    return f"up to {_MOST_WITH_WHOLE_GRIDS}" if size <= _MOST_WITH_WHOLE_GRIDS else str(size)


def gives_whole_grids(n_parts: int, size: int) -> bool:
    """Whether so many ranks are few enough to fill whole grids of so many parts: each rank then has a part's work."""
    return size <= max(_MOST_WITH_WHOLE_GRIDS, n_parts)


def deal(
    order: Rows,
    parts: PartWeights,
    group: NDArray[np.bool_],
    owners: Sequence[int],
    size: int,
    box_size: int,
    settings: AccumulationSettings,
    whole: bool,
) -> list[Share]:
    """The shares of `size` ranks, with about the same work for each.

    Args:
        order: (M,) rows of any part, as they lie on the disk.
        group: (P,) the parts whose grids are to be filled.
        owners: (P,) the rank that is given the statistics of each part.
        box_size: box size of the images.
        whole: whether ranks are given whole grids, or stretches of the images; see `gives_whole_grids`.
    """
    if not whole:
        return _stretches(order[parts.holds(group)[order]], parts, group, owners, size, box_size, settings.block_bytes)
    blocks = blocks_of(order, box_size, settings.block_bytes)
    shares = []
    for grids in _whole_grids(parts, group, owners, size):
        mine = np.isin(np.arange(len(parts.parts)), [number for number, _ in grids])
        shares.append(Share(share_of_blocks(blocks, parts.holds(mine)), frozenset(grids)))
    return shares


class _Load:
    """The grids of one rank, and the work they make for it."""

    def __init__(self, counts: dict[GridId, int], n_images: int) -> None:
        self.grids: set[GridId] = set()
        self._counts, self._n_images = counts, n_images

    def work(self, without: Sequence[GridId] = (), beside: Sequence[GridId] = ()) -> float:
        """Work in units of an image of which both grids are filled, with some grids taken away and others added."""
        grids = self.grids.difference(without).union(beside)
        images: dict[int, int] = {}
        for grid in grids:
            images[grid.number] = max(images.get(grid.number, 0), self._counts[grid])
        prepared = min(sum(images.values()), self._n_images)
        return _EITHER * prepared + sum(_OF_KIND[grid.kind] * self._counts[grid] for grid in grids)


def _whole_grids(parts: PartWeights, group: NDArray[np.bool_], owners: Sequence[int], size: int) -> list[set[GridId]]:
    """The grids of every rank: those of its own parts, except the ones it gives away because it is the busiest.

    The rule is greedy: the busiest rank gives a grid, or both of a part, to the rank for which the busier of the two
    has the least work afterwards, as long as that is worth it.
    """
    grids = grids_of(parts, group)
    counts = _counts(parts, grids)
    n_images = int(np.sum(parts.holds(group)))
    loads = [_Load(counts, n_images) for _ in range(size)]
    for grid in grids:
        loads[owners[grid.number]].grids.add(grid)
    while True:
        busiest = max(loads, key=lambda load: load.work())
        now, best = busiest.work(), None
        for given in _gifts(busiest.grids):
            left = busiest.work(without=given)
            for other in loads:
                if other is busiest:
                    continue
                then = max(left, other.work(beside=given))
                if best is None or then < best[0]:
                    best = then, given, other
        if best is None or best[0] > _WORTH_A_MOVE * now:
            return [load.grids for load in loads]
        _, given, other = best
        busiest.grids.difference_update(given)
        other.grids.update(given)


def _counts(parts: PartWeights, grids: Sequence[GridId]) -> dict[GridId, int]:
    """The number of images that are added to each grid."""
    counts = {}
    for kind in Kind:
        weights = parts.weights_of(kind)
        added = parts.numbers[parts.numbers >= 0 if weights is None else weights != 0]
        counts[kind] = np.bincount(added, minlength=len(parts.parts))
    return {grid: int(counts[grid.kind][grid.number]) for grid in grids}


def _gifts(grids: set[GridId]) -> list[tuple[GridId, ...]]:
    """The gifts that a rank can make at a time: one grid, or both grids of a part."""
    ordered = sorted(grids)
    pairs = [(a, b) for a, b in pairwise(ordered) if a.number == b.number]
    return [*((grid,) for grid in ordered), *pairs]


def _stretches(
    order: Rows,
    parts: PartWeights,
    group: NDArray[np.bool_],
    owners: Sequence[int],
    size: int,
    box_size: int,
    block_bytes: int,
) -> list[Share]:
    """About as many images for each rank, of as few owners as possible, with the grids of what each rank owns."""
    owner_of_part = np.asarray(owners)
    owner = owner_of_part[parts.first_of(group)[order]]
    cuts = [len(order) * rank // size for rank in range(size + 1)]
    for border in np.cumsum(np.bincount(owner)):
        nearest = int(np.argmin(np.abs(np.subtract(cuts, border))))
        if 0 < nearest < size and abs(cuts[nearest] - border) <= _SNAP * len(order) / size:
            cuts[nearest] = int(border)
    grids = grids_of(parts, group)
    shares = []
    for rank, rows in enumerate(np.split(order[np.argsort(owner, kind="stable")], cuts[1:-1])):
        touched = np.unique(np.concatenate([parts.entries(rows, kind, group).numbers for kind in Kind]))
        here = {rank, *owner_of_part[touched].tolist()}
        mine = frozenset(grid for grid in grids if owners[grid.number] in here)
        shares.append(Share(blocks_of(rows, box_size, block_bytes), mine))
    return shares
