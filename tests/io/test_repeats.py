"""Rows of one image are one particle, in one half, in every format and however the stack is spelled."""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest

from emsplat.io import read_particles
from emsplat.io.repeats import joined, same_files
from emsplat.io.write_relion import write_relion
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.settings import ReconstructSettings
from emsplat.simulation import SimulationSettings, bundled_model, simulate
from emsplat.simulation.acquisition import acquire

N_IMAGES = 6  # of the data set that the fixtures write
SPELLINGS = {
    "the same": lambda folder: "stack.mrcs",
    "with a dot": lambda folder: "./stack.mrcs",
    "absolute": lambda folder: str(folder / "stack.mrcs"),
    "through the folder above": lambda folder: f"../{folder.name}/stack.mrcs",
    "a link": lambda folder: _made(folder / "link.mrcs", lambda p: p.symlink_to("stack.mrcs")),
    "a hard link": lambda folder: _made(folder / "hard.mrcs", lambda p: os.link(folder / "stack.mrcs", p)),
    "a copy": lambda folder: _made(folder / "copy.mrcs", lambda p: shutil.copy(folder / "stack.mrcs", p)),
    "with RELION's type": lambda folder: "stack.mrcs:mrcs",
}


def _made(path, make):
    make(path)
    return path.name


def _twice(n, other):
    return [f"{i + 1}@stack.mrcs" for i in range(n)] + [f"{i + 1:06d}@{other}" for i in range(n)]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_image_is_one_particle_however_its_stack_is_spelled(dataset, tmp_path, spelling):
    star = dataset()
    n = N_IMAGES // 2
    other = SPELLINGS[spelling](tmp_path)
    star = dataset(rlnImageName=_twice(n, other), rlnRandomSubset=[1] * n + [2] * n)
    particles = read_particles(star)
    np.testing.assert_array_equal(particles.particle[:n], particles.particle[n:])
    assert len(set(particles.particle)) == n
    assert f"{n} rows repeat an image" in particles.warnings[-2]
    assert not particles.half_set.any()  # every image lies in both halves: they were not refined apart
    assert "half sets are not used" in particles.warnings[-1]
    halves = particles.with_half_sets(0).half_set
    np.testing.assert_array_equal(halves[:n], halves[n:])


def test_stacks_of_one_size_are_different_files(dataset, tmp_path, write_stack):
    dataset()
    images = write_stack(tmp_path / "other.mrcs")
    write_stack(tmp_path / "stack.mrcs")
    assert same_files((tmp_path / "other.mrcs", tmp_path / "stack.mrcs")).tolist() == [0, 0]
    raw = (tmp_path / "other.mrcs").read_bytes()
    (tmp_path / "other.mrcs").write_bytes(raw[: -images[0].nbytes] + (images[0] + 1).tobytes())
    assert same_files((tmp_path / "other.mrcs", tmp_path / "stack.mrcs")).tolist() == [0, 1]


def test_few_copies_across_the_halves_move(tmp_path, write_stack):
    n = 300
    write_stack(tmp_path / "stack.mrcs", n)
    settings = SimulationSettings(n_images=n, box_size=16, pixel_size_in_angstroms=1.5)
    particles = acquire(settings, tmp_path / "particles.star", tmp_path / "stack.mrcs")
    optics = tuple(replace(group, box_size=8) for group in particles.optics)
    section, half = np.arange(n), 1 + np.arange(n) % 2
    section[1] = section[0]
    particles = replace(particles, optics=optics, section=section, half_set=half.astype(np.int8))
    write_relion(particles, tmp_path / "particles.star")
    found = read_particles(tmp_path / "particles.star")
    assert found.half_set[0] == found.half_set[1] == 1
    np.testing.assert_array_equal(found.half_set[2:], half[2:])
    assert "1 rows are in the other half" in found.warnings[-1]


def test_rows_of_one_image_are_one_particle_with_cryodrgn_pickles(dataset, tmp_path):
    n = N_IMAGES // 2
    star = dataset(rlnImageName=_twice(n, "stack.mrcs"))
    rotations = np.tile(np.eye(3), (N_IMAGES, 1, 1))
    (tmp_path / "poses.pkl").write_bytes(pickle.dumps(rotations))
    ctf = np.tile([8, 1.5, 10000, 9000, 0, 300, 2.7, 0.1, 0], (N_IMAGES, 1))
    (tmp_path / "ctf.pkl").write_bytes(pickle.dumps(ctf))
    particles = read_particles(star, poses=tmp_path / "poses.pkl", ctf=tmp_path / "ctf.pkl")
    assert len(set(particles.particle)) == n
    assert "repeat an image" in particles.warnings[-1]


def test_subtracted_images_of_one_original_are_one_particle(dataset):
    original = [f"{i // 2 + 1:06d}@{'./' * (i % 2)}Extract/a.mrcs" for i in range(N_IMAGES)]
    particles = read_particles(dataset(rlnImageOriginalName=original))
    np.testing.assert_array_equal(particles.particle[::2], particles.particle[1::2])
    assert len(set(particles.particle)) == N_IMAGES // 2
    unknown = read_particles(dataset(rlnImageOriginalName=["None"] * N_IMAGES))
    assert len(set(unknown.particle)) == N_IMAGES


def test_labels_join_through_other_rows():
    a, b = np.array([0, 0, 1, 2, 3]), np.array([5, 6, 6, 7, 8])
    found = joined(a, b)
    assert found[0] == found[1] == found[2]
    assert len(set(found)) == 3


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A folder with 200 images of noise and their table."""
    folder = tmp_path_factory.mktemp("noise")
    settings = SimulationSettings(n_images=200, box_size=32, pixel_size_in_angstroms=5.0, snr=1e-5, seed=2)
    simulate(bundled_model(), folder, settings, overwrite=True)
    return folder


@pytest.mark.parametrize("halves", ["drawn", "one copy in each"])
def test_noise_that_is_listed_twice_has_no_resolution(noise, halves):
    once = read_particles(noise / "particles.star")
    twice = once.select(np.tile(np.arange(len(once)), 2))
    half = np.repeat([1, 2], len(once)) * (halves != "drawn")
    write_relion(replace(twice, half_set=half.astype(np.int8), particle=np.arange(len(twice))), noise / "twice.star")
    settings = ReconstructSettings(threads=1, n_gaussians=50, n_fits=1, device="cpu")
    result = reconstruct(noise / "twice.star", settings)
    assert result.validation.resolution_kind == "not_measurable"
    used = result.particles.half_set
    np.testing.assert_array_equal(used[: len(once)], used[len(once) :])
    assert result.poses_shared
