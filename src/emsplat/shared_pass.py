"""The pass over the images with the images dealt out to the ranks of a job.

The statistics are sums over images. Each half belongs to some of the ranks, in order, and each of these reads a stretch
of that half's images; what they have inserted is summed, in place, on the rank that will fit the half. So two ranks
have a half each and nothing to sum, and what they get is the same bits as one rank gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.batches import Images
from emsplat.checkpoint import UNKEPT, Checkpoint
from emsplat.devices import CPU
from emsplat.io.images import reading_order
from emsplat.particles import Particles
from emsplat.ranks import World
from emsplat.statistics import FilledGrids, PassSettings, Statistics, empty_grids, fill_grids, statistics_of
from emsplat.stopwatch import Stopwatch

_SNAP = 0.2  # of a rank's share: by so much it may differ so that it has one half's images alone


def gather_shared(
    particles: Particles,
    images: Images,
    subset: NDArray[np.int8],
    settings: PassSettings,
    owners: Mapping[int, int],
    world: World,
    device: torch.device = CPU,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
    stopwatch: Stopwatch | None = None,
    checkpoint: Checkpoint = UNKEPT,
) -> dict[int, Statistics]:
    """Stream over the images once, together with the other ranks.

    Args:
        subset: (N,) number of the subset each image belongs to, from 0.
        owners: the rank that is given the statistics of each subset; of those in it.
        device: of the same kind on every rank.
        progress: called with the images done and to do, by this rank's share of them.
        say: told what a graphics card has room for.
        stopwatch: of this device; told where the time goes.
        checkpoint: of this rank's share, see `fill_grids`; a graphics card has filled its grids before it would pay.
    Returns:
        The statistics of the subsets that this rank owns, by number. Memory does not depend on N.
    """
    order = reading_order(particles)
    to = np.array([owners.get(number, 0) for number in range(max(owners) + 1)])  # by subset
    dealt = deal(order, to[subset[order]], world.size)
    mine = dealt[world.rank]
    here = np.unique(to[subset[mine]])
    # Of the subsets of those halves that this rank has images of, and of the half it owns.
    numbers = [number for number in sorted(owners) if owners[number] in here or owners[number] == world.rank]
    dense = np.searchsorted(numbers, subset).astype(np.int8)  # of this rank's rows
    stopwatch = stopwatch or Stopwatch(device)

    def advance(done: int) -> None:
        progress(round(done / len(mine) * len(order)), len(order))

    grids: list[FilledGrids | None]
    if device == CPU:
        grids = list(empty := empty_grids(len(numbers), settings))
        fill_grids(empty, particles, images, mine, dense, settings, advance, stopwatch, checkpoint)
        del empty
    else:
        from emsplat.statistics_gpu import filled_on_device  # only where there is a card is Triton, too

        what = len(numbers), particles, images, mine, dense, settings
        grids = list(filled_on_device(*what, device, advance, say, stopwatch))
    with stopwatch.waiting("finish"):
        groups = {owner: world.form(_ranks_with(owner, dealt, to, subset)) for owner in sorted(set(owners.values()))}
        for place, number in enumerate(numbers):
            for grid in grids[place] or ():
                world.sum_to(grid.values, owners[number], groups[owners[number]])
            if owners[number] != world.rank:
                grids[place] = None
        result: dict[int, Statistics] = {}
        for number in numbers:  # freed one by one: their transforms need room of their own
            if (one := grids.pop(0)) is not None:
                result[number] = statistics_of(one, settings, int(np.sum(subset == number)))
    return result


def deal(order: NDArray[np.int64], owner: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Rows for each of `size` ranks, about as many for each, and of as few owners as can be.

    Args:
        order: (M,) rows as they lie on the disk.
        owner: (M,) the rank that their statistics go to.
    """
    cuts = [len(order) * rank // size for rank in range(size + 1)]
    for border in np.cumsum(np.bincount(owner)):
        nearest = int(np.argmin(np.abs(np.subtract(cuts, border))))
        if 0 < nearest < size and abs(cuts[nearest] - border) <= _SNAP * len(order) / size:
            cuts[nearest] = int(border)
    return np.split(order[np.argsort(owner, kind="stable")], cuts[1:-1])


def _ranks_with(
    owner: int, dealt: Sequence[NDArray[np.int64]], to: NDArray[np.int64], subset: NDArray[np.int8]
) -> tuple[int, ...]:
    """The owner, and the ranks that have images of its half."""
    return tuple(rank for rank, rows in enumerate(dealt) if rank == owner or (to[subset[rows]] == owner).any())
