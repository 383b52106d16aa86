"""Both stages on images whose poses are known: the right map from random poses, and none where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import blobs
from emsplat.abinitio import full, growing, halves, imitation, refinement, volume
from emsplat.abinitio.alignment import moved
from emsplat.abinitio.full import FullSettings
from emsplat.abinitio.halves import Agreement, Search, Start
from emsplat.abinitio.polar import PolarGrid, PolarImages
from emsplat.abinitio.stochastic import StageSettings, StochasticSettings
from emsplat.abinitio.verdict import judged
from emsplat.models.gaussians import Gaussians
from emsplat.runtime.reporting import Reporter
from emsplat.symmetry import symmetry_operators

GRID = PolarGrid.of(6, 0.7)
N_IMAGES = 240  # of each half


def settings(signal: np.ndarray) -> Search:
    stage = StageSettings(blobs.BOX, 0.7, signal, np.eye(3)[None], max_shift=3.0, shift_sigma=1.5)
    coarse = StageSettings(blobs.BOX, 0.7, signal[:5], np.eye(3)[None], max_shift=3.0, shift_sigma=1.5)
    return Search(
        coarse,
        stage,
        StochasticSettings(96, 18, 1.0, batch=80, iterations=50),
        FullSettings(5, 96, 18, 384, 36, 1.0, 0.5, fewest_rounds=2, most_rounds=6),
    )


def searched(images: tuple[PolarImages, PolarImages], signal: np.ndarray) -> tuple[tuple[Start, Start], Agreement]:
    search = settings(signal)
    first, second = (halves.start(part, search, np.random.default_rng(i)) for i, part in enumerate(images))
    return (first, second), halves.compare(images, (first, second), search, np.random.default_rng(2))


@pytest.fixture(scope="module")
def signal() -> np.ndarray:
    return blobs.signal_power(GRID, np.random.default_rng(0))


def test_independent_halves_find_the_map_and_the_verdict_says_so(signal: np.ndarray) -> None:
    rng = np.random.default_rng(8)
    rotations = Rotation.random(2 * N_IMAGES, random_state=rng).as_matrix()
    centres = rng.normal(size=(2 * N_IMAGES, 2))
    weight = 400 / (2 * np.pi * GRID.radii * signal).sum()  # of 200 nats an image, most of them in the first ring
    images = blobs.images_of(GRID, rotations, centres, weight, rng)
    parts = (images.select(np.arange(N_IMAGES)), images.select(np.arange(N_IMAGES, 2 * N_IMAGES)))
    starts, agreement = searched(parts, signal)
    verdict = judged(starts, agreement, None)
    assert verdict.status == "converged", verdict.text()
    # In the first half's frame all poses differ from the true ones by one rotation.
    posed = agreement.alignment.poses(
        starts[1].found.rotations, starts[1].found.centres, blobs.BOX / len(starts[0].map)
    )
    found = np.concatenate([starts[0].found.rotations, posed[0]])
    errors = min(
        np.median(imitation.distances_in_degrees(hand, rotations @ frame, np.eye(3)[None]))
        for hand in (found, np.diag([1, 1, -1.0]) @ found @ np.diag([1, 1, -1.0]))
        for frame in np.swapaxes(rotations[:40], 1, 2) @ hand[:40]
    )
    assert errors < 15


def test_one_image_repeated_does_not_converge(signal: np.ndarray) -> None:
    rng = np.random.default_rng(11)
    weight = 400 / (2 * np.pi * GRID.radii * signal).sum()
    one = blobs.images_of(GRID, np.eye(3)[None], np.zeros((1, 2)), weight, rng)
    starts, agreement = searched((one.select(np.zeros(100, int)), one.select(np.zeros(100, int))), signal)
    verdict = judged(starts, agreement, None)
    assert verdict.status == "failed", verdict.text()


def test_noise_alone_fails(signal: np.ndarray) -> None:
    rng = np.random.default_rng(9)
    shape = (2 * N_IMAGES, GRID.n_rings, GRID.n_angles)
    weight = 400 / (2 * np.pi * GRID.radii * signal).sum()
    amplitude = np.sqrt(weight * GRID.n_angles / (2 * np.pi * GRID.radii))[:, None]
    noise = (amplitude * (rng.normal(size=shape) + 1j * rng.normal(size=shape))).astype(np.complex64)
    images = PolarImages(GRID, noise, np.full((2 * N_IMAGES, GRID.n_rings), weight, np.float32))
    parts = (images.select(np.arange(N_IMAGES)), images.select(np.arange(N_IMAGES, 2 * N_IMAGES)))
    # Told of a signal that is not there, the search fits the noise; the other half shows that it did.
    starts, agreement = searched(parts, signal)
    verdict = judged(starts, agreement, None)
    assert verdict.status == "failed", verdict.text()


def test_pruning_changes_neither_the_likelihood_nor_the_sums(
    signal: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(12)
    weight = 60 / (2 * np.pi * GRID.radii * signal).sum()  # posteriors over several directions
    images = blobs.images_of(GRID, Rotation.random(100, random_state=rng).as_matrix(), np.zeros((100, 2)), weight, rng)
    map_, search = blobs.map_of(volume.map_box(GRID)), settings(signal)
    found = []
    monkeypatch.setattr(full, "_FLAT", 1.0)
    for kept_mass in (0.999, 2.0):
        monkeypatch.setattr(full, "_KEPT_MASS", kept_mass)
        sums = volume.SliceSums.empty(len(map_))
        searched = full.round_of(
            images, map_, np.zeros((100, 2)), search.fine, search.full, np.random.default_rng(1), sums
        )
        found.append((searched.evidence.mean(), sums.back_projection))
    assert found[0][0] == pytest.approx(found[1][0], abs=0.1)
    assert np.linalg.norm(found[0][1] - found[1][1]) < 0.05 * np.linalg.norm(found[1][1])


def test_images_with_flat_posteriors_stay_on_the_coarse_grid(
    signal: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(13)
    weight = 2 / (2 * np.pi * GRID.radii * signal).sum()  # a nat an image
    images = blobs.images_of(GRID, Rotation.random(100, random_state=rng).as_matrix(), np.zeros((100, 2)), weight, rng)
    map_, search = blobs.map_of(volume.map_box(GRID)), settings(signal)
    found, sums = [], []
    for flat in (0.6, 1.0):
        monkeypatch.setattr(full, "_FLAT", flat)
        sums.append(volume.SliceSums.empty(len(map_)))
        generator = np.random.default_rng(1)
        found.append(full.round_of(images, map_, np.zeros((100, 2)), search.fine, search.full, generator, sums[-1]))
    assert found[0].flat.mean() > 0.9 and not found[1].flat.any()
    assert found[0].evidence.mean() == pytest.approx(found[1].evidence.mean(), abs=0.2)
    # On the rings of the coarse grid, they add to the map what they would add from the fine grid.
    coarse, fine = (volume.solve(s, signal, 1.0) for s in sums)
    inner = search.full.coarse_rings - 1
    powers = [volume.shell_powers(v, inner) for v in (coarse, fine, coarse - fine)]
    assert (powers[2] < 0.2 * np.sqrt(powers[0] * powers[1])).all()
    assert volume.shell_powers(coarse, GRID.n_rings)[-1] < 0.01 * powers[0].max()


def test_a_search_on_the_right_map_moves_the_images_that_are_wrong_and_no_others(signal: np.ndarray) -> None:
    rng = np.random.default_rng(10)
    rotations = Rotation.random(150, random_state=rng).as_matrix()
    weight = 400 / (2 * np.pi * GRID.radii * signal).sum()
    images = blobs.images_of(GRID, rotations, np.zeros((150, 2)), weight, rng)
    map_ = blobs.map_of(volume.map_box(GRID))
    wrong = rotations.copy()
    wrong[:50] = Rotation.random(50, random_state=rng).as_matrix()
    search = settings(signal)
    moved, found = refinement.search_again(images, map_, wrong, np.zeros((150, 2)), search.fine, search.full, rng)
    assert moved[:50].mean() > 0.9 and moved[50:].mean() < 0.05
    assert np.median(imitation.distances_in_degrees(found.rotations[:50], rotations[:50], np.eye(3)[None])) < 10


def test_a_viewer_is_shown_the_map_as_it_grows(signal: np.ndarray) -> None:
    rng = np.random.default_rng(13)
    weight = 400 / (2 * np.pi * GRID.radii * signal).sum()
    images = blobs.images_of(GRID, Rotation.random(80, random_state=rng).as_matrix(), np.zeros((80, 2)), weight, rng)
    search, reporter = settings(signal), Reporter()
    search = replace(search, stochastic=replace(search.stochastic, iterations=4))
    shown: list[tuple[int, Gaussians]] = []
    reporter.watcher = lambda half, model, pixel: shown.append((half, model.gaussians(pixel)))
    maps: list[np.ndarray] = []

    def show(map_: np.ndarray) -> None:
        maps.append(map_)
        growing.show(reporter, 2, map_, 100.0)

    found = halves.start(images, search, rng, show=show)
    assert len(shown) == 4 + len(found.second.evidence) and not reporter.warnings
    half, last = shown[-1]
    # On the grid of a map whose voxels span a box of 100 Å: mass and middle are those of the densest voxels.
    voxel, edge = 100 / len(maps[-1]), len(maps[-1])
    densest = np.sort(maps[-1].ravel())[-len(last) :].clip(0)
    assert half == 2 and float(last.masses().sum()) == pytest.approx(densest.sum() * voxel**3, rel=1e-3)
    place = np.array(np.unravel_index(maps[-1].argmax(), maps[-1].shape))[::-1] - edge // 2
    heaviest = last.centres[last.masses().argmax()].numpy()
    assert heaviest == pytest.approx(place * voxel, abs=1e-3)
    growing.show(Reporter(), 1, maps[-1], 100.0)  # nobody looks


@pytest.mark.parametrize("weighted", [False, True])
def test_a_start_that_begins_without_the_symmetry_ends_with_it(
    weighted: bool, signal: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halves, "_SYMMETRIC", -1.0)  # these axes are taken, although the particle has none
    rng, symmetry = np.random.default_rng(6), symmetry_operators("C2")
    rotations = Rotation.random(120, random_state=rng).as_matrix()
    images = blobs.images_of(GRID, rotations, np.zeros((120, 2)), 400 / (2 * np.pi * GRID.radii * signal).sum(), rng)
    free = replace(settings(signal), stochastic=StochasticSettings(96, 18, 1.0, batch=40, iterations=10))
    coarse, fine = (replace(stage, symmetry=symmetry) for stage in (free.coarse, free.fine))
    search = replace(free, coarse=coarse, fine=fine, free=free)
    found = halves.start(images, search.weighted() if weighted else search, rng)
    assert found.map.ndim == (4 if weighted else 3)
    map_ = found.map.reshape(found.map.shape[-3:])
    assert np.corrcoef(map_.ravel(), moved(map_, symmetry[1], np.zeros(3)).ravel())[0, 1] > 0.98
