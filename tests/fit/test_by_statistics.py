from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emsplat.fit.by_statistics import FitSettings, fit_statistics
from emsplat.fit.initial import initial_gaussians
from emsplat.fourier import maps
from emsplat.fourier.slices import fourier_volume
from emsplat.models.gaussian_model import GaussianModel, GaussianSettings
from emsplat.models.gaussians import merge
from emsplat.runtime.checkpoint import Checkpoints, Pace
from emsplat.runtime.context import Task
from emsplat.settings import ReconstructSettings
from emsplat.simulation.run import signal_images
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.statistics.loss import QuadraticLoss, fitting_period
from emsplat.statistics.sufficient import Statistics
from emsplat.validation.correlation import fsc
from phantom import ImagesInMemory, accumulated, imagined_particles, lopsided_map

BOX, PIXEL = 32, 4.0
WHOLE = np.eye(3)[None]


def statistics_of(n: int, reach: int, sigma: float) -> tuple[Statistics, Statistics]:
    """Of four images in five of a particle in white noise, and of the others."""
    particles = imagined_particles(n, BOX, pixel_size=PIXEL)
    images = signal_images(fourier_volume(lopsided_map(BOX)), particles)
    images += sigma * np.random.default_rng(2).standard_normal(images.shape, np.float32)
    noise = np.full((1, BOX // 2 + 1), BOX**2 * sigma**2)
    subset = (np.arange(n) % 5 == 0).astype(np.int8)
    training, held_out = accumulated(
        particles,
        ImagesInMemory(images),
        subset,
        AccumulationSettings(BOX, reach, noise, WHOLE),  # type: ignore[arg-type]
    )
    return training, held_out


def test_small_cubes_are_convolved_exactly_and_large_ones_nearly() -> None:
    assert fitting_period(40) == 80
    assert [fitting_period(d) / d for d in (96, 108, 200)] == pytest.approx([1.25, 1.25, 1.25], abs=0.02)
    training, _ = statistics_of(300, 2 * BOX, sigma=1.0)
    particle = lopsided_map(BOX) * maps.soft_sphere(BOX, 0.7 * BOX, 3.0)
    exact, near = (QuadraticLoss(training, BOX, period).convolve(particle) for period in (2 * BOX, round(1.25 * BOX)))
    inside = maps.distance_from_origin(BOX) < 0.4 * BOX
    off = np.linalg.norm((near - exact)[inside]) / np.linalg.norm(exact[inside])
    assert 0 < off < 0.02


def test_the_average_of_fits_is_nearer_the_truth_than_each() -> None:
    truth = lopsided_map(BOX)
    training, held_out = statistics_of(400, fitting_period(BOX), sigma=6.0)
    mask = maps.soft_mask(training.raw_map(), PIXEL, PIXEL * BOX)
    models, steps = [], None
    for seed in range(3):
        start = initial_gaussians(training, mask, BOX, GaussianSettings.for_particle(300, float(mask.sum())), seed)
        model, history = fit_statistics(training, held_out, start, FitSettings(approach_steps=steps, seed=seed))
        models.append(model.parameters.gaussians(PIXEL))
        steps = history.anneal_from  # as in a job: the first one searches

    def quality(model):
        return fsc(model.voxelise(BOX, PIXEL), truth, np.ones((BOX,) * 3, dtype=np.float32)).mean()

    average = merge(*models)
    assert len(average) == sum(map(len, models))
    assert torch.isclose(average.masses().sum(), torch.stack([m.masses().sum() for m in models]).mean(), rtol=1e-4)
    assert quality(average) > max(map(quality, models))


def test_the_number_of_fits_must_be_positive(refuses) -> None:
    with refuses("--n-fits 0", "a positive number"):
        ReconstructSettings(n_fits=0)


def test_what_is_not_finite_ends_a_fit(refuses: Callable, tmp_path: Path) -> None:
    """And the state before it is whole."""
    training, _ = statistics_of(100, fitting_period(BOX), sigma=1.0)
    mask = maps.soft_mask(training.raw_map(), PIXEL, PIXEL * BOX)
    settings = FitSettings(max_steps=8)
    start = initial_gaussians(training, mask, BOX, GaussianSettings.for_particle(50, float(mask.sum())), seed=0)
    b = training.backprojection
    spoilt = replace(training, backprojection=np.where(b == b.max(), np.nan, b))
    with refuses("step 1 of the fit: the loss", "emsplat check"):
        fit_statistics(spoilt, None, start, settings)
    job = Checkpoints(tmp_path, resume=True, pace=Pace(0, 0))

    def spoil(model: GaussianModel) -> None:
        if job.pace.states == 4:
            model.parameters.log_masses.data[0] = 1e38  # a finite number of which the exponential is none

    with refuses("step 6 of the fit", "not a finite number"):
        fit_statistics(training, None, start, settings, Task(watch=spoil, checkpoint=job.named("fit1")))
    kept = job.load("fit1")
    assert kept is not None
    assert kept.facts["done"] == 5
    assert all(torch.isfinite(tensor).all() for tensor in kept.tensors.values())
