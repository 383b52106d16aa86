"""Images by row: any order, several stacks, bad images named."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.io import ImageSource, StackWriter, read_particles, reading_order

N_IMAGES, BOX_SIZE = 6, 8  # of the data set fixture


@pytest.fixture
def two_stacks(dataset, tmp_path, write_stack):
    """Rows that alternate between two stacks, backwards through each; (particles, their images)."""
    path = dataset(rlnImageName=[f"{N_IMAGES - i}@{'ab'[i % 2]}.mrcs" for i in range(N_IMAGES)])
    stacks = {name: (10 if name == "b" else 1) * write_stack(tmp_path / f"{name}.mrcs") for name in "ab"}
    with StackWriter(tmp_path / "b.mrcs", BOX_SIZE, 1.5) as writer:
        writer.append(stacks["b"])
    expected = np.stack([stacks["ab"[i % 2]][N_IMAGES - i - 1] for i in range(N_IMAGES)])
    return read_particles(path), expected


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5], [5, 0, 3, 3], [2], [], [0, 2, 4]])
@pytest.mark.parametrize("most_open", [1, 16])
def test_rows_in_any_order_from_several_stacks(two_stacks, rows, most_open):
    particles, expected = two_stacks
    rows = np.array(rows, dtype=np.int64)
    with ImageSource(particles, most_open=most_open) as source:
        np.testing.assert_array_equal(source.read(rows), expected[rows])
        assert len(source._readers) <= most_open
    with ImageSource(particles, invert=True) as source:
        np.testing.assert_array_equal(source.read(rows), -expected[rows])


def test_a_mask_and_a_selection_read_the_same(two_stacks):
    particles, expected = two_stacks
    mask = np.arange(N_IMAGES) > 2
    with ImageSource(particles) as all_of_them, ImageSource(particles.select(mask)) as some:
        np.testing.assert_array_equal(all_of_them.read(mask), expected[mask])
        np.testing.assert_array_equal(some.read([0, 1, 2]), expected[mask])


def test_reading_order_is_one_sweep(two_stacks):
    particles, _ = two_stacks
    order = reading_order(particles)
    assert sorted(order) == list(range(N_IMAGES))
    stack, section = particles.stack[order], particles.section[order]
    assert ((np.diff(stack) > 0) | ((np.diff(stack) == 0) & (np.diff(section) > 0))).all()


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda image: image.__setitem__((0, 3), np.nan), "NaN or infinite"),
        (lambda image: image.__setitem__((7, 7), np.inf), "NaN or infinite"),
        (lambda image: image.__setitem__((2, 0), -np.inf), "NaN or infinite"),
        (lambda image: image.fill(3.0), "constant"),
    ],
    ids=["nan", "inf", "-inf", "constant"],
)
def test_a_bad_image_is_named(dataset, tmp_path, refuses, spoil, complaint):
    path = dataset()
    shape = (N_IMAGES, BOX_SIZE, BOX_SIZE)
    spoil(np.memmap(tmp_path / "stack.mrcs", np.float32, mode="r+", offset=1024, shape=shape)[4])
    with ImageSource(read_particles(path)) as source:
        source.read([0, 1, 2, 3, 5])
        with refuses("000005@stack.mrcs", complaint):
            source.read([5, 4, 0])
