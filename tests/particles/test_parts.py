"""Parts of the data, and what every image weighs in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.particles.parts import HELD_OUT, TRAINING, Kind, Part, PartWeights
from phantom import imagined_particles

A, B, C = (Part(1, TRAINING, state) for state in range(3))


def dense(table: PartWeights, kind: Kind = Kind.T) -> NDArray[np.float64]:
    """(N, P) the weights that the entries of all rows, block by block and out of order, have."""
    found = np.zeros((len(table), len(table.parts)))
    everything = np.ones(len(table.parts), dtype=bool)
    for rows in np.array_split(np.random.default_rng(0).permutation(len(table)), 3):
        entries = table.entries(rows, kind, everything)
        assert np.all(np.diff(entries.places) >= 0)
        np.add.at(
            found, (entries.rows[entries.places], entries.numbers), 1 if entries.weights is None else entries.weights
        )
    return found


def test_parts_are_ordered_by_half_split_and_state() -> None:
    shuffled = [Part(2), Part(1, HELD_OUT), Part(1, TRAINING, 3), Part(1)]
    assert sorted(shuffled) == [Part(1), Part(1, TRAINING, 3), Part(1, HELD_OUT), Part(2)]
    assert len({Part(1), Part(1, TRAINING, 0), Part(1, HELD_OUT)}) == 2
    assert Part(1, HELD_OUT, 3).label == "half1-held_out-state3"


def test_a_matrix_comes_back() -> None:
    """But for what the threshold drops; b's weights are kept where T's are not, and the other way round."""
    rng = np.random.default_rng(1)
    weights = rng.uniform(0, 1, (20, 3)) * (rng.random((20, 3)) < 0.5)
    of_b = rng.normal(size=(20, 3)) * (rng.random((20, 3)) < 0.5)
    table = PartWeights.from_dense([A, B, C], weights, threshold=0.3, weights_of_b=of_b)
    kept = (weights > 0.3) | (np.abs(of_b) > 0.3)
    np.testing.assert_allclose(dense(table), weights * kept, rtol=1e-6)
    np.testing.assert_allclose(dense(table, Kind.B), of_b * kept, rtol=1e-6)
    np.testing.assert_array_equal(table.counts(), kept.sum(axis=0))
    np.testing.assert_allclose(table.sums_of_weights(), (weights * kept).sum(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(table.holds(np.array([True, False, True])), kept[:, [0, 2]].any(axis=1))
    first = np.where(kept[:, 1], 1, np.where(kept[:, 2], 2, -1))
    np.testing.assert_array_equal(table.first_of(np.array([False, True, True])), first)
    assert len(table.numbers) == kept.sum()


def test_triplets_may_come_in_any_order() -> None:
    rows, numbers, weights = np.array([4, 0, 4, 1]), np.array([2, 0, 0, 1]), np.array([0.2, 1.0, 0.8, 0.5])
    expected = np.zeros((6, 3))
    expected[rows, numbers] = weights
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        table = PartWeights.from_triplets([A, B, C], 6, rows[order], numbers[order], weights[order])
        np.testing.assert_allclose(dense(table), expected, rtol=1e-6)
    assert table.rows_of(C, np.arange(6)[::-1]).tolist() == [4]
    assert table.rows_of(A, np.arange(6)[::-1]).tolist() == [4, 0]
    assert table.rows_of(Part(2), np.arange(6)).tolist() == []


def test_one_part_each_stores_no_weight() -> None:
    table = PartWeights.one_part_each([A, B], np.array([0, 1, -1, 1]))
    assert (table.weights, table.offsets) == (None, None)
    np.testing.assert_array_equal(dense(table), [[1, 0], [0, 1], [0, 0], [0, 1]])
    assert table.counts().tolist() == table.sums_of_weights().tolist() == [1, 2]
    assert table.holds(np.array([False, True])).tolist() == [False, True, False, True]
    assert table.first_of(np.array([False, True])).tolist() == [-1, 1, -1, 1]


def test_half_sets_with_held_out_particles() -> None:
    """A fifth of each half's particles, all images of a particle together; none of a half of few images."""
    particles = imagined_particles(600, 16)
    half = np.where(np.arange(600) < 570, 1, 2).astype(np.int8)
    particles = replace(particles, half_set=half, particle=np.arange(600) // 3)
    table = PartWeights.half_sets(particles, seed=5)
    assert table.parts == (Part(1), Part(1, HELD_OUT), Part(2))
    assert table.counts().tolist() == [456, 114, 30]
    held_out = set(table.rows_of(Part(1, HELD_OUT), np.arange(600)) // 3)
    assert held_out.isdisjoint(table.rows_of(Part(1), np.arange(600)) // 3)
    np.testing.assert_array_equal(table.rows_of(Part(2), np.arange(600)), np.arange(570, 600))


def test_states_divide_every_part() -> None:
    halves = PartWeights.one_part_each([Part(1), Part(2, HELD_OUT)], np.array([0, 1, -1, 1]))
    weights = np.array([[0.5, 0.5], [1.0, 0.01], [0.3, 0.7], [0.0, 1.0]])
    table = halves.with_states(weights, threshold=0.02, weights_of_b=-weights)
    assert table.parts == (Part(1), Part(1, TRAINING, 1), Part(2, HELD_OUT), Part(2, HELD_OUT, 1))
    expected = np.array([[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(dense(table), expected)
    np.testing.assert_array_equal(dense(table, Kind.B), -expected)


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: PartWeights.one_part_each([A, B], np.array([0, 2])), "from −1 to 1, of 2 parts"),
        (lambda: PartWeights.one_part_each([A, B, A], np.array([0])), "half1-training-state0 comes twice"),
        (lambda: PartWeights.from_dense([A, B], np.ones((4, 3))), r"2 parts\), not \(4, 3\)"),
        (lambda: PartWeights.from_dense([A], np.array([[np.nan]])), "weights holds nan for row 0"),
        (
            lambda: PartWeights.from_dense([A], np.ones((1, 1)), weights_of_b=np.full((1, 1), np.inf)),
            "weights_of_b hol",
        ),
        (lambda: PartWeights.from_dense([A], np.array([[0.1], [-0.2]])), "row 1 in half1-training-state0 is -0.2"),
        (lambda: PartWeights.from_triplets([A], 2, *np.array([[0, 2], [0, 0], [1, 1]])), "row must be from 0 to 1"),
        (
            lambda: PartWeights.from_triplets([A], 2, *np.array([[0, 1], [0, 1], [1, 1]])),
            "part number must be from 0",
        ),
        (lambda: PartWeights.from_triplets([A], 2, *np.array([[1, 1], [0, 0], [1, 1]])), "row 1 has two weights"),
        (lambda: PartWeights.from_triplets([A], 2, np.zeros(2), np.zeros(2), np.zeros(3)), "differ in shape"),
        (lambda: PartWeights.whole(3).with_states(np.ones((4, 2))), "of 4 images, the table of 3"),
        (lambda: PartWeights.from_dense([A], np.ones((2, 1))).with_states(np.ones((2, 2))), "one part of each image"),
    ],
)
def test_what_cannot_be_is_refused(build: Callable[[], PartWeights], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build()


def test_mixed_moments_may_be_negative() -> None:
    table = PartWeights.from_dense([A, B], np.array([[0.1, -0.4]]), signed=True)
    np.testing.assert_allclose(dense(table), [[0.1, -0.4]], rtol=1e-6)
