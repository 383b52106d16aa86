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
from emsplat.fit.by_images import HalfSet, Misfit, Schedule, fit_images
from emsplat.fit.by_statistics import FitSettings, fit_gaussians, gaussians_of, initial_gaussians
from emsplat.fourier import maps
from emsplat.fourier.slices import fourier_volume
from emsplat.models.parameters import NAMES, Parameters
from emsplat.runtime.checkpoint import Checkpoint, Checkpoints, Pace
from emsplat.simulation.run import signal_images
from emsplat.splat import voxelise
from emsplat.statistics.accumulate import AccumulationSettings, Statistics
from emsplat.statistics.loss import QuadraticLoss
from emsplat.symmetry import symmetry_operators
from emsplat.validation.correlation import fsc
from phantom import ImagesInMemory, accumulated, imagined_particles, lopsided_map

BOX = 24
SHORT = Schedule(round=4, max_rounds=4, anneal_rounds=3, anneal_epochs=1)
SETTINGS = FitSettings(60, max_scale=2.0, seed=1)
WHOLE = np.eye(3)[None]


def half_set(n: int, sigma: float = 3.0, symmetry: NDArray[np.float64] = WHOLE) -> HalfSet:
    """Images of a particle without symmetry, in white noise; a fifth of them unseen."""
    particles = imagined_particles(n, BOX, pixel_size=4.0)
    images = signal_images(fourier_volume(lopsided_map(BOX)), particles)
    images += sigma * np.random.default_rng(2).standard_normal(images.shape, np.float32)
    noise = np.full((1, BOX // 2 + 1), BOX**2 * sigma**2)
    rows = np.arange(n)
    unseen = rows % 5 == 0
    return HalfSet(particles, ImagesInMemory(images), rows[~unseen], rows[unseen], noise, BOX, BOX, symmetry)


def statistics_of(half: HalfSet) -> tuple[Statistics, Statistics]:
    """Of the seen and the unseen images."""
    subset = np.zeros(len(half.particles), dtype=np.int8)
    subset[half.unseen] = 1
    settings = AccumulationSettings(BOX, 2 * BOX, half.noise, half.symmetry)
    seen, unseen = accumulated(half.particles, half.images, subset, settings)  # type: ignore[arg-type]
    return seen, unseen


def start_of(seen: Statistics) -> Parameters:
    """Fewer than were asked for, so that density control has some to add."""
    few = replace(SETTINGS, n_gaussians=42)
    return initial_gaussians(seen, maps.soft_mask(seen.raw_map(), 4.0, 4.0 * BOX), BOX, few)


def equal(one: Parameters, other: Parameters) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in NAMES)


@pytest.fixture(scope="module")
def half() -> HalfSet:
    return half_set(400)


@pytest.fixture(scope="module")
def seen(half: HalfSet) -> Statistics:
    return statistics_of(half)[0]


def test_the_misfit_and_its_slopes_are_those_of_the_statistics(half: HalfSet, seen: Statistics) -> None:
    """By every parameter of the Gaussians: through the images, and through ``T∗V − b``."""
    model = start_of(seen)
    by_images, by_volume = (model.map(lambda _, tensor: tensor.clone().requires_grad_()) for _ in range(2))
    images, operators = half.images.read(half.seen), np.zeros(len(half.seen), dtype=np.int64)
    losses, _ = Misfit(half, cutoff=6.0).of(by_images, half.seen, images, operators)
    losses.mean().backward()
    volume = voxelise(*(getattr(by_volume, name) for name in NAMES), BOX, cutoff=6.0)
    value, gradient = QuadraticLoss(seen, BOX).value_and_gradient(volume.detach().numpy())
    volume.backward(torch.from_numpy(gradient))
    assert losses.mean().item() == pytest.approx(value, rel=5e-3)
    for name in ("centres", "log_scales", "log_masses"):
        one, other = (getattr(leaves, name).grad.flatten() for leaves in (by_images, by_volume))
        assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.995, name
        assert one.norm() == pytest.approx(other.norm().item(), rel=0.02), name


def test_it_reaches_the_map_of_the_statistics(half: HalfSet) -> None:
    seen, unseen = statistics_of(half)
    start = start_of(seen)
    truth, mask = lopsided_map(BOX), np.ones((BOX,) * 3, dtype=np.float32)
    by_statistics, _ = fit_gaussians(seen, unseen, start, BOX, SETTINGS)
    by_images, history = fit_images(half, start, SETTINGS)
    correlations = [
        fsc(gaussians_of(p, 1.0).voxelise(BOX, 1.0), truth, mask).mean() for p in (start, by_statistics, by_images)
    ]
    assert correlations[1] > correlations[0] + 0.05
    assert correlations[2] > correlations[1] - 0.01
    assert len(by_images) <= SETTINGS.n_gaussians
    assert history.counts[-1] > history.counts[0]
    assert history.anneal_from < len(history.losses)


def test_premultiplied_images_give_the_same(half: HalfSet, seen: Statistics) -> None:
    """C y and the noise before multiplication say what y says."""
    from emsplat.imaging.ctf import ctf

    images = half.images.read(np.arange(len(half.particles)))
    times_ctf = np.fft.irfft2(np.fft.rfft2(images) * ctf(half.particles), s=images.shape[1:]).astype(np.float32)
    optics = tuple(replace(group, premultiplied=True) for group in half.particles.optics)
    other = replace(half, particles=replace(half.particles, optics=optics), images=ImagesInMemory(times_ctf))
    start = start_of(seen)
    one, two = (fit_images(h, start, SETTINGS, replace(SHORT, max_rounds=1, anneal_rounds=1))[0] for h in (half, other))
    for name in ("centres", "log_masses"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=0, atol=2e-2)


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
        fit_images(half, start, SETTINGS, SHORT, kept(False), end)
    rest: list[int] = []
    again, history_again = fit_images(half, start, SETTINGS, SHORT, kept(True), lambda done, total: rest.append(done))
    assert len(rest) == 28 - batch // 4 * 4
    assert equal(again, whole)
    assert history_again == history
    done, _ = fit_images(half, start, SETTINGS, SHORT, kept(True), lambda *_: pytest.fail("nothing was left to do"))
    assert equal(done, whole)


def test_an_image_that_is_not_finite_is_named(half: HalfSet, seen: Statistics, tmp_path: Path) -> None:
    """And the state before it can be loaded."""
    images = half.images.read(np.arange(len(half.particles)))
    images[half.seen[7], 3, 4] = 1e38
    spoilt = replace(half, images=ImagesInMemory(images))
    kept = Checkpoints(tmp_path, resume=True, pace=Pace(0, 0)).named("fit1")
    with np.errstate(all="ignore"), pytest.raises(InputError) as caught:
        fit_images(spoilt, start_of(seen), SETTINGS, replace(SHORT, round=1, batch=(8, 8)), kept)
    assert half.particles.ids[half.seen[7]] in str(caught.value)
    assert "\n" not in str(caught.value)
    state = kept.load()
    assert state is None or all(torch.isfinite(tensor).all() for tensor in state.tensors.values())


def test_an_image_is_seen_as_any_of_its_mates(seen: Statistics) -> None:
    """Its misfit is that of the model turned the other way."""
    operators = symmetry_operators("C3")
    half = half_set(10, symmetry=operators)
    model, rows = start_of(seen), np.arange(10)
    images = half.images.read(rows)
    for number, operator in enumerate(operators):
        turned = model.map(lambda name, t: t @ torch.from_numpy(operator).T.float() if name == "centres" else t)  # noqa: B023
        one, _ = Misfit(half, 6.0).of(model, rows, images, np.full(10, number))
        other, _ = Misfit(half, 6.0).of(turned, rows, images, np.zeros(10, dtype=np.int64))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)


def test_few_images_need_no_unseen_ones(half: HalfSet, seen: Statistics) -> None:
    few = replace(half, seen=half.seen[:12], unseen=half.unseen[:0])
    _, history = fit_images(few, start_of(seen), SETTINGS, SHORT)
    assert history.stopped_by == "maximum number of rounds"
    assert history.checks == []


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_ramp_takes_no_side(exponent: float, half: HalfSet) -> None:
    """It is symmetric and, but for the mean, positive: a gradient that passed it still leads downhill."""
    misfit = Misfit(half, 3.0)
    a, b = torch.randn(2, 1, BOX, BOX, generator=torch.Generator().manual_seed(0))
    forth, back = (misfit.ramped(a, exponent) * b).sum(), (a * misfit.ramped(b, exponent)).sum()
    assert forth.item() == pytest.approx(back.item(), rel=1e-4, abs=1e-4)
    assert (misfit.ramped(a, exponent) * a).sum() > 0


def test_refused_where_refused(refuses: Callable, half: HalfSet, seen: Statistics, tmp_path: Path) -> None:
    """A state of another job."""
    start = start_of(seen)
    jobs = [Checkpoints(tmp_path, True, {"seed": seed}, pace=Pace(0, 0)).named("fit1") for seed in (1, 2)]
    fit_images(half, start, SETTINGS, replace(SHORT, max_rounds=1, anneal_rounds=1), jobs[0])
    with refuses("seed 1 there, 2 here"):
        fit_images(half, start, SETTINGS, SHORT, jobs[1])
