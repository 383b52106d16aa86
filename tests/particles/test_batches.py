"""Every image once an epoch, in an order that mixes, is the same again, and never holds more than two buffers."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.particles.batches import Batches, Loader


class Recorded:
    """Images that show their row, and the blocks that were read."""

    def __init__(self) -> None:
        self.reads: list[NDArray[np.int64]] = []

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        self.reads.append(rows)
        return np.broadcast_to(rows[:, None, None].astype(np.float32), (len(rows), 2, 2)).copy()


def some_rows(n: int, seed: int = 0) -> NDArray[np.int64]:
    """A part of a table, in a reading order that is not the table's."""
    return np.random.default_rng(seed).permutation(3 * n)[:n].astype(np.int64)


@pytest.mark.parametrize(
    ("n", "size", "run", "buffer"), [(1000, 32, 10, 150), (37, 5, 3, 1000), (3, 8, 1, 4), (50, 7, 50, 9)]
)
def test_an_epoch_is_every_image_once(n: int, size: int, run: int, buffer: int) -> None:
    batches = Batches(some_rows(n), size, run, buffer, seed=1)
    with Loader(Recorded()) as loader:
        for epoch in range(3):
            blocks = list(islice(loader.stream(batches, epoch * batches.per_epoch), batches.per_epoch))
            np.testing.assert_array_equal(np.sort(np.concatenate([rows for rows, _ in blocks])), np.sort(batches.rows))
            for rows, images in blocks:
                assert 0 < len(rows) <= size
                assert np.all(images == rows[:, None, None])


def test_any_batch_can_be_the_first() -> None:
    batches = Batches(some_rows(200), 16, 8, 60, seed=2)
    with Loader(Recorded()) as loader:
        whole = [rows for rows, _ in islice(loader.stream(batches), 3 * batches.per_epoch)]
        for first in (1, 5, batches.per_epoch, 2 * batches.per_epoch - 1):
            rest = [rows for rows, _ in islice(loader.stream(batches, first), 3 * batches.per_epoch - first)]
            assert len(rest) == len(whole) - first
            assert all(np.array_equal(a, b) for a, b in zip(rest, whole[first:], strict=True))
    epochs = [np.concatenate(whole[i * batches.per_epoch : (i + 1) * batches.per_epoch]) for i in range(3)]
    assert not np.array_equal(epochs[0], epochs[1])


def test_reading_is_one_sweep_a_buffer_and_bounded() -> None:
    batches = Batches(some_rows(1000), 16, 20, 128, seed=3)
    places = np.empty(3000, dtype=np.int64)
    places[batches.rows] = np.arange(1000)
    images = Recorded()
    with Loader(images) as loader:
        for done, _ in enumerate(islice(loader.stream(batches), batches.per_epoch), 1):
            ahead = sum(len(rows) for rows in images.reads) - 16 * (done - 1)
            assert ahead <= 2 * 128 + 16 + 16  # two buffers; batches are cut to nearly equal lengths
    for rows in images.reads:
        assert np.all(np.diff(places[rows]) > 0)
        assert np.mean(np.diff(places[rows]) == 1) > 0.8  # runs stay together
    mixed = [np.ptp(places[rows]) for rows in batches_of(batches)]
    assert np.median(mixed) > 500  # and yet a batch comes from all over the stacks


def batches_of(batches: Batches) -> list[NDArray[np.int64]]:
    return [batches.rows[batch] for buffer in batches.epoch(0) for batch in buffer]


def test_a_buffer_does_not_grow_with_the_number_of_images() -> None:
    sizes = [max(sum(map(len, b)) for b in Batches.of(some_rows(n), 64, 256, 0).epoch(0)) for n in (2_000, 20_000)]
    assert max(sizes) * 4 * 256**2 <= 96 << 20


def test_a_sweep_keeps_the_order() -> None:
    rows = some_rows(23)
    with Loader(Recorded()) as loader:
        blocks = list(loader.sweep([rows[i : i + 5] for i in range(0, len(rows), 5)]))
    np.testing.assert_array_equal(np.concatenate([r for r, _ in blocks]), rows)
    assert [len(r) for r, _ in blocks] == [5, 5, 5, 5, 3]


def test_what_goes_wrong_while_reading_is_told() -> None:
    class Broken:
        def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
            raise OSError("gone")

    with Loader(Broken()) as loader, pytest.raises(OSError, match="gone"):
        next(loader.stream(Batches(some_rows(10), 2, 2, 4, 0)))
