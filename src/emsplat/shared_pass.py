"""The pass over the images with the images dealt out to the ranks of a job.

The statistics are sums over images, so each rank fills grids of its own with a stretch of the disk, and the grids are
summed, in place, on the rank that will fit them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    mine = order[world.share(len(order))]
    numbers = sorted(owners)
    dense = np.searchsorted(numbers, subset).astype(np.int8)
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
        for place, number in enumerate(numbers):
            for grid in grids[place] or ():
                world.sum_to(grid.values, owners[number])
            if owners[number] != world.rank:
                grids[place] = None
        result: dict[int, Statistics] = {}
        for number in numbers:  # freed one by one: their transforms need room of their own
            if (one := grids.pop(0)) is not None:
                result[number] = statistics_of(one, settings, int(np.sum(subset == number)))
    return result
