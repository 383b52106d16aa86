"""The maps of states are judged as those of a reconstruction are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emsplat.fourier import maps
from emsplat.fourier.slices import fourier_volume
from emsplat.heterogeneity.states import judged
from emsplat.imaging.forward import ForwardModel
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.validation.directions import measured_density
from phantom import ImagesInMemory, accumulated, imagined_particles, lopsided_map

BOX, N, ALONE = 48, 800, np.eye(3)[None]
SPREAD, NOISE = 15.0, 8.0  # degrees about one direction; standard deviations of the images


@pytest.mark.parametrize("signal", [True, False])
def test_a_state_that_is_seen_from_one_side_is_measurable_where_it_was_seen(signal: bool) -> None:
    """Directions that no view has reached hold noise; they do not outvote those that hold signal."""
    rng = np.random.default_rng(0)
    particles = imagined_particles(N, BOX, pixel_size=4.0)
    angles = np.stack([rng.uniform(-180, 180, N), rng.uniform(0, SPREAD, N), rng.uniform(-180, 180, N)], axis=1)
    particles = replace(particles, euler_angles_in_degrees=angles)
    model = ForwardModel.of(particles)
    clean = model.images(model.from_volume(fourier_volume(lopsided_map(BOX)))).numpy()
    images = (signal * clean + NOISE * clean.std() * rng.normal(size=clean.shape)).astype(np.float32)
    settings = AccumulationSettings(BOX, BOX, np.full((1, BOX // 2 + 1), (NOISE * clean.std() * BOX) ** 2), ALONE)
    halves = accumulated(particles, ImagesInMemory(images), np.arange(N) % 2, settings)
    raw = halves[0].raw_map(), halves[1].raw_map()
    decoded = maps.low_pass(raw[0], 4.0, 20.0), maps.low_pass(raw[1], 4.0, 20.0)
    mask = maps.soft_sphere(BOX, 28, 4)
    density = measured_density(particles.poses.rotations, ALONE)
    _, found = judged(raw, decoded, mask, 4.0, 0, density)
    assert (found.resolution_kind != "not_measurable") == signal
