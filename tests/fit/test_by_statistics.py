from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emsplat.fit.by_statistics import FitSettings, fit_gaussians, gaussians_of, initial_gaussians
from emsplat.fourier import maps
from emsplat.fourier.slices import fourier_volume
from emsplat.models.gaussians import merge
from emsplat.models.parameters import Parameters
from emsplat.runtime.checkpoint import Checkpoints, Pace
from emsplat.settings import ReconstructSettings
from emsplat.simulation.run import signal_images
from emsplat.statistics.accumulate import AccumulationSettings, Statistics
from emsplat.statistics.loss import QuadraticLoss, fitting_period
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
    seen, unseen = accumulated(
        particles,
        ImagesInMemory(images),
        subset,
        AccumulationSettings(BOX, reach, noise, WHOLE),  # type: ignore[arg-type]
    )
    return seen, unseen


def test_small_cubes_are_convolved_exactly_and_large_ones_nearly() -> None:
    assert fitting_period(40) == 80
    assert [fitting_period(d) / d for d in (96, 108, 200)] == pytest.approx([1.25, 1.25, 1.25], abs=0.02)
    seen, _ = statistics_of(300, 2 * BOX, sigma=1.0)
    particle = lopsided_map(BOX) * maps.soft_sphere(BOX, 0.7 * BOX, 3.0)
    exact, near = (QuadraticLoss(seen, BOX, period).convolve(particle) for period in (2 * BOX, round(1.25 * BOX)))
    inside = maps.distance_from_origin(BOX) < 0.4 * BOX
    off = np.linalg.norm((near - exact)[inside]) / np.linalg.norm(exact[inside])
    assert 0 < off < 0.02


def test_the_average_of_fits_is_nearer_the_truth_than_each() -> None:
    truth = lopsided_map(BOX)
    seen, unseen = statistics_of(400, fitting_period(BOX), sigma=6.0)
    mask = maps.soft_mask(seen.raw_map(), PIXEL, PIXEL * BOX)
    models, steps = [], None
    for seed in range(3):
        settings = replace(FitSettings.for_particle(300, float(mask.sum()), False, seed), approach_steps=steps)
        start = initial_gaussians(seen, mask, BOX, settings)
        parameters, history = fit_gaussians(seen, unseen, start, BOX, settings)
        models.append(gaussians_of(parameters, PIXEL))
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
    seen, _ = statistics_of(100, fitting_period(BOX), sigma=1.0)
    mask = maps.soft_mask(seen.raw_map(), PIXEL, PIXEL * BOX)
    settings = replace(FitSettings.for_particle(50, float(mask.sum()), False, 0), max_steps=8)
    start = initial_gaussians(seen, mask, BOX, settings)
    spoilt = replace(
        seen, backprojection=np.where(seen.backprojection == seen.backprojection.max(), np.nan, seen.backprojection)
    )
    with refuses("step 1 of the fit: the loss", "emsplat check"):
        fit_gaussians(spoilt, None, start, BOX, settings)
    job = Checkpoints(tmp_path, resume=True, pace=Pace(0, 0))

    def spoil(parameters: Parameters) -> None:
        if job.pace.states == 4:
            parameters.log_masses.data[0] = 1e38  # a finite number of which the exponential is none

    with refuses("step 6 of the fit", "not a finite number"):
        fit_gaussians(seen, None, start, BOX, settings, watch=spoil, checkpoint=job.named("fit1"))
    kept = job.load("fit1")
    assert kept is not None
    assert kept.facts["done"] == 5
    assert all(torch.isfinite(tensor).all() for tensor in kept.tensors.values())
