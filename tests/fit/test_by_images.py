"""The fit to images, one batch after another: against the statistics of the same images, and interrupted at will."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.fit.by_images import Cut, HalfLoss, HalfSet, Schedule, fit_images
from emsplat.fit.by_statistics import FitSettings, fit_statistics
from emsplat.fit.initial import initial_gaussians
from emsplat.fourier import maps
from emsplat.fourier.slices import fourier_volume
from emsplat.models.gaussian_model import GaussianModel, GaussianSettings
from emsplat.runtime.checkpoint import Checkpoint, Checkpoints, Pace
from emsplat.runtime.context import Task
from emsplat.runtime.ranks import World
from emsplat.simulation.run import signal_images
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.statistics.loss import QuadraticLoss
from emsplat.statistics.sufficient import Statistics
from emsplat.symmetry import symmetry_operators
from emsplat.validation.correlation import fsc
from phantom import ImagesInMemory, accumulated, imagined_particles, lopsided_map

BOX = 24
SHORT = Schedule(round=4, max_rounds=4, anneal_rounds=3, anneal_epochs=1)
SETTINGS, GAUSSIANS = FitSettings(seed=1), GaussianSettings(60, max_scale=2.0)
WHOLE = np.eye(3)[None]


def half_set(n: int, sigma: float = 3.0, symmetry: NDArray[np.float64] = WHOLE) -> HalfSet:
    """Images of a particle without symmetry, in white noise; a fifth of them held_out."""
    particles = imagined_particles(n, BOX, pixel_size=4.0)
    images = signal_images(fourier_volume(lopsided_map(BOX)), particles)
    images += sigma * np.random.default_rng(2).standard_normal(images.shape, np.float32)
    noise = np.full((1, BOX // 2 + 1), BOX**2 * sigma**2)
    rows = np.arange(n)
    held_out = rows % 5 == 0
    return HalfSet(particles, ImagesInMemory(images), rows[~held_out], rows[held_out], noise, BOX, symmetry)


def statistics_of(half: HalfSet) -> tuple[Statistics, Statistics]:
    """Statistics of the training and the held_out images."""
    subset = np.zeros(len(half.particles), dtype=np.int8)
    subset[half.held_out] = 1
    settings = AccumulationSettings(BOX, 2 * BOX, half.noise, half.symmetry)
    training, held_out = accumulated(half.particles, half.images, subset, settings)  # type: ignore[arg-type]
    return training, held_out


def start_of(seen: Statistics) -> GaussianModel:
    """Fewer Gaussians than are asked for, so that densification has some to add."""
    few, mask = replace(GAUSSIANS, n_gaussians=42), maps.soft_mask(seen.raw_map(), 4.0, 4.0 * BOX)
    return replace(initial_gaussians(seen, mask, BOX, few, seed=1), settings=GAUSSIANS)


def equal(one: GaussianModel, other: GaussianModel) -> bool:
    return all(torch.equal(leaf, other.leaves[name]) for name, leaf in one.leaves.items())


@pytest.fixture(scope="module")
def half() -> HalfSet:
    return half_set(400)


@pytest.fixture(scope="module")
def seen(half: HalfSet) -> Statistics:
    return statistics_of(half)[0]


def test_the_loss_and_its_slopes_are_those_of_the_statistics(half: HalfSet, seen: Statistics) -> None:
    """By every parameter of the Gaussians: through the images, and through ``T∗V − b``."""
    exact = replace(start_of(seen), settings=replace(GAUSSIANS, cutoff=6.0))
    by_images, by_volume = (
        exact.with_leaves({name: leaf.clone().requires_grad_() for name, leaf in exact.leaves.items()})
        for _ in range(2)
    )
    images, operators = half.images.read(half.training), np.zeros(len(half.training), dtype=np.int64)
    losses, _ = HalfLoss(half).of(by_images, half.training, images, operators)
    losses.mean().backward()
    volume = by_volume.density()
    value, gradient = QuadraticLoss(seen, BOX).value_and_gradient(volume.detach().numpy())
    volume.backward(torch.from_numpy(gradient))
    assert losses.mean().item() == pytest.approx(value, rel=5e-3)
    for name in ("centres", "log_scales", "log_masses"):
        one, other = (model.leaves[name].grad.flatten() for model in (by_images, by_volume))
        assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.995, name
        assert one.norm() == pytest.approx(other.norm().item(), rel=0.02), name


def test_it_reaches_the_map_of_the_statistics(half: HalfSet) -> None:
    training, held_out = statistics_of(half)
    start = start_of(training)
    truth, mask = lopsided_map(BOX), np.ones((BOX,) * 3, dtype=np.float32)
    by_statistics, _ = fit_statistics(training, held_out, start, SETTINGS)
    by_images, history = fit_images(half, start, SETTINGS)
    correlations = [
        fsc(model.parameters.gaussians(1.0).voxelise(BOX, 1.0), truth, mask).mean()
        for model in (start, by_statistics, by_images)
    ]
    assert correlations[1] > correlations[0] + 0.05
    assert correlations[2] > correlations[1] - 0.01
    assert len(by_images) <= GAUSSIANS.n_gaussians
    assert history.counts[-1] > history.counts[0]
    assert history.anneal_from < len(history.losses)


def test_premultiplied_images_give_the_same(half: HalfSet, seen: Statistics) -> None:
    """C y and the noise before multiplication say what y says."""
    from emsplat.optics.ctf import ctf

    images = half.images.read(np.arange(len(half.particles)))
    times_ctf = np.fft.irfft2(np.fft.rfft2(images) * ctf(half.particles), s=images.shape[1:]).astype(np.float32)
    optics = tuple(replace(group, premultiplied=True) for group in half.particles.optics)
    other = replace(half, particles=replace(half.particles, optics=optics), images=ImagesInMemory(times_ctf))
    start = start_of(seen)
    one, two = (fit_images(h, start, SETTINGS, replace(SHORT, max_rounds=1, anneal_rounds=1))[0] for h in (half, other))
    for name in ("centres", "log_masses"):
        torch.testing.assert_close(one.leaves[name], two.leaves[name], rtol=0, atol=2e-2)


class Ended(Exception):
    """Stands in for a kill."""


@pytest.mark.parametrize("batch", [3, 9, 17, 26])
def test_an_ended_fit_goes_on_to_the_same_result(batch: int, half: HalfSet, seen: Statistics, tmp_path: Path) -> None:
    """Ended in the first round, before and in the annealing, and in its last round."""
    start = start_of(seen)
    whole, history = fit_images(half, start, SETTINGS, SHORT)
    assert len(history.losses) == 28

    def kept(resume: bool) -> Checkpoint:
        return Checkpoints(tmp_path, resume, pace=Pace(0, 0)).named("fit1")

    def end(done: int, total: int) -> None:
        assert done <= total
        if done == batch:
            raise Ended

    with pytest.raises(Ended):
        fit_images(half, start, SETTINGS, SHORT, Task(checkpoint=kept(False), progress=end))
    rest: list[int] = []
    task = Task(checkpoint=kept(True), progress=lambda done, total: rest.append(done))
    again, history_again = fit_images(half, start, SETTINGS, SHORT, task)
    assert len(rest) == 28 - batch // 4 * 4
    assert equal(again, whole)
    assert history_again == history
    task = Task(checkpoint=kept(True), progress=lambda *_: pytest.fail("nothing was left to do"))
    done, _ = fit_images(half, start, SETTINGS, SHORT, task)
    assert equal(done, whole)


def test_an_image_that_is_not_finite_is_named(half: HalfSet, seen: Statistics, tmp_path: Path) -> None:
    """And the state before it can be loaded."""
    images = half.images.read(np.arange(len(half.particles)))
    images[half.training[7], 3, 4] = 1e38
    spoilt = replace(half, images=ImagesInMemory(images))
    kept = Checkpoints(tmp_path, resume=True, pace=Pace(0, 0)).named("fit1")
    with np.errstate(all="ignore"), pytest.raises(InputError) as caught:
        fit_images(spoilt, start_of(seen), SETTINGS, replace(SHORT, round=1, batch=(8, 8)), Task(checkpoint=kept))
    assert half.particles.ids[half.training[7]] in str(caught.value)
    assert "\n" not in str(caught.value)
    state = kept.load()
    assert state is None or all(torch.isfinite(tensor).all() for tensor in state.tensors.values())


def test_an_image_is_seen_as_any_of_its_mates(seen: Statistics) -> None:
    """Its loss is that of the model turned the other way."""
    operators = symmetry_operators("C3")
    half = half_set(10, symmetry=operators)
    model, rows = replace(start_of(seen), settings=replace(GAUSSIANS, cutoff=6.0)), np.arange(10)
    loss = HalfLoss(half)
    images = half.images.read(rows)
    for number, operator in enumerate(operators):
        centres = model.parameters.centres @ torch.from_numpy(operator).T.float()
        turned = model.with_leaves(model.leaves | {"centres": centres})
        one, _ = loss.of(model, rows, images, np.full(10, number))
        other, _ = loss.of(turned, rows, images, np.zeros(10, dtype=np.int64))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)


def test_few_images_need_no_held_out_ones(half: HalfSet, seen: Statistics) -> None:
    few = replace(half, training=half.training[:12], held_out=half.held_out[:0])
    _, history = fit_images(few, start_of(seen), SETTINGS, SHORT)
    assert history.stopped_by == "maximum number of rounds"
    assert history.checks == []


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_ramp_takes_no_side(exponent: float, half: HalfSet) -> None:
    """It is symmetric and, but for the mean, positive: a gradient that passed it still leads downhill."""
    loss = HalfLoss(half)
    a, b = torch.randn(2, 1, BOX, BOX, generator=torch.Generator().manual_seed(0))
    forth, back = (loss.ramped(a, exponent) * b).sum(), (a * loss.ramped(b, exponent)).sum()
    assert forth.item() == pytest.approx(back.item(), rel=1e-4, abs=1e-4)
    assert (loss.ramped(a, exponent) * a).sum() > 0


def test_refused_where_refused(refuses: Callable, half: HalfSet, seen: Statistics, tmp_path: Path) -> None:
    """A state of another job."""
    start = start_of(seen)
    jobs = [Checkpoints(tmp_path, True, {"seed": seed}, pace=Pace(0, 0)).named("fit1") for seed in (1, 2)]
    fit_images(half, start, SETTINGS, replace(SHORT, max_rounds=1, anneal_rounds=1), Task(checkpoint=jobs[0]))
    with refuses("seed 1 there, 2 here"):
        fit_images(half, start, SETTINGS, SHORT, Task(checkpoint=jobs[1]))


@pytest.mark.parametrize("n", [1, 3, 16, 100, 256])
def test_ranks_render_each_image_of_a_batch_once(n: int) -> None:
    alone = Cut(40, World()).pieces(n)
    assert [i for piece in alone for i in range(n)[piece]] == list(range(n))
    for size in (2, 3, 4):
        shares = [Cut(40, World(rank, size)).share(n) for rank in range(size)]
        assert sorted(i for share in shares for i in range(n)[share]) == list(range(n))
        assert Cut(40, World(0, size)).pieces(n) == alone  # the same sums, whatever the number of ranks
