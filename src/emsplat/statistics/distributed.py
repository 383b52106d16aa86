"""The accumulation over the images, its work dealt out to the ranks of a job as `schedule` says.

What they have filled goes to the rank that owns the part: the one that will fit it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.particles.batches import Images
from emsplat.particles.parts import Kind, Part, PartWeights
from emsplat.particles.table import Particles
from emsplat.runtime.checkpoint import UNKEPT, Checkpoint
from emsplat.runtime.devices import CPU
from emsplat.runtime.ranks import World
from emsplat.runtime.stopwatch import Stopwatch
from emsplat.statistics.accumulate import (
    AccumulationSettings,
    FilledGrid,
    GridId,
    Statistics,
    empty_grid,
    fill_grids,
    grids_of,
    groups_of_parts,
    restored_statistics,
    rows_in_order,
    saved_statistics,
    statistics_of,
)
from emsplat.statistics.schedule import Share, deal


def accumulate_shared(
    particles: Particles,
    images: Images,
    parts: PartWeights,
    settings: AccumulationSettings,
    owners: Mapping[Part, int],
    world: World,
    device: torch.device = CPU,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
    stopwatch: Stopwatch | None = None,
    checkpoint: Checkpoint = UNKEPT,
) -> dict[Part, Statistics]:
    """Stream over the images and accumulate the statistics of every part, together with the other ranks.

    Args:
        parts: of the N particles, the same on every rank.
        owners: the rank that is given the statistics of each of the parts.
        device: of the same kind on every rank.
        progress: called with the images done and to do, by this rank's share of them.
        say: told what a graphics card has room for.
        stopwatch: of this device; told where the time goes.
        checkpoint: of this rank's share, see `fill_grids`; a graphics card has filled its grids before it would pay.
    Returns:
        The statistics of the parts that this rank owns. Memory does not depend on N. The images are read once where the
        grids of all parts fit into `settings.grid_bytes`, else once for each of the groups of parts that do; what comes
        of a group is kept in a state of its own.
    """
    order = rows_in_order(particles, parts)
    owner_of_part = [owners[part] for part in parts.parts]
    groups = groups_of_parts(parts, settings)
    shares = [
        deal(order, parts, group, owner_of_part, world.size, particles.box_size, settings, whole=device == CPU)
        for group in groups
    ]
    n_mine = sum(len(block) for share in shares for block in share[world.rank].blocks)
    stopwatch = stopwatch or Stopwatch(device)
    done = 0

    def advance(before: int, images_done: int) -> None:
        progress(round((before + images_done) / n_mine * len(order)), len(order))

    result: dict[Part, Statistics] = {}
    for place, (group, dealt) in enumerate(zip(groups, shares, strict=True), 1):
        mine = dealt[world.rank]
        of_group = checkpoint if len(groups) == 1 else checkpoint.followed_by(f"{checkpoint.name}-group{place}")
        finished = of_group.followed_by(f"{of_group.name}-done")
        state = finished.load() if len(groups) > 1 else None
        n_owned = sum(owner_of_part[number] == world.rank for number in np.flatnonzero(group))
        if all(world.gather(state is not None or not n_owned)) and len(groups) > 1:
            result |= restored_statistics(state) if state else {}
        else:
            filled = _filled(
                particles, images, parts, settings, mine, device, partial(advance, done), say, stopwatch, of_group
            )
            with stopwatch.waiting("finish"):
                found = _owned(filled, dealt, parts, group, owner_of_part, settings, world)
            if len(groups) > 1 and found:
                finished.offer(partial(saved_statistics, found))
            result |= found
        done += sum(map(len, mine.blocks))
    return result


def _filled(
    particles: Particles,
    images: Images,
    parts: PartWeights,
    settings: AccumulationSettings,
    share: Share,
    device: torch.device,
    advance: Callable[[int], None],
    say: Callable[[str], None],
    stopwatch: Stopwatch,
    checkpoint: Checkpoint,
) -> dict[GridId, FilledGrid]:
    """This rank's grids, full."""
    if device == CPU:
        grids = {grid: empty_grid(grid.kind, settings) for grid in sorted(share.grids)}
        fill_grids(grids, particles, images, share.blocks, parts, settings, advance, stopwatch, checkpoint)
        return dict(grids)
    from emsplat.statistics.accumulate_gpu import filled_on_device  # only where there is a card is Triton, too

    rows = np.concatenate([np.empty(0, dtype=np.int64), *share.blocks])
    wanted = sorted(share.grids)
    return dict(filled_on_device(wanted, particles, images, rows, parts, settings, device, advance, say, stopwatch))


def _owned(
    filled: dict[GridId, FilledGrid],
    shares: Sequence[Share],
    parts: PartWeights,
    group: NDArray[np.bool_],
    owners: Sequence[int],
    settings: AccumulationSettings,
    world: World,
) -> dict[Part, Statistics]:
    """The statistics of a group's parts that this rank owns; takes the grids away."""
    _give_to_owners(filled, grids_of(parts, group), shares, owners, settings, world)
    result: dict[Part, Statistics] = {}
    for number in np.flatnonzero(group).tolist():  # one by one: their transforms need room of their own
        if owners[number] == world.rank:
            pair = filled.pop(GridId(number, Kind.B), None), filled.pop(GridId(number, Kind.T), None)
            result[parts.parts[number]] = statistics_of(*pair, settings, parts, number)
            del pair
    return result


def _give_to_owners(
    filled: dict[GridId, FilledGrid],
    grids: Sequence[GridId],
    shares: Sequence[Share],
    owners: Sequence[int],
    settings: AccumulationSettings,
    world: World,
) -> None:
    """Sum grids on their owners, in place; this rank has those that it owns, then.

    What one rank alone has filled is added to nothing, which changes no bit.
    """
    with_grid = {
        grid: tuple(rank for rank, s in enumerate(shares) if rank == owners[grid.number] or grid in s.grids)
        for grid in grids
    }
    rank_groups = {ranks: world.form(ranks) for ranks in sorted(set(with_grid.values()))}
    for grid, ranks in with_grid.items():
        owner = owners[grid.number]
        if world.rank not in ranks:
            filled.pop(grid, None)
            continue
        filled[grid] = filled.get(grid) or empty_grid(grid.kind, settings)
        world.sum_to(filled[grid].values, owner, rank_groups[ranks])
        if owner != world.rank:
            del filled[grid]
