"""Neural fields that are fitted as the Gaussians are: the same statistics, halves, stopping rule and checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emsplat.fit.by_statistics import fit_statistics
from emsplat.fit.fields import initial_field, settings_for
from emsplat.fourier import maps
from emsplat.fourier.slices import fourier_volume
from emsplat.models.neural_field import NeuralField
from emsplat.runtime.checkpoint import Checkpoints, Pace
from emsplat.runtime.context import Task
from emsplat.settings import FieldKind
from emsplat.simulation.run import signal_images
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.statistics.loss import fitting_period
from emsplat.statistics.sufficient import Statistics
from emsplat.validation.correlation import fsc
from phantom import ImagesInMemory, accumulated, imagined_particles, lopsided_map

BOX, PIXEL = 32, 4.0
ONES = np.ones((BOX,) * 3, dtype=np.float32)
Halves = tuple[Statistics, Statistics]


@pytest.fixture(scope="module")
def parts() -> Halves:
    """The statistics of four images in five of a particle in white noise, and those of the others."""
    particles = imagined_particles(400, BOX, pixel_size=PIXEL)
    images = signal_images(fourier_volume(lopsided_map(BOX)), particles)
    images += 4.0 * np.random.default_rng(2).standard_normal(images.shape, np.float32)
    noise = np.full((1, BOX // 2 + 1), BOX**2 * 16.0)
    subset = (np.arange(400) % 5 == 0).astype(np.int8)
    settings = AccumulationSettings(BOX, fitting_period(BOX), noise, np.eye(3)[None])
    training, held_out = accumulated(particles, ImagesInMemory(images), subset, settings)
    return training, held_out


def start_of(kind: FieldKind, parts: Halves, positive: bool = True) -> NeuralField:
    mask = maps.soft_mask(parts[0].raw_map(), PIXEL, PIXEL * BOX)
    return initial_field(kind, parts[0], mask, BOX, seed=1, positive=positive)


def quality(volume: np.ndarray) -> float:
    return float(fsc(volume, lopsided_map(BOX), ONES).mean())


@pytest.mark.parametrize("kind", ["neural-field", "hash-grid"])
def test_a_field_comes_nearer_to_a_phantom_than_the_inversion(kind: FieldKind, parts: Halves) -> None:
    start = start_of(kind, parts)
    settings = settings_for(kind, start, seed=1)
    if kind == "neural-field":  # half of the steps are enough for a phantom
        settings = replace(settings, max_steps=settings.max_steps // 2, anneal_steps=settings.anneal_steps // 2)
    model, history = fit_statistics(*parts, start, settings)
    assert history.losses[-1] < history.losses[0]
    assert history.checks
    volume = model.on_grid(BOX)
    assert quality(volume) > quality((parts[0] + parts[1]).raw_map()) + 0.05
    assert quality(volume) > 0.75


def test_an_output_of_any_sign_may_be_negative(parts: Halves) -> None:
    fitted = {}
    for positive in (True, False):
        start = start_of("hash-grid", parts, positive)
        settings = replace(settings_for("hash-grid", start, seed=1), max_steps=12, approach_steps=8, anneal_steps=4)
        fitted[positive] = fit_statistics(*parts, start, settings)[0].density().numpy()
    assert fitted[True].min() >= 0
    assert fitted[False].min() < -0.02 * fitted[False].max()


@pytest.mark.parametrize("kind", ["neural-field", "hash-grid"])
def test_a_resumed_fit_comes_to_the_same_bits(kind: FieldKind, parts: Halves, tmp_path: Path) -> None:
    start = start_of(kind, parts)
    settings = replace(settings_for(kind, start, seed=1), max_steps=16, approach_steps=12, anneal_steps=4)

    def end(done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    def kept(resume: bool) -> Checkpoints:
        return Checkpoints(tmp_path, resume, pace=Pace(0, 0))

    with pytest.raises(KeyboardInterrupt):
        fit_statistics(parts[0], None, start, settings, Task(checkpoint=kept(False).named("fit"), progress=end))
    resumed: list[int] = []
    task = Task(checkpoint=kept(True).named("fit"), progress=lambda done, total: resumed.append(done))
    again = fit_statistics(parts[0], None, start, settings, task)[0]
    assert resumed[0] > 5
    assert np.array_equal(again.on_grid(BOX), fit_statistics(parts[0], None, start, settings)[0].on_grid(BOX))
