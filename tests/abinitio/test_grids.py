from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from emsplat.abinitio import grids
from emsplat.conventions import rotation_matrices
from emsplat.symmetry import symmetry_operators


@pytest.mark.parametrize("group", ["C1", "C3", "D2", "O"])
def test_directions_of_the_asymmetric_unit_and_their_mates_cover_the_sphere_evenly(group: str) -> None:
    symmetry = symmetry_operators(group)
    points = grids.directions(60, grids.random_turn(np.random.default_rng(0)), symmetry)
    assert len(points) == pytest.approx(60, abs=12)
    everywhere = (points @ symmetry.transpose(0, 2, 1)).reshape(-1, 3)
    step = np.sqrt(4 * np.pi / len(everywhere))
    probes = np.random.default_rng(1).normal(size=(2000, 3))
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    distances = cKDTree(everywhere).query(probes)[0]
    assert distances.max() < 1.3 * step


def test_frames_and_turns_are_relions_matrices() -> None:
    points = grids.directions(20, np.eye(3), np.eye(3)[None])
    rot, tilt = np.rad2deg(np.arctan2(points[:, 1], points[:, 0])), np.rad2deg(np.arccos(points[:, 2]))
    psi = np.linspace(-170, 160, len(points))
    expected = rotation_matrices(np.stack([rot, tilt, psi], axis=1))
    assert grids.turned(grids.frames(points), np.deg2rad(psi)) == pytest.approx(expected, abs=1e-12)


def test_every_fine_direction_is_in_the_family_of_its_nearest_coarse_one() -> None:
    coarse, fine = (grids.directions(n, np.eye(3), np.eye(3)[None]) for n in (30, 130))
    families = grids.families(fine, coarse)
    assert sorted(np.concatenate(families).tolist()) == list(range(len(fine)))
    for parent, family in enumerate(families):
        assert ((fine[family] @ coarse.T).argmax(axis=1) == parent).all()


def test_random_turns_are_rotations() -> None:
    turn = grids.random_turn(np.random.default_rng(3))
    assert Rotation.from_matrix(turn).as_matrix() == pytest.approx(turn)
