"""Copies of images under other names: found by their pixels, and nothing else is taken for one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emsplat.io import StackReader, StackWriter, copies, read_particles
from emsplat.io.copies import copies_by_content
from emsplat.io.write_relion import write_relion
from emsplat.validation.correlation import fsc
from phantom import imagined_particles, inverted

N, BOX = 6, 8


def write(path, images, pixel_size=1.5):
    with StackWriter(path, images.shape[-1], pixel_size) as stack:
        stack.append(images)


@pytest.fixture
def two_stacks(dataset, tmp_path):
    """Twelve rows of two stacks, the second of which holds what the test puts there."""

    def make(second, **columns):
        names = [f"{i + 1:06d}@stack.mrcs" for i in range(N)] + [f"{i + 1:06d}@second.mrcs" for i in range(N)]
        lengthened = {c: [10.0 * i for i in range(2 * N)] for c in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")}
        constant = {"rlnDefocusU": 9000.0, "rlnDefocusV": 9000.0, "rlnDefocusAngle": 0.0, "rlnOpticsGroup": 1}
        constant |= {"rlnOriginXAngst": 0.0, "rlnOriginYAngst": 0.0}
        filled = {name: [value] * (2 * N) for name, value in constant.items()}
        star = dataset(n=N, rlnImageName=names, **lengthened, **filled, **columns)
        write(tmp_path / "second.mrcs", second)
        return star

    return make


def noise(n=N, seed=1, box_size=BOX):
    return np.random.default_rng(seed).normal(size=(n, box_size, box_size)).astype(np.float32)


def first_stack(tmp_path):
    with StackReader(tmp_path / "stack.mrcs") as stack:
        return stack.read(np.arange(N))


def test_copies_are_one_particle_in_one_half(two_stacks, tmp_path, dataset):
    dataset(n=N)
    second = noise()
    second[[0, 4]] = first_stack(tmp_path)[[3, 1]]
    found = read_particles(two_stacks(second, rlnRandomSubset=[1] * N + [2] * N))
    assert found.particle[6] == found.particle[3]
    assert found.particle[10] == found.particle[1]
    assert len(set(found.particle)) == 2 * N - 2
    assert any("2 images are copies of others under another name" in line for line in found.warnings)
    assert any(
        f"1@{tmp_path / 'second.mrcs'}, a copy of 4@{tmp_path / 'stack.mrcs'}" in line for line in found.warnings
    )
    halves = found.with_half_sets(0)
    assert halves.half_set[6] == halves.half_set[3]
    assert halves.half_set[10] == halves.half_set[1]


def test_noise_blank_images_and_like_middles_are_no_copies(two_stacks, tmp_path):
    second = noise()
    assert len(set(read_particles(two_stacks(second)).particle)) == 2 * N
    second[1:4] = 2.0  # blank, and so all alike
    assert len(set(read_particles(two_stacks(second)).particle)) == 2 * N


def test_images_that_agree_in_their_middle_alone_are_compared_whole(tmp_path, two_stacks, monkeypatch):
    monkeypatch.setattr(copies, "_PIECE_IN_BYTES", 64)
    second = noise()
    second[1:] = second[0]
    second[3, 0, 0] += 1
    found = read_particles(two_stacks(second))
    label = found.particle[N:]
    assert len(set(label.tolist())) == 2
    assert (label[[0, 1, 2, 4, 5]] == label[0]).all()
    assert label[3] != label[0]


def test_a_large_set_is_sampled_first(two_stacks, monkeypatch):
    second = noise()
    second[1:] = second[0]
    star = two_stacks(second)
    table = replace(read_particles(star), warnings=())
    place = np.arange(2 * N)
    monkeypatch.setattr(copies, "_ALWAYS", 2)
    monkeypatch.setattr(copies, "_PER_IMAGE", 0)
    asked = []
    real = copies._fingerprints
    monkeypatch.setattr(copies, "_fingerprints", lambda p, rows: asked.append(len(rows)) or real(p, rows))
    found = copies_by_content(table, place)
    assert asked in ([2], [2, 2 * N])
    assert len(set(found.tolist())) == (2 * N if asked == [2] else N + 1)


def test_a_stack_that_cannot_be_read_is_left_to_others(two_stacks, tmp_path):
    star = two_stacks(noise())
    table = read_particles(star)
    (tmp_path / "second.mrcs").unlink()
    place = np.arange(2 * N)
    np.testing.assert_array_equal(copies_by_content(table, place), place)


@pytest.fixture
def noise_in_both_halves(tmp_path):
    """A star of 100 images of noise, and of the same images in another stack in the other half set."""
    images = noise(100, box_size=24)
    write(tmp_path / "one.mrcs", images, 4.0)
    write(tmp_path / "other.mrcs", np.concatenate([noise(3, box_size=24), images]), 4.0)
    one = imagined_particles(100, 24, 4.0)
    both = replace(
        one.select(np.tile(np.arange(100), 2)),
        stacks=(tmp_path / "one.mrcs", tmp_path / "other.mrcs"),
        stack=np.repeat(np.array([0, 1], dtype=np.int32), 100),
        section=np.concatenate([np.arange(100), np.arange(3, 103)]),
        particle=np.arange(200),
        half_set=np.repeat(np.array([1, 2], dtype=np.int8), 100),
    )
    write_relion(both, tmp_path / "p.star")
    return tmp_path / "p.star"


def correlation_of_halves(star):
    """Mean FSC of the direct inversions of both half sets."""
    table = read_particles(star).with_half_sets(0)
    first, second = (inverted(table.select(table.half_set == half)) for half in (1, 2))
    return fsc(first, second)[3:9].mean()


def test_noise_that_is_in_two_stacks_does_not_correlate(noise_in_both_halves, monkeypatch):
    assert abs(correlation_of_halves(noise_in_both_halves)) < 0.2
    monkeypatch.setattr("emsplat.io.copies_by_content", lambda particles, image: image)
    assert correlation_of_halves(noise_in_both_halves) > 0.99  # what nobody would notice without it


def test_half_sets_that_hold_copies_of_everything_are_not_used(noise_in_both_halves):
    found = read_particles(noise_in_both_halves)
    assert not found.half_set.any()
    assert any("100 images are copies" in line for line in found.warnings)
    assert any("half sets are not used" in line for line in found.warnings)
