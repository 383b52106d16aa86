"""The particle table: selections keep rows together, half sets keep particles together."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from emsplat.particles.table import OpticsGroup, Particles, split_by_particle


def some_particles(n: int, tilts: int = 1) -> Particles:
    number = np.arange(n)
    ramp = number.astype(np.float64)
    return Particles(
        source=Path("a.star"),
        optics=(OpticsGroup("one", 1.5, 8, 300, 2.7, 0.1),),
        stacks=(Path("a.mrcs"),),
        ids=np.array([f"{i + 1}@a.mrcs" for i in number], dtype=np.str_),
        stack=np.zeros(n, dtype=np.int32),
        section=number,
        optics_group=np.zeros(n, dtype=np.int32),
        euler_angles_in_degrees=np.stack([ramp, 2 * ramp, 3 * ramp], axis=1),
        origin_in_angstroms=np.stack([ramp, -ramp], axis=1),
        defocus_u_in_angstroms=ramp,
        defocus_v_in_angstroms=ramp,
        defocus_angle_in_degrees=ramp,
        phase_shift_in_degrees=ramp,
        b_factor_in_square_angstroms=ramp,
        ctf_scale=ramp,
        pre_exposure=ramp,
        particle=number // tilts,
        half_set=np.zeros(n, dtype=np.int8),
        warnings=("a warning",),
    )


@pytest.mark.parametrize("rows", [[4, 0, 2], [], [3, 3], np.arange(5) % 2 == 0])
def test_a_selection_takes_every_column_along(rows):
    particles = some_particles(5)
    rows = np.asarray(rows) if len(rows) else np.array([], dtype=np.int64)
    chosen = particles.select(rows)
    for field in fields(particles):
        before, after = getattr(particles, field.name), getattr(chosen, field.name)
        if isinstance(before, np.ndarray):
            np.testing.assert_array_equal(after, before[rows], err_msg=field.name)
        else:
            assert after == before
    assert len(chosen) == len(particles.section[rows])


@pytest.mark.parametrize(("n", "tilts"), [(12, 3), (15, 3), (7, 1), (1, 1)])
def test_halves_are_equal_and_never_split_a_particle(n, tilts):
    particles = some_particles(n, tilts).with_half_sets(seed=3)
    assert set(particles.half_set) <= {1, 2}
    halves = [set(particles.particle[particles.half_set == h]) for h in (1, 2)]
    assert not halves[0] & halves[1]
    assert abs(len(halves[0]) - len(halves[1])) <= 1


def test_halves_depend_on_the_seed_alone():
    particle = np.random.default_rng(0).integers(0, 50, 200)
    first = split_by_particle(particle, seed=1)
    np.testing.assert_array_equal(first, split_by_particle(particle, seed=1))
    assert (first != split_by_particle(particle, seed=2)).any()
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_array_equal(split_by_particle(particle[order], seed=1), first[order])


def test_halves_of_the_file_are_kept_and_half_given_ones_refused(refuses):
    particles = some_particles(4)
    given = replace(particles, half_set=np.array([2, 1, 1, 2], dtype=np.int8))
    np.testing.assert_array_equal(given.with_half_sets(seed=0).half_set, [2, 1, 1, 2])
    with refuses("a.star", "rlnRandomSubset"):
        replace(particles, half_set=np.array([0, 1, 1, 2], dtype=np.int8)).with_half_sets(seed=0)


def test_rotations_are_orthogonal():
    rotations = some_particles(5).rotations()
    np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (5, 1, 1)), atol=1e-12)
