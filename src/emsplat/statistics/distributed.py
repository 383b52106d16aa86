"""The accumulation over the images, with its work divided among the ranks of a job by `schedule`.

The filled grids of a part go to the rank that owns it, which is the rank that will fit it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from emsplat.particles.batches import Images
from emsplat.particles.parts import Kind, Part, PartWeights
from emsplat.particles.table import Particles
from emsplat.runtime.checkpoint import Checkpoint
from emsplat.runtime.context import Task
from emsplat.runtime.devices import CPU
from emsplat.runtime.ranks import World
from emsplat.runtime.stopwatch import Stopwatch
from emsplat.statistics.accumulate import (
    AccumulationSettings,
    FilledGrid,
    GridId,
    empty_grid,
    fill_grids,
    grids_of,
    groups_of_parts,
    rows_in_order,
    statistics_of,
)
from emsplat.statistics.schedule import Share, deal, gives_whole_grids
from emsplat.statistics.sufficient import Statistics, restored_statistics, saved_statistics


def accumulate_shared(
    particles: Particles,
    images: Images,
    parts: PartWeights,
    settings: AccumulationSettings,
    owners: Mapping[Part, int],
    task: Task | None = None,
    stopwatch: Stopwatch | None = None,
) -> Iterator[dict[Part, Statistics]]:
    """Stream over the images and accumulate the statistics of every part, together with the other ranks of a task.

    Args:
        parts: the parts of the N particles, the same on every rank.
        owners: the rank that is given the statistics of each of the parts.
        task: its progress is told the images done and to do, by this rank's share of them; its checkpoint keeps this
            rank's grids, see `fill_grids` (a graphics card has filled its grids before it would pay); its reporter is
            told what a graphics card has room for. All ranks have devices of one kind.
        stopwatch: of the task's device; told where the time goes.
    Yields:
        The statistics of the parts that this rank owns, group after group. Memory does not depend on N, nor, where the
        caller keeps little of each group, on the number of parts. The images are read once if the grids that a rank
        fills and owns fit into `settings.grid_bytes`, and otherwise once for each group of parts that fits; the
        statistics of a group are then kept in a state of their own, which goes with the checkpoint.
    """
    task = task or Task()
    world, order = task.world, rows_in_order(particles, parts)
    owner_of_part = [owners[part] for part in parts.parts]
    whole = task.device == CPU and gives_whole_grids(len(parts.parts), world.size)
    groups = groups_of_parts(parts, settings, owner_of_part if whole else None, world.size if whole else 1)
    box_size = particles.box_size
    shares = [deal(order, parts, group, owner_of_part, world.size, box_size, settings, whole) for group in groups]
    n_mine = sum(len(block) for share in shares for block in share[world.rank].blocks)
    stopwatch = stopwatch or Stopwatch(task.device)
    done = 0
    for group, dealt in zip(groups, shares, strict=True):
        mine = dealt[world.rank]

        def advance(images_done: int, before: int = done) -> None:
            task.progress(round((before + images_done) / n_mine * len(order)), len(order))

        pass_over = task if len(groups) == 1 else _of_group(task, group)
        finished = None if len(groups) == 1 else pass_over.checkpoint.piece("done")
        found = _finished(finished, parts, group, owner_of_part, world) if finished else None
        if found is None:
            filled: dict[GridId, FilledGrid]
            if task.device == CPU:
                grids = {grid: empty_grid(grid.kind, settings) for grid in sorted(mine.grids)}
                kept = pass_over.checkpoint
                fill_grids(grids, particles, images, mine.blocks, parts, settings, advance, stopwatch, kept)
                filled = dict(grids)
                del grids  # or they could not be freed one by one
            else:
                filled = _filled_on_card(particles, images, parts, settings, mine, pass_over, advance, stopwatch)
            with stopwatch.waiting("finish"):
                found = _owned(filled, dealt, parts, group, owner_of_part, settings, world)
            if finished and found:
                finished.offer(partial(saved_statistics, found))
        done += sum(map(len, mine.blocks))
        yield found
        del found  # before the grids of the next group are made


def _of_group(task: Task, group: NDArray[np.bool_]) -> Task:
    """The task of filling the grids of a group of parts, with a state of its own."""
    first, last = np.flatnonzero(group)[[0, -1]]
    return replace(task, checkpoint=task.checkpoint.piece(f"parts{first}to{last}"))


def _finished(
    checkpoint: Checkpoint, parts: PartWeights, group: NDArray[np.bool_], owners: Sequence[int], world: World
) -> dict[Part, Statistics] | None:
    """The statistics of a group that this rank owns, kept from a job that ended; None if any rank lacks its own."""
    mine = [parts.parts[number] for number in np.flatnonzero(group).tolist() if owners[number] == world.rank]
    state = checkpoint.load() if mine else None
    if not all(world.gather(state is not None or not mine)):
        return None
    return restored_statistics(state) if state else {}


def _filled_on_card(
    particles: Particles,
    images: Images,
    parts: PartWeights,
    settings: AccumulationSettings,
    share: Share,
    task: Task,
    advance: Callable[[int], None],
    stopwatch: Stopwatch,
) -> dict[GridId, FilledGrid]:
    """This rank's filled grids on its graphics card."""
    from emsplat.statistics.accumulate_gpu import filled_on_device  # Triton is only there where a card is

    rows = np.concatenate([np.empty(0, dtype=np.int64), *share.blocks])
    what = sorted(share.grids), particles, images, rows, parts, settings, task.device
    return dict(filled_on_device(*what, advance, task.reporter.line, stopwatch))


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
    """Sum grids on their owners, in place; afterwards this rank has the grids that it owns.

    A grid that only one rank has filled is added to nothing, so that none of its bits change.
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
