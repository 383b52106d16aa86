"""The axes of a point group in a map that was found without it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from emsplat.abinitio.alignment import moved
from emsplat.abinitio.axes import frame_of, generators
from emsplat.symmetry import symmetry_operators

BOX, RINGS = 24, 9
GROUPS = ("C3", "D2", "O")


def blobs(symmetry: NDArray[np.float64], seed: int, n: int = 4) -> NDArray[np.float32]:
    """A map with this symmetry."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*3 * [np.arange(BOX) - BOX // 2], indexing="ij")
    at = np.stack([x, y, z], axis=-1)
    places = [operator @ place for place in rng.normal(0, 3.5, (n, 3)) for operator in symmetry]
    return np.sum([np.exp(-((at - place) ** 2).sum(axis=-1) / 4.5) for place in places], axis=0).astype(np.float32)


@pytest.mark.parametrize("group", [*GROUPS, "C7", "D7", "T", "I"])
def test_generators_make_the_whole_group(group: str) -> None:
    symmetry = symmetry_operators(group)
    words = [np.eye(3)]
    for word in words:
        for operator in generators(symmetry):
            if all(np.abs(operator @ word - other).max() > 1e-6 for other in words):
                words.append(operator @ word)
    assert len(words) == len(symmetry)
    assert all(min(np.abs(word - operator).max() for operator in symmetry) < 1e-6 for word in words)


@pytest.mark.parametrize("group", GROUPS)
def test_a_turned_noisy_map_off_centre_comes_to_the_axes(group: str) -> None:
    rng, symmetry = np.random.default_rng(3), symmetry_operators(group)
    true = blobs(symmetry, seed=1)
    turn, centre = Rotation.random(random_state=rng).as_matrix(), np.array([1.2, -0.8, 0.5])
    lying = moved(true, turn, centre)
    noisy = lying + rng.normal(0, 0.5 * lying.std(), lying.shape).astype(np.float32)
    frame = frame_of(noisy, symmetry, RINGS)
    for operator in generators(symmetry):
        there = frame.rotation @ operator @ frame.rotation.T
        angles = Rotation.from_matrix(there.T @ (turn @ symmetry @ turn.T)).magnitude()
        assert np.rad2deg(angles.min()) < 5
    result = frame.symmetrised(noisy, symmetry)
    for operator in symmetry:
        turned = moved(result, operator, np.zeros(3))
        assert np.corrcoef(result.ravel(), turned.ravel())[0, 1] > 0.99


def test_a_map_without_the_symmetry_does_not_have_its_axes() -> None:
    nothing, group = np.eye(3)[None], symmetry_operators("O")
    found = [frame_of(blobs(nothing, seed, n=24), group, RINGS).correlation for seed in range(3)]
    assert max(found) < 0.6 < frame_of(blobs(group, seed=0), group, RINGS).correlation, found
