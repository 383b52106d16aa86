"""The work of an accumulation is dealt out to ranks once and evenly, to the same sums where that is promised."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.particles.parts import Kind, PartWeights
from emsplat.runtime.ranks import World
from emsplat.runtime.threads import threads
from emsplat.statistics.accumulate import AccumulationSettings, GridId, empty_grid, fill_grids
from emsplat.statistics.schedule import Share, deal, gives_whole_grids, ranks_told_apart
from phantom import ImagesInMemory, imagined_particles, numbered_parts


def dealt(order: np.ndarray, parts: PartWeights, owners: list[int], size: int) -> list[Share]:
    """Shares of ranks, of images of 128² in blocks of the usual size."""
    settings = AccumulationSettings(128, 128, np.ones((1, 65)), np.eye(3)[None])
    everything = np.ones(len(parts.parts), dtype=bool)
    return deal(order, parts, everything, owners, size, 128, settings, gives_whole_grids(len(parts.parts), size))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_grid_is_filled_by_one_rank(size: int) -> None:
    rng = np.random.default_rng(size)
    order, subset = rng.permutation(4000), (rng.integers(2, size=4000) * 2 + (rng.random(4000) < 0.2)).astype(np.int8)
    parts, owners = numbered_parts(subset), [World(size=size).owner(1 + number // 2) for number in range(4)]
    shares = dealt(order, parts, owners, size)
    assert sorted(grid for share in shares for grid in share.grids) == [(s, kind) for s in range(4) for kind in (0, 1)]
    read = np.zeros(4000, dtype=int)
    work = []
    [alone] = [share.blocks for share in dealt(order, parts, [0] * 4, 1)]
    for share in shares:
        mine = {number for number, _ in share.grids}
        expected = [block[np.isin(subset[block], list(mine))] for block in alone]
        assert [block.tolist() for block in share.blocks] == [block.tolist() for block in expected]
        rows = np.concatenate(share.blocks)
        with_b = np.isin(subset[rows], [number for number, kind in share.grids if kind == 0])
        read[rows[with_b]] += 1
        work.append(np.sum(with_b) + np.sum(np.isin(subset[rows], [n for n, kind in share.grids if kind == 1])))
    assert (read == 1).all()
    assert max(work) < 1.3 * 2 * 4000 / size
    if size <= 2:  # the halves' owners have all of theirs
        assert all(owners[number] == rank for rank, share in enumerate(shares) for number, _ in share.grids)


@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_more_ranks_share_the_images(size: int) -> None:
    rng = np.random.default_rng(size)
    order, subset = rng.permutation(1001), rng.integers(4, size=1001).astype(np.int8)
    owners = [World(size=size).owner(1 + number // 2) for number in range(4)]
    shares = dealt(order, numbered_parts(subset), owners, size)
    of_ranks = [np.concatenate(share.blocks) for share in shares]
    assert sorted(np.concatenate(of_ranks)) == list(range(1001))
    assert max(map(len, of_ranks)) < 1.25 * 1001 / size + 1
    half = subset // 2
    if size % 2 == 0:  # no half is in two groups of ranks
        assert all(len(np.unique(half[rows])) == 1 for rows in of_ranks)
    for rank, (rows, share) in enumerate(zip(of_ranks, shares, strict=True)):
        at = np.argsort(order)[rows]  # in the order of the disk, half by half
        assert np.sum(np.diff(at) < 0) <= 1
        held = {number // 2 for number, _ in share.grids}
        assert held == {*half[rows].tolist()} | {n // 2 for n in range(4) if owners[n] == rank}


@pytest.mark.parametrize("size", [1, 3, 4, 7, 16, 40])
@pytest.mark.parametrize("whole", [True, False])
def test_every_image_is_added_once_to_each_of_its_parts(size: int, whole: bool) -> None:
    """Of thirty soft parts of 1,500 images, by whole grids and by stretches, some parts at a time; evenly."""
    rng = np.random.default_rng(size)
    weights = rng.dirichlet(np.full(15, 0.1), 1500)
    parts = numbered_parts(rng.integers(-1, 2, 1500)).with_states(weights, threshold=0.02)
    order = rng.permutation(1500)
    group = rng.random(30) < 0.8
    owners = rng.integers(size, size=30).tolist()
    settings = AccumulationSettings(128, 128, np.ones((1, 65)), np.eye(3)[None], block_bytes=100 * 4 * 128**2)
    shares = deal(order, parts, group, owners, size, 128, settings, whole)
    everything = parts.entries(np.arange(1500), Kind.T, group)
    of_rank = []
    added = {kind: np.zeros((1500, 30), dtype=int) for kind in Kind}
    for share in shares:
        of_rank.append(0.0)
        for kind in Kind:
            mine = np.isin(np.arange(30), [number for number, k in share.grids if k == kind])
            for block in share.blocks:
                entries = parts.entries(block, kind, mine)
                np.add.at(added[kind], (entries.rows[entries.places], entries.numbers), 1)
                of_rank[-1] += len(entries.numbers)
    expected = np.zeros((1500, 30), dtype=int)
    expected[everything.rows[everything.places], everything.numbers] = 1
    for kind in Kind:
        np.testing.assert_array_equal(added[kind], expected)
    if whole:
        filled = [grid for share in shares for grid in share.grids]
        assert len(filled) == len(set(filled)) == 2 * group.sum()
    if size <= 16:
        assert max(of_rank) < 1.35 * sum(of_rank) / size


@pytest.mark.parametrize("box_size", [16, 32, 33])
def test_shares_of_ranks_fill_their_grids_to_the_bits_of_one_process(box_size: int) -> None:
    """Also where a rank reads a single image of a block, whose transform some machines compute differently."""
    rng = np.random.default_rng(box_size)
    n, settings = (
        120,
        AccumulationSettings(
            box_size, box_size, np.ones((1, box_size // 2 + 1)), np.eye(3)[None], block_bytes=15 * 4 * box_size**2
        ),
    )
    particles = imagined_particles(n, box_size)
    images = ImagesInMemory(rng.standard_normal((n, box_size, box_size), dtype=np.float32))
    parts = numbered_parts((rng.integers(2, size=n) * 2 + (rng.random(n) < 0.2)).astype(np.int8))
    everything, order = np.ones(4, dtype=bool), np.arange(n)

    def filled(size: int, n_threads: int) -> dict[GridId, NDArray]:
        shares = deal(order, parts, everything, [0, 0, size - 1, size - 1], size, box_size, settings, True)
        found: dict[GridId, NDArray] = {}
        single = 0
        with threads(n_threads):
            for share in shares:
                grids = {grid: empty_grid(grid.kind, settings) for grid in share.grids}
                fill_grids(grids, particles, images, share.blocks, parts, settings)
                found |= {grid: filled_grid.values for grid, filled_grid in grids.items()}
                with_b = np.isin(np.arange(4), [number for number, kind in share.grids if kind == Kind.B])
                single += sum(len(parts.entries(block, Kind.B, with_b).rows) == 1 for block in share.blocks)
        assert single > 0 or size < 4
        return found

    one = filled(1, 1)
    for size, n_threads in ((1, 2), (2, 1), (3, 1), (4, 1), (4, 2)):
        several = filled(size, n_threads)
        assert several.keys() == one.keys()
        for grid, values in one.items():
            np.testing.assert_array_equal(several[grid], values, f"{size} ranks: {grid}")


def test_up_to_four_ranks_resume_from_each_others_states() -> None:
    assert len({ranks_told_apart(size) for size in (1, 2, 3, 4)}) == 1
    assert len({ranks_told_apart(size) for size in (4, 5, 6, 8)}) == 4
