from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import blobs
from emsplat.abinitio import alignment, modes, symmetric, volume
from emsplat.abinitio.polar import PolarGrid
from emsplat.symmetry import symmetry_operators

GRID = PolarGrid.of(7, 0.8)
N = volume.map_box(GRID)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_map_turned_shifted_and_mirrored_is_brought_back_with_its_poses(mirrored: bool) -> None:
    rng = np.random.default_rng(6)
    first = blobs.map_of(N)
    turn = Rotation.random(random_state=rng).as_matrix()
    second = alignment.moved(first, turn, np.array([0.8, -0.5, 0.3]), mirrored)
    found = alignment.align(first, second, GRID.n_rings)
    assert found.mirrored == mirrored
    assert alignment.shell_correlations(first, found.applied(second), GRID.n_rings).min() > 0.9
    # A pose in the second map and the same pose in the first show the same image.
    rotations = Rotation.random(10, random_state=rng).as_matrix()
    in_first, centres = found.poses(rotations, np.zeros((10, 2)), 1.0)
    seen = volume.slices(second, GRID, rotations)
    phases = np.exp(-2j * np.pi * np.einsum("rqc,nc->nrq", GRID.points, centres) / N)
    expected = volume.slices(first, GRID, in_first) * phases
    overlap = (seen * expected.conj()).sum(axis=(1, 2)).real
    assert (overlap > 0.97 * np.linalg.norm(seen, axis=(1, 2)) * np.linalg.norm(expected, axis=(1, 2))).all()


@pytest.mark.parametrize("group", ["C4", "D2", "O"])
def test_an_alignment_is_put_onto_the_axes_of_an_imposed_symmetry(group: str) -> None:
    symmetry = symmetry_operators(group)
    rough = Rotation.from_euler("xyz", [3, -2, 4], degrees=True).as_matrix() @ symmetry[-1]
    found = symmetric.onto_axes(alignment.Alignment(rough, np.array([1.0, 2.0, 3.0]), False, 1.0), symmetry)
    for operator in symmetry:
        carried = found.rotation @ operator @ found.rotation.T
        assert min(np.abs(carried - other).max() for other in symmetry) < 1e-6
    assert found.shift == pytest.approx([0, 0, 3.0] if group == "C4" else [0, 0, 0], abs=1e-9)


def test_turns_gather_on_mates_of_a_symmetry_and_nowhere_by_chance() -> None:
    rng = np.random.default_rng(7)
    mates = symmetry_operators("D2")
    second = Rotation.random(800, random_state=rng).as_matrix()
    jitter = Rotation.from_rotvec(rng.normal(size=(800, 3)) * np.deg2rad(2)).as_matrix()
    first = jitter @ second @ mates[rng.integers(4, size=800)].transpose(0, 2, 1)
    found = modes.modes_of(first, second, np.eye(3)[None])
    assert found.number == 4 and found.total > 0.97
    assert modes.modes_of(first, second, mates).number == 1
    scattered = modes.modes_of(Rotation.random(800, random_state=rng).as_matrix(), second, np.eye(3)[None])
    assert scattered.total < 0.1
    # About an axis alone, turns are no mates.
    about_z = Rotation.from_rotvec(np.outer(rng.uniform(0, 2 * np.pi, 800), [0, 0, 1])).as_matrix()
    round_ = modes.modes_of(jitter @ second @ about_z, second, np.eye(3)[None])
    assert round_.total > 0.9 and round_.is_circle and round_.even == 0
    assert not found.is_circle and found.even > 0.9


@pytest.mark.parametrize(("group", "order"), [("C1", 1), ("C3", 3)])
def test_a_map_shows_its_own_symmetry(group: str, order: int) -> None:
    first = blobs.map_of(N)
    mates = [alignment.moved(first, operator, np.zeros(3)) for operator in symmetry_operators(group)]
    found = alignment.own_rotations(np.mean(mates, axis=0), GRID.n_rings)
    assert len(found) == order
    for operator in symmetry_operators(group):
        assert min(np.abs(operator - other).max() for other in found) < 0.05
