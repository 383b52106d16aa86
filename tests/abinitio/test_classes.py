"""Several classes: their posteriors beside an enumeration, how they form, and how they are matched."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import blobs
from emsplat.abinitio import full, grids, search, volume
from emsplat.abinitio.classes import Matching, labels_of, matched, of_class
from emsplat.abinitio.full import Found, FullSettings, shares_of
from emsplat.abinitio.halves import Search, Start, on_box, start
from emsplat.abinitio.polar import PolarGrid, PolarImages
from emsplat.abinitio.run_classes import _by_size
from emsplat.abinitio.stochastic import NOTHING, StageSettings, StochasticSettings, Trace, first_stage

GRID = PolarGrid.of(6, 0.7)
N = 60  # images of each kind


def other_map(box_size: int) -> np.ndarray:
    """(N, N, N) another particle of the same mass: three rods of blobs."""
    axis = (np.arange(box_size) - box_size // 2) * (blobs.BOX / box_size)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    rods = [np.exp(-0.5 * ((a / 7) ** 2 + ((b - 4) / 1.5) ** 2 + (c / 1.5) ** 2)) for a, b, c in ((x, y, z), (y, z, x))]
    volume_ = sum(rods) - 0.2 * np.exp(-0.5 * (x**2 + y**2 + z**2) / 16)
    return (volume_ * blobs.MASSES.sum() / volume_.sum()).astype(np.float32)


@pytest.fixture(scope="module")
def signal() -> np.ndarray:
    return blobs.signal_power(GRID, np.random.default_rng(0))


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    """(2, N, N, N)"""
    edge = volume.map_box(GRID)
    return np.stack([blobs.map_of(edge), other_map(edge)])


def images_of(map_: np.ndarray | None, weight: float, rng: np.random.Generator, n: int = N) -> PolarImages:
    """Images of a map, or of no particle."""
    rotations = Rotation.random(n, random_state=rng).as_matrix()
    shape = (n, GRID.n_rings, GRID.n_angles)
    clean = np.zeros(shape, np.complex64) if map_ is None else volume.slices(map_, GRID, rotations)
    amplitude = np.sqrt(weight * GRID.n_angles / (np.pi * GRID.radii))[:, None]
    noise = amplitude * (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)
    return PolarImages(GRID, (weight * clean + noise).astype(np.complex64), np.full(shape[:2], weight, np.float32))


def mixture(maps: np.ndarray, weight: float, rng: np.random.Generator, n: int = N) -> PolarImages:
    """Images of the first map, of the second, and of none."""
    parts = [images_of(map_, weight, rng, n) for map_ in (*maps, None)]
    return PolarImages(GRID, *(np.concatenate([getattr(part, name) for part in parts]) for name in ("signal", "power")))


def settings(signal: np.ndarray) -> Search:
    coarse, fine = (StageSettings(blobs.BOX, 0.7, signal[:r], np.eye(3)[None], 3.0, 1.5, 2) for r in (5, 6))
    return Search(
        coarse,
        fine,
        StochasticSettings(96, 18, 1.0, batch=120, iterations=50),
        FullSettings(5, 96, 18, 192, 24, 1.0, 0.5, fewest_rounds=2, most_rounds=6),
    )


@pytest.mark.parametrize("flat", [False, True])
def test_posteriors_of_classes_are_those_of_all_poses_of_all_maps(
    flat: bool, maps: np.ndarray, signal: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    weight = 60 / (2 * np.pi * GRID.radii * signal).sum()
    images, s = mixture(maps, weight, rng, 8), settings(signal)
    shares = np.array([0.5, 0.2, 0.3])
    monkeypatch.setattr(full, "_KEPT_MASS", 2.0)  # nothing is pruned
    monkeypatch.setattr(full, "_FLAT", -1.0 if flat else 2.0)
    monkeypatch.setattr(full, "_LITTLE", np.inf)
    sums = volume.SliceSums.like(maps)
    n = len(images)
    found = full.round_of(images, maps, np.zeros((n, 2)), s.fine, s.full, np.random.default_rng(2), sums, shares=shares)
    # The same by hand, one map after the other, on the same grid.
    grid = GRID.coarser(5) if flat else GRID
    number, n_turns, reach = (96, 18, 1) if flat else (192, 24, 2)
    turn = grids.random_turn(np.random.default_rng(2))
    frames = grids.frames(grids.directions(number, turn, np.eye(3)[None]))
    offsets = grids.shift_grid(reach, s.full.coarse_shift if flat else s.full.fine_shift)
    moved = search.shifted(images.coarser(grid.n_rings), np.zeros((n, 2)), offsets, blobs.BOX)
    evidence, tables = [], []
    for map_ in maps:
        slices = search.slices_of(volume.slices(map_, grid, frames), grid)
        scores = search.scores_of(slices, moved, search.turn_matrix(grid.n_orders, n_turns)).numpy().astype(float)
        scores -= search.penalty_of(slices, moved)[None, :, None]
        scores += full.shift_prior(offsets, s.fine.shift_sigma)[:, None]
        tables.append(scores)
        evidence.append(np.log(np.exp(scores - scores.max()).mean(axis=(0, 1, 2))) + scores.max())
    odds = np.concatenate([shares[:2, None] * np.exp(evidence), np.full((1, n), shares[2])])
    expected = odds / odds.sum(axis=0)
    assert pytest.approx(expected[:2], abs=2e-3) == found.classes.T
    assert found.junk == pytest.approx(expected[2], abs=2e-3)
    assert (labels_of(found) == expected.argmax(axis=0)).mean() > 0.95
    # What enters the sums of a class is its posterior times the images' power, on both sides of Fourier space.
    per_sample = np.pi * grid.radii / grid.n_angles
    for number, of_map in enumerate(sums.classes()):
        entered = (found.classes[:, number] @ images.power[:, : grid.n_rings] * per_sample).sum() * 2 * grid.n_angles
        assert of_map.weight.sum(dtype=np.float64) == pytest.approx(entered, rel=1e-3)


def test_two_particles_and_noise_are_told_apart_from_random_poses(maps: np.ndarray, signal: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    weight = 120 / (2 * np.pi * GRID.radii * signal).sum()  # of 60 nats an image
    images, s = mixture(maps, weight, rng, 200), settings(signal)
    centres = np.zeros((600, 2))
    coarse, trace = first_stage(images.coarser(5), centres, s.coarse, s.stochastic, np.random.default_rng(4))
    assert coarse.ndim == 4 and len(coarse) == 2
    assert trace.evidence[-1] > 5
    rounds = full.Rounds(on_box(coarse, volume.map_box(GRID)), centres)
    full.full_stage(images, rounds, s.fine, s.full, np.random.default_rng(5))
    assert rounds.found is not None and rounds.shares is not None
    table = np.zeros((3, 3), int)
    np.add.at(table, (np.repeat([0, 1, 2], 200), labels_of(rounds.found)), 1)
    assert table[2, 2] > 185, table  # images without a particle
    assert table[:2, 2].sum() < 8, table
    assert max(table[0, 0] + table[1, 1], table[0, 1] + table[1, 0]) > 370, table


def test_classes_are_matched_by_their_images(maps: np.ndarray, signal: np.ndarray) -> None:
    rng = np.random.default_rng(6)
    weight = 400 / (2 * np.pi * GRID.radii * signal).sum()
    images, s, n = mixture(maps, weight, rng, 40), settings(signal), 120
    starts = []
    for order in ([0, 1], [1, 0]):
        found = full.round_of(images, maps[order], np.zeros((n, 2)), s.fine, s.full, rng, shares=np.full(3, 1 / 3))
        assert shares_of(found) == pytest.approx(np.full(3, 1 / 3), abs=0.03)
        starts.append(Start(maps[order], maps[order], found, Trace(), Trace(power=[1.0]), [maps[order]]))
    matching = matched(images, (starts[0], starts[1]), s, rng)
    assert matching.partners.tolist() == [1, 0] and matching.is_good
    assert matching.criterion(0).status == "converged"
    one = of_class(starts[1], 1, np.arange(5), signal)
    np.testing.assert_array_equal(one.map, maps[0])
    assert len(one.found.top) == 5 and one.pictures[0].ndim == 3
    # Classes that share half of their images only are not the same class.
    poor = Matching(np.array([0, 1]), np.array([[20, 10, 0], [10, 20, 0], [0, 0, 5]]))
    assert not poor.is_good and poor.agreed(0) == pytest.approx(0.5)
    assert poor.criterion(0).status == "uncertain"
    assert labels_of(Found.empty(3, 2)).tolist() == [0, 0, 0]


def test_a_search_that_finds_nothing_still_knows_of_all_classes(signal: np.ndarray) -> None:
    images = images_of(None, 1e-3 / (2 * np.pi * GRID.radii * signal).sum(), np.random.default_rng(7), 40)
    found = start(images, settings(signal), np.random.default_rng(8)).found
    assert found.evidence.max() < NOTHING
    assert found.classes.shape == (40, 2)


def test_classes_with_too_few_images_in_a_half_come_last() -> None:
    sizes = {0: (100, 30), 1: (45, 50), 2: (70, 70), 3: (5, 90)}
    labels = np.concatenate([np.full(sum(size), number) for number, size in sizes.items()])
    halves = np.concatenate([np.repeat([1, 2], size) for size in sizes.values()]).astype(np.int8)
    assert _by_size(labels, halves, 4) == ([2, 1], [0, 3])
