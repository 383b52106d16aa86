"""The pass over the images, its work dealt out to the ranks of a job as `dealing` says.

What they have filled goes to the rank that will fit the half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.io.images import reading_order
from emsplat.particles.batches import Images
from emsplat.particles.table import Particles
from emsplat.runtime.checkpoint import UNKEPT, Checkpoint
from emsplat.runtime.devices import CPU
from emsplat.runtime.ranks import World
from emsplat.runtime.stopwatch import Stopwatch
from emsplat.statistics.accumulate import (
    FilledGrid,
    Grids,
    PassSettings,
    Statistics,
    empty_grid,
    fill_grids,
    statistics_of,
)
from emsplat.statistics.schedule import GridId, Share, deal


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
    shares = deal(order, subset, owners, world.size, particles.box_size, whole=device == CPU)
    blocks, mine = shares[world.rank].blocks, shares[world.rank].grids
    n_mine = sum(map(len, blocks))
    numbers = sorted({number for number, _ in mine})
    dense = np.searchsorted(numbers, subset).astype(np.int8)  # of this rank's rows
    stopwatch = stopwatch or Stopwatch(device)

    def advance(done: int) -> None:
        progress(round(done / n_mine * len(order)), len(order))

    pairs: Sequence[tuple[FilledGrid | None, FilledGrid | None]]
    if device == CPU:
        pairs = empty = [_empty_grids(number, mine, settings) for number in numbers]
        fill_grids(empty, particles, images, blocks, dense, settings, advance, stopwatch, checkpoint)
        del empty
    else:
        from emsplat.statistics.accumulate_gpu import filled_on_device  # only where there is a card is Triton, too

        rows = np.concatenate([order[:0], *blocks])
        what = len(numbers), particles, images, rows, dense, settings
        pairs = filled_on_device(*what, device, advance, say, stopwatch)
    filled = _by_grid(numbers, pairs)
    del pairs
    with stopwatch.waiting("finish"):
        _give_to_owners(filled, shares, owners, settings, world)
        result: dict[int, Statistics] = {}
        for number in (number for number in sorted(owners) if owners[number] == world.rank):
            pair = filled.pop((number, 0)), filled.pop((number, 1))
            result[number] = statistics_of(pair, settings, int(np.sum(subset == number)))
            del pair  # one by one: their transforms need room of their own
    return result


def _empty_grids(number: int, mine: Set[GridId], settings: PassSettings) -> Grids:
    b, t = (empty_grid(kind, settings) if (number, kind) in mine else None for kind in (0, 1))
    return b, t


def _by_grid(
    numbers: Sequence[int], pairs: Sequence[tuple[FilledGrid | None, FilledGrid | None]]
) -> dict[GridId, FilledGrid]:
    return {(n, kind): grid for n, pair in zip(numbers, pairs, strict=True) for kind, grid in enumerate(pair) if grid}


def _give_to_owners(
    filled: dict[GridId, FilledGrid],
    shares: Sequence[Share],
    owners: Mapping[int, int],
    settings: PassSettings,
    world: World,
) -> None:
    """Sum grids on their owners, in place; this rank has those that it owns, then.

    What one rank alone has filled is added to nothing, which changes no bit.
    """
    with_grid: dict[GridId, tuple[int, ...]] = {
        (number, kind): tuple(r for r, s in enumerate(shares) if r == owners[number] or (number, kind) in s.grids)
        for number in sorted(owners)
        for kind in (0, 1)
    }
    groups = {ranks: world.form(ranks) for ranks in sorted(set(with_grid.values()))}
    for grid, ranks in with_grid.items():
        owner = owners[grid[0]]
        if world.rank not in ranks:
            filled.pop(grid, None)
            continue
        filled[grid] = filled.get(grid) or empty_grid(grid[1], settings)
        world.sum_to(filled[grid].values, owner, groups[ranks])
        if owner != world.rank:
            del filled[grid]
