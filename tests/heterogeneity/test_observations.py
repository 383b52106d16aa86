"""The order in which images are observed: the images of a particle side by side, in blocks that divide none."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.heterogeneity.observations import blocks_of_particles, side_by_side


def test_images_of_a_particle_are_neighbours_in_the_order_of_their_first() -> None:
    particle = np.array([5, 2, 5, 9, 2, 2, 5])
    rows = np.array([6, 1, 3, 0, 5, 4])
    np.testing.assert_array_equal(side_by_side(rows, particle), [6, 0, 1, 5, 4, 3])


def test_single_images_keep_their_order() -> None:
    rows = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(side_by_side(rows, np.arange(50)), rows)


@pytest.mark.parametrize("sizes", [[1] * 10, [3, 3, 3], [4], [5, 1, 9, 2, 2, 1], [2, 9], [1], []])
def test_blocks_hold_whole_particles_and_all_of_them(sizes: list[int]) -> None:
    particle = np.repeat(np.arange(len(sizes)), sizes)
    blocks = blocks_of_particles(particle, 4)
    assert [i for block in blocks for i in range(len(particle))[block]] == list(range(len(particle)))
    for block in blocks:
        inside = particle[block]
        assert len(inside) <= 4 or len(set(inside)) == 1
        assert not set(inside) & set(np.delete(particle, np.arange(len(particle))[block]))
