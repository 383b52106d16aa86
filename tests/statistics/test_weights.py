"""Accumulated statistics of parts with weights: what holds for any weights, and the sums in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_sums import direct_gradient, gradient_of, two_kinds
from emsplat.particles.parts import HELD_OUT, Kind, Part, PartWeights
from emsplat.particles.table import Particles
from emsplat.runtime.checkpoint import Checkpoints, Pace, State
from emsplat.runtime.context import Task
from emsplat.statistics import accumulate as module
from emsplat.statistics.accumulate import AccumulationSettings, accumulate
from emsplat.statistics.distributed import accumulate_shared
from emsplat.statistics.loss import QuadraticLoss
from emsplat.statistics.sufficient import Statistics, restored_statistics, saved_statistics
from phantom import ImagesInMemory, imagined_particles, together

N, BOX = 24, 16
STATES = [Part(1, state=state) for state in range(5)]


@pytest.fixture(scope="module")
def data() -> tuple[Particles, ImagesInMemory, AccumulationSettings]:
    """Images of two optics groups, one of them aberrated, in blocks of seven."""
    rng = np.random.default_rng(0)
    particles = two_kinds(imagined_particles(N, BOX), premultiplied=False)
    images = ImagesInMemory((rng.standard_normal((N, BOX, BOX)) + 3).astype(np.float32))
    noise = rng.uniform(0.5, 2, (2, BOX // 2 + 1))
    return particles, images, AccumulationSettings(BOX, 2 * BOX, noise, np.eye(3)[None], block_bytes=7 * 4 * BOX**2)


def soft_weights(seed: int = 3) -> NDArray[np.float64]:
    """(N, 5) three states an image; the rows add up to 1."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((N, 5))
    for row in weights:
        row[rng.permutation(5)[:3]] = rng.dirichlet(np.ones(3))
    return weights


def close(got: Statistics, expected: Statistics, within: float = 2e-6) -> None:
    for name in ("backprojection", "kernel"):
        a, b = getattr(got, name), getattr(expected, name)
        assert np.linalg.norm(a - b) <= within * np.linalg.norm(b), name
    assert got.sum_of_weights == pytest.approx(expected.sum_of_weights, rel=1e-6)


def equal(got: Mapping[Part, Statistics], expected: Mapping[Part, Statistics]) -> None:
    assert list(got) == list(expected)
    for part, statistics in expected.items():
        np.testing.assert_array_equal(got[part].backprojection, statistics.backprojection)
        np.testing.assert_array_equal(got[part].kernel, statistics.kernel)
        assert got[part].n_images == statistics.n_images
        assert got[part].sum_of_weights == statistics.sum_of_weights


def test_half_the_weight_twice_is_the_whole(data: tuple) -> None:
    particles, images, settings = data
    [whole] = accumulate(particles, images, PartWeights.whole(N), settings).values()
    half = PartWeights.from_dense(STATES[:2], np.full((N, 2), 0.5))
    first, second = accumulate(particles, images, half, settings).values()
    assert first.sum_of_weights == second.sum_of_weights == N / 2
    assert first.n_images == N
    close(first + second, whole)
    np.testing.assert_array_equal(2 * first.kernel, whole.kernel)  # a power of two changes no digit
    ones = PartWeights.from_dense(STATES[:1], np.ones((N, 1)))
    equal(accumulate(particles, images, ones, settings), {STATES[0]: whole})


def test_soft_parts_add_up_to_the_whole(data: tuple) -> None:
    particles, images, settings = data
    [whole] = accumulate(particles, images, PartWeights.whole(N), settings).values()
    states = list(accumulate(particles, images, PartWeights.from_dense(STATES, soft_weights()), settings).values())
    total = states[0]
    for one in states[1:]:
        total = total + one
    close(total, whole)
    assert total.n_images == 3 * N


def test_the_order_of_images_does_not_matter(data: tuple) -> None:
    """But for rounding: rows of table, images and weights together."""
    particles, images, settings = data
    order = np.random.default_rng(4).permutation(N)
    weights = soft_weights()
    expected = accumulate(particles, images, PartWeights.from_dense(STATES, weights), settings)
    shuffled = particles.select(order)
    parts = PartWeights.from_dense(STATES, weights[order])
    found = accumulate(shuffled, ImagesInMemory(images.images[order]), parts, settings)
    for part, statistics in expected.items():
        close(found[part], statistics)


def test_against_a_sum_in_float64(data: tuple) -> None:
    """Of each part, b with negative weights of its own, T with positive ones."""
    particles, images, settings = data
    weights, of_b = soft_weights(), np.random.default_rng(5).normal(size=(N, 5))
    found = accumulate(particles, images, PartWeights.from_dense(STATES, weights, weights_of_b=of_b), settings)
    volume = 0.1 * np.random.default_rng(6).standard_normal((BOX,) * 3)
    for number, part in enumerate(STATES[:2]):
        b, tv = np.zeros((BOX,) * 3), np.zeros((BOX,) * 3)
        for i in range(N):
            one = particles.select(np.array([i])), settings.noise
            nothing = direct_gradient(0 * volume, images.images[i : i + 1], *one)
            b -= of_b[i, number] * nothing
            if weights[i, number]:
                tv += weights[i, number] * (direct_gradient(volume, images.images[i : i + 1], *one) - nothing)
        s = found[part]
        assert np.linalg.norm(s.backprojection - b) < 5e-3 * np.linalg.norm(b)
        assert np.linalg.norm(gradient_of(s, volume) + s.backprojection - tv) < 5e-3 * np.linalg.norm(tv)


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_some_parts_at_a_time_change_no_bit(data: tuple, at_once: int) -> None:
    particles, images, settings = data
    parts = PartWeights.from_dense(STATES, soft_weights())
    of_pair = settings.bytes_of(Kind.B) + settings.bytes_of(Kind.T)
    budget = replace(settings, grid_bytes=at_once * of_pair + 1)
    reads: list[int] = []
    counted = ImagesInMemory(images.images)
    counted.read = lambda rows: reads.append(len(rows)) or images.read(rows)  # type: ignore[method-assign, func-returns-value]
    done: list[int] = []
    equal(
        accumulate(particles, counted, parts, budget, done.append),
        accumulate(particles, images, parts, settings),
    )
    groups = np.array_split(np.arange(5), range(at_once, 5, at_once))
    assert sum(reads) == sum(int((soft_weights()[:, group] > 0).any(axis=1).sum()) for group in groups)
    assert done[-1] == N
    assert done == sorted(done)


def test_an_image_is_read_once_and_added_as_often_as_it_has_parts(data: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    particles, images, settings = data
    added, read = [0], [0]
    insert = module.SliceGrid.insert

    def counted(self: module.SliceGrid, slices: NDArray, matrices: NDArray) -> None:
        added[0] += len(slices)
        insert(self, slices, matrices)

    class Counted(ImagesInMemory):
        def read(self, rows: NDArray) -> NDArray[np.float32]:
            read[0] += len(rows)
            return super().read(rows)

    monkeypatch.setattr(module.SliceGrid, "insert", counted)
    accumulate(particles, Counted(images.images), PartWeights.from_dense(STATES, soft_weights()), settings)
    assert (read[0], added[0]) == (N, 2 * 3 * N)


def test_parts_of_one_kind_alone(data: tuple) -> None:
    """A mixed moment has no b, and no image is read for it; it may be negative. A part without images is zero."""
    particles, images, settings = data
    weights = np.stack([np.ones(N), np.linspace(-1, 1, N), np.zeros(N)], axis=1)
    of_b = np.stack([np.linspace(1, -1, N), np.zeros(N), np.zeros(N)], axis=1)
    parts = PartWeights.from_dense(STATES[:3], weights, weights_of_b=of_b, signed=True)
    mean, mixed, empty = accumulate(particles, images, parts, settings).values()
    [whole] = accumulate(particles, images, PartWeights.whole(N), settings).values()
    np.testing.assert_array_equal(mean.kernel, whole.kernel)
    assert mixed.kernel.any()
    assert not mixed.backprojection.any()
    assert not (empty.backprojection.any() or empty.kernel.any())
    assert empty.n_images == 0
    only_mixed = PartWeights.from_dense([Part()], weights[:, 1:2], weights_of_b=of_b[:, 1:2], signed=True)
    images_without_any = ImagesInMemory(np.empty((0, BOX, BOX), dtype=np.float32))
    [again] = accumulate(particles, images_without_any, only_mixed, settings).values()
    np.testing.assert_array_equal(again.kernel, mixed.kernel)
    with pytest.raises(ValueError, match="positive sum"):
        QuadraticLoss(empty, BOX)


def test_the_loss_is_per_weight(data: tuple) -> None:
    """The same weight in all images changes neither the loss nor its gradient."""
    particles, images, settings = data
    [whole] = accumulate(particles, images, PartWeights.whole(N), settings).values()
    [quarter] = accumulate(
        particles, images, PartWeights.from_dense([Part()], np.full((N, 1), 0.25)), settings
    ).values()
    volume = np.random.default_rng(7).standard_normal((BOX,) * 3).astype(np.float32)
    one, other = (QuadraticLoss(s, BOX).value_and_gradient(volume) for s in (whole, quarter))
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    np.testing.assert_allclose(one[1], other[1], rtol=1e-5, atol=1e-6 * np.abs(one[1]).max())


def test_an_accumulation_that_is_ended_goes_on_to_the_same_bits(data: tuple, tmp_path: Path) -> None:
    """After any number of states, within a group of parts and between two; nothing is left when all is done."""
    particles, images, settings = data
    parts = PartWeights.from_dense(STATES, soft_weights())
    of_pair = settings.bytes_of(Kind.B) + settings.bytes_of(Kind.T)
    settings = replace(settings, grid_bytes=2 * of_pair)
    owners = dict.fromkeys(STATES, 0)
    whole = together(accumulate_shared(particles, images, parts, settings, owners))
    equal(whole, accumulate(particles, images, parts, settings))
    reads: list[int] = []

    class Counted(ImagesInMemory):
        def read(self, rows: NDArray) -> NDArray[np.float32]:
            reads.append(len(rows))
            return super().read(rows)

    class Ended(Exception):
        pass

    class ThatEnd(Checkpoints):
        def save(self, name: str, state: State) -> bool:
            written = super().save(name, state)
            if self.pace.states == 2:
                raise Ended
            return written

    ends = 0
    while True:
        job = ThatEnd(tmp_path, resume=True, pace=Pace(0, 0))
        stage = job.named("pass")
        reads.append(0)
        try:
            inputs = particles, Counted(images.images), parts, settings, owners
            found = together(accumulate_shared(*inputs, Task(checkpoint=stage)))
            break
        except Ended:
            ends += 1
    assert ends >= 5
    equal(found, whole)
    assert sum(reads) < 2.5 * sum(parts.counts())  # a block is read ahead, and again after an end
    stage.remove()
    assert not list(tmp_path.iterdir())


def test_statistics_go_into_a_checkpoint_and_back(data: tuple) -> None:
    particles, images, settings = data
    parts = PartWeights.from_dense([Part(1, HELD_OUT, 2), Part(2)], soft_weights()[:, :2])
    found = accumulate(particles, images, parts, settings)
    equal(restored_statistics(saved_statistics(found)), found)


def test_parts_of_other_images_are_refused(data: tuple) -> None:
    particles, images, settings = data
    with pytest.raises(ValueError, match="of 25 images, the particles are 24"):
        accumulate(particles, images, PartWeights.whole(N + 1), settings)
