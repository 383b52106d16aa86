"""The order in which images are observed: the images of a particle side by side, in blocks that divide none."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.heterogeneity.observations import blocks_of_particles, shared_latents, side_by_side
from emsplat.particles.table import Particles


def test_images_of_a_particle_are_neighbours_in_the_order_of_their_first() -> None:
    particle = np.array([5, 2, 5, 9, 2, 2, 5])
    rows = np.array([6, 1, 3, 0, 5, 4])
    np.testing.assert_array_equal(side_by_side(rows, particle), [6, 0, 1, 5, 4, 3])


def table(particle: list[int], section: list[int], dose: list[float], tilted: list[int] | None = None) -> Particles:
    """A table with only the columns that decide which rows share a latent."""
    n = len(particle)
    nothing = dict.fromkeys(Particles.__dataclass_fields__)
    return Particles(
        **nothing
        | {"particle": np.array(particle), "stack": np.zeros(n, dtype=np.int32), "section": np.array(section),
           "pre_exposure": np.array(dose), "b_factor_in_square_angstroms": np.zeros(n),
           "tilted_particle": None if tilted is None else np.array(tilted)}
    )  # fmt: skip


def test_tilts_share_a_latent_and_copies_of_an_image_do_not() -> None:
    """Two tilts of two particles, repeated by a symmetry of order 2; an image and a part of it, repeated likewise."""
    tilts = [7, 7, 7, 7, 3, 3, 3, 3]
    found = shared_latents(
        table([*tilts, 5, 5, 5], [0, 1, 0, 1, 2, 2, 3, 3, 4, 4, 9], [0, 3] * 2 + [0, 0, 3, 3] + [0.0] * 3)
    )
    equal = found[:, None] == found
    expected = np.zeros((11, 11), dtype=bool)
    for group in ([0, 1], [2, 3], [4, 6], [5, 7], [8], [9], [10]):
        expected[np.ix_(group, group)] = True
    np.testing.assert_array_equal(equal, expected)


def test_tilts_that_the_file_names_share_a_latent_whatever_their_exposures() -> None:
    """Two tilts, one of them twice; two images of parts of one particle; one image."""
    found = shared_latents(table([0, 0, 0, 4, 4, 5], [0, 1, 1, 2, 3, 4], [0.0] * 6, tilted=[8, 8, 8, 1, 2, 3]))
    assert found[0] == found[1]
    assert len(set(found.tolist())) == 5


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
