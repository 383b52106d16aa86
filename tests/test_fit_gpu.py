"""The fit as a graphics card does it, on torch's CPU: only streams and graphs are left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from emsplat import maps
from emsplat.correlation import fsc
from emsplat.devices import CPU
from emsplat.fit import FitSettings, QuadraticLoss, fit_gaussians, gaussians_of, initial_gaussians
from emsplat.fit_gpu import DeviceLoss, Replayed, smoothed
from emsplat.simulation.run import signal_images
from emsplat.simulation.slices import fourier_volume
from emsplat.statistics import PassSettings, Statistics, gather_statistics
from phantom import ImagesInMemory, imagined_particles, lopsided_map

CARD = torch.device("cpu", 0)  # stands for one: what is told apart from the processor, and is there
BOX = 24


@pytest.fixture(scope="module")
def statistics() -> tuple[Statistics, Statistics]:
    """Of the seen and the unseen images of a half."""
    particles = imagined_particles(300, BOX, pixel_size=4.0)
    images = signal_images(fourier_volume(lopsided_map(BOX)), particles)
    images += 0.3 * images.std() * np.random.default_rng(0).standard_normal(images.shape, dtype=np.float32)
    settings = PassSettings(BOX, 2 * BOX, np.ones((1, BOX // 2 + 1)), np.eye(3)[None])
    subset = (np.arange(300) % 5 == 0).astype(np.int8)
    seen, unseen = gather_statistics(particles, ImagesInMemory(images), subset, settings)
    return seen, unseen


@pytest.mark.parametrize(("extent", "period"), [(20, 40), (21, 27), (24, 48), (BOX, 30)])
def test_the_loss_is_that_of_the_processor(statistics: tuple[Statistics, Statistics], extent: int, period: int) -> None:
    volume = torch.from_numpy(np.random.default_rng(1).random((extent,) * 3, dtype=np.float32))
    ours, expected = DeviceLoss(statistics[0], extent, period, CARD), QuadraticLoss(statistics[0], extent, period)
    value, gradient = ours.at(volume)
    wanted, by_volume = expected.value_and_gradient(volume.numpy())
    assert float(value) == pytest.approx(wanted, rel=1e-4)
    assert np.linalg.norm(gradient.numpy() - by_volume) < 1e-5 * np.linalg.norm(by_volume)
    assert ours.best_mass(volume) == pytest.approx(expected.best_mass(volume), rel=1e-4)


def test_the_gradient_of_the_loss_is_its_slope(statistics: tuple[Statistics, Statistics]) -> None:
    """Of which a finite difference along any direction is exact to rounding, for it is quadratic."""
    rng = np.random.default_rng(2)
    volume, direction = (torch.from_numpy(rng.random((20,) * 3, dtype=np.float32)) for _ in range(2))
    loss = DeviceLoss(statistics[0], 20, 40, CARD)
    up, down = (float(loss.at(volume + step * direction)[0]) for step in (1, -1))
    assert float((loss.at(volume)[1] * direction).sum()) == pytest.approx(0.5 * (up - down), rel=1e-3)


@pytest.mark.parametrize("sigma", [0.7, 1.9])
def test_the_smoothing_of_the_gradient_is_scipys(sigma: float) -> None:
    volume = np.random.default_rng(3).standard_normal((3, 14, 11)).astype(np.float32)
    expected = gaussian_filter(volume, sigma)
    assert np.abs(smoothed(torch.from_numpy(volume), sigma).numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("isotropic", [False, True])
def test_the_fit_leads_to_the_map_of_the_processor(statistics: tuple[Statistics, Statistics], isotropic: bool) -> None:
    """With rounds of density control and of annealing.

    Adam at its full step sizes magnifies rounding until another of many equal maps is found; smaller steps do not.
    """
    seen, unseen = statistics
    mask = maps.soft_mask(seen.raw_map(), 4.0, 4.0 * BOX)
    settings = FitSettings.for_particle(150, float(mask.sum()), isotropic, seed=1)
    steps = {name: 0.2 * size for name, size in settings.step_sizes.items()}
    settings = replace(settings, step_sizes=steps, max_steps=50)
    models, histories = [], []
    for device in (CPU, CARD):
        start = initial_gaussians(seen, mask, BOX, settings, device=device)
        parameters, history = fit_gaussians(seen, unseen, start, BOX, settings, device=device)
        assert all(tensor.device == torch.zeros(0).device for tensor in (parameters.centres, parameters.log_masses))
        models.append(gaussians_of(parameters, 4.0).voxelise(BOX, 4.0))
        histories.append(history)
    assert histories[0].counts == histories[1].counts
    assert histories[1].counts[0] < histories[1].counts[-1]
    assert histories[1].losses[-1] == pytest.approx(histories[0].losses[-1], rel=1e-3)
    assert fsc(*models).min() > 0.999


def test_work_that_cannot_be_recorded_is_done_every_time() -> None:
    counted = torch.zeros(())
    work = Replayed(lambda: counted.add_(1), CARD, say=pytest.fail)
    for number in range(1, 5):
        assert float(work()) == number
        work.forget()
