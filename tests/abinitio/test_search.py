"""The E-step and its adjoint against a float64 reference that enumerates all poses one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import blobs
from emsplat.abinitio import grids, search, volume
from emsplat.abinitio.polar import PolarGrid, PolarImages
from emsplat.abinitio.softmax import posterior

GRID = PolarGrid.of(7, 0.8)
N_TURNS = 10


@pytest.fixture
def images() -> PolarImages:
    rng = np.random.default_rng(1)
    shape = (11, GRID.n_rings, GRID.n_angles)
    signal = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    return PolarImages(GRID, signal, rng.uniform(0.01, 0.02, (11, GRID.n_rings)).astype(np.float32))


def enumerated(
    images: PolarImages, frames: np.ndarray, centres: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(ψ, d, T, n) overlaps and (d, n) penalties: every pose's slice is taken at its own points, in float64."""
    grid, per_ring = images.grid, np.pi * images.grid.radii / images.grid.n_angles
    overlaps = np.empty((N_TURNS, len(frames), len(offsets), len(images)))
    for k, psi in enumerate(grids.turns(N_TURNS)):
        slices = blobs.slices_at(grid, grids.turned(frames, np.full(len(frames), psi)))
        for t, offset in enumerate(offsets):
            phases = np.exp(2j * np.pi * np.einsum("rqc,nc->nrq", grid.points, centres + offset) / blobs.BOX)
            products = np.einsum("drq,nrq,r->dn", slices.conj(), images.signal * phases, per_ring)
            overlaps[k, :, t] = 2 * products.real
    power = (np.abs(blobs.slices_at(grid, frames)) ** 2).mean(axis=2) * 2 * np.pi * grid.radii
    return overlaps, 0.5 * power @ images.power.T.astype(np.float64)


def exact_slices(frames: np.ndarray) -> search.Slices:
    return search.slices_of(blobs.slices_at(GRID, frames).astype(np.complex64), GRID)


def test_scores_and_posteriors_are_those_of_every_pose_taken_by_itself(images: PolarImages) -> None:
    rng = np.random.default_rng(2)
    frames = grids.frames(grids.directions(9, grids.random_turn(rng), np.eye(3)[None]))
    centres, offsets = rng.normal(size=(11, 2)), grids.shift_grid(2, 0.8)
    log_prior = rng.normal(size=9).astype(np.float32)
    overlaps, penalty = enumerated(images, frames, centres, offsets)
    moved = search.shifted(images, centres, offsets, blobs.BOX)
    slices = exact_slices(frames)
    scores = search.scores_of(slices, moved, search.turn_matrix(GRID.n_orders, N_TURNS))
    assert np.abs(scores.numpy() - overlaps).max() < 2e-5 * np.abs(overlaps).max()
    assert search.penalty_of(slices, moved) == pytest.approx(penalty, rel=1e-4)

    for beta in (1.0, 0.3):
        total = overlaps - penalty[None, :, None] + log_prior[:, None]
        p = np.exp(beta * (total - total.max(axis=(0, 1, 2))))
        p /= p.sum(axis=(0, 1, 2))
        filled = scores.clone()
        found = posterior(filled.numpy(), search.penalty_of(slices, moved), log_prior, beta)
        assert np.abs(filled.numpy() / found.total - p).max() < 2e-3
        assert found.of_direction == pytest.approx(p.sum(axis=(0, 2)), abs=2e-3)
        assert found.of_shift == pytest.approx(p.sum(axis=(0, 1)), abs=2e-3)
        evidence = np.log(np.exp(total - total.max(axis=(0, 1, 2))).mean(axis=(0, 1, 2))) + total.max(axis=(0, 1, 2))
        assert found.evidence == pytest.approx(evidence, abs=0.02)
        assert (found.best == total.reshape(-1, 11).argmax(axis=0)).all()


def test_the_m_step_is_the_adjoint_of_the_scores(images: PolarImages) -> None:
    rng = np.random.default_rng(3)
    frames = grids.frames(grids.directions(6, grids.random_turn(rng), np.eye(3)[None]))
    turn = search.turn_matrix(GRID.n_orders, N_TURNS)
    moved = search.shifted(images, np.zeros((11, 2)), grids.shift_grid(1, 1.0), blobs.BOX)
    scores = search.scores_of(exact_slices(frames), moved, turn)
    weights = torch.from_numpy(rng.random(tuple(scores.shape)).astype(np.float32))
    back = search.samples_of(search.m_step(weights, moved, np.ones(11, np.float32), turn, GRID), GRID)
    per_ring = 2 * np.pi * GRID.radii / GRID.n_angles
    overlap = np.einsum("drq,drq,r->", blobs.slices_at(GRID, frames).conj(), back, per_ring).real
    assert overlap == pytest.approx(float((scores * weights).sum()), rel=1e-4)


def test_fewer_rings_are_the_first_ones(images: PolarImages) -> None:
    coarse = images.coarser(4)
    assert coarse.grid.n_rings == 4 and coarse.grid.n_angles == GRID.n_angles
    assert coarse.grid.n_orders < GRID.n_orders
    frames = grids.frames(grids.directions(5, np.eye(3), np.eye(3)[None]))
    slices = search.slices_of(blobs.slices_at(coarse.grid, frames).astype(np.complex64), coarse.grid)
    moved = search.shifted(coarse, np.zeros((11, 2)), np.zeros((1, 2)), blobs.BOX)
    scores = search.scores_of(slices, moved, search.turn_matrix(coarse.grid.n_orders, N_TURNS)).numpy()
    overlaps, _ = enumerated(coarse, frames, np.zeros((11, 2)), np.zeros((1, 2)))
    # The orders that are left out hold what the particle of the grid's diameter hardly has.
    assert np.linalg.norm(scores - overlaps) < 0.02 * np.linalg.norm(overlaps)


def test_slices_of_a_map_are_its_transform() -> None:
    rotations = Rotation.random(8, random_state=np.random.default_rng(4)).as_matrix()
    found = volume.slices(blobs.map_of(volume.map_box(GRID)), GRID, rotations)
    true = blobs.slices_at(GRID, rotations)
    assert np.linalg.norm(found - true) < 0.02 * np.linalg.norm(true)


def test_a_map_is_solved_from_its_own_slices() -> None:
    rng = np.random.default_rng(5)
    rotations = Rotation.random(600, random_state=rng).as_matrix()
    sums = volume.SliceSums.empty(volume.map_box(GRID))
    weight = np.full((600, GRID.n_rings), 2.0, np.float32)
    volume.insert(
        sums, (2.0 * blobs.slices_at(GRID, rotations)).astype(np.complex64), weight, GRID, rotations, np.eye(3)[None]
    )
    signal = blobs.signal_power(GRID, rng)
    solved = volume.solve(sums, signal, 0.9, scale=1e3)
    new = Rotation.random(20, random_state=rng).as_matrix()
    found, true = volume.slices(solved, GRID, new), blobs.slices_at(GRID, new)
    assert (found * true.conj()).sum().real > 0.99 * np.linalg.norm(found) * np.linalg.norm(true)
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(true), rel=0.15)  # the prior and the sphere
