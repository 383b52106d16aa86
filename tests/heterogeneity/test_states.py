"""The error of a state's difference, and the halves that are combined to its map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emsplat.fourier import maps
from emsplat.fourier.slices import fourier_volume
from emsplat.heterogeneity.latents import Latents
from emsplat.heterogeneity.states import _difference, _judged, _states_of_points, _weights
from emsplat.imaging.forward import ForwardModel
from emsplat.settings import HeterogeneitySettings
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.validation.correlation import fsc
from emsplat.validation.directions import measured_density
from phantom import ImagesInMemory, accumulated, imagined_particles, lopsided_map

BOX, LIMIT = 32, 12
RNG = np.random.default_rng(0)
MASK = maps.soft_sphere(BOX, 20, 3)


def band_limited(strength: float) -> np.ndarray:
    curve = np.where(np.arange(BOX // 2 + 1) <= LIMIT, 1.0, 0.0)
    return maps.radial_filter(strength * RNG.standard_normal((BOX,) * 3, dtype=np.float32), curve)


def test_a_state_is_compared_with_all_images_by_their_weights_in_the_states() -> None:
    """If junk counted in one of the two inversions only, they would differ in scale."""
    n = 20
    latents = Latents(
        np.array([str(i) for i in range(n)]), np.ones(n, np.int8), np.zeros((n, 1)), np.zeros((n, 1, 1)), np.ones(n),
        RNG.uniform(size=n), np.zeros(n), np.zeros(n, np.int32),
    )  # fmt: skip
    posterior = RNG.dirichlet(np.ones(5), n).astype(np.float32)
    weights = _weights(latents, posterior, np.array([0, 1, 1, 0, 2]))
    assert weights.shape == (n, 4) and weights[:, -1] == pytest.approx(1 - latents.junk)
    assert weights[:, :-1].sum(axis=1) == pytest.approx(weights[:, -1])


def test_the_error_of_a_difference_is_what_it_is_off_by() -> None:
    """Also where noise is stronger on one side; a single voxel's halves would say next to nothing."""
    x = (np.arange(BOX) - BOX // 2) / BOX
    stronger = np.exp(2 * x).astype(np.float32)[None, None, :]
    truth = band_limited(1.0) * MASK
    raw = [truth + stronger * band_limited(1.0) for _ in range(2)]
    found = _difference((raw[0], raw[1]), [np.zeros_like(truth)] * 2, MASK, LIMIT)
    inside = MASK > 0.5
    z = (found.map - truth)[inside] / found.error[inside]
    assert 0.9 < np.sqrt(np.mean(z**2)) < 1.1
    assert 0.62 < np.mean(np.abs(z) < 1) < 0.74
    left, right = (found.error[inside & (stronger * np.ones_like(MASK) < s)].mean() for s in (0.9, 99))
    assert left < right
    assert found.significance > 5


def test_a_state_without_difference_is_not_significant() -> None:
    noise = [band_limited(1.0), band_limited(1.0)]
    found = _difference((noise[0], noise[1]), [np.zeros_like(MASK)] * 2, MASK, LIMIT)
    assert abs(found.significance) < 4


def test_a_state_that_is_all_images_has_no_difference() -> None:
    found = _difference((MASK, MASK), [MASK, MASK], MASK, LIMIT)
    assert (found.correlation, found.significance) == (0, 0)


@pytest.mark.parametrize("lacking", ["nothing", "one half", "particles"])
def test_a_state_needs_particles_of_both_halves(lacking: str) -> None:
    """Otherwise one of its half maps would be made of nothing."""
    group = np.repeat([0, 1, 2], [200, 200, 40])
    n = len(group)
    half = np.tile([1, 2], n // 2).astype(np.int8)
    half[(group == 2) & (lacking == "one half")] = 1
    junk = np.where((group == 2) & (lacking == "particles"), 0.49, 0.0)
    points = np.array([[0.0], [5.0], [10.0]])
    mean = points[group] + 0.1 * np.random.default_rng(0).standard_normal((n, 1))
    nowhere = np.full(n, -1, dtype=np.int32)
    latents = Latents(np.arange(n).astype(str), half, mean, np.ones((n, 1, 1)), np.ones(n), junk, np.zeros(n), nowhere)
    posterior = np.eye(3, dtype=np.float32)[group]
    found = _states_of_points(latents, points, posterior, HeterogeneitySettings(states=3))
    assert len(set(found.tolist())) == (3 if lacking == "nothing" else 2)
    assert (found[2] == found[1]) == (lacking != "nothing")


def test_half_maps_of_a_state_combine_the_decoder_with_the_inversion() -> None:
    """The combination of two estimates with errors of their own is nearer to the truth, and c_map says how near."""
    soft = maps.radial_filter(
        RNG.standard_normal((BOX,) * 3, dtype=np.float32), np.exp(-0.15 * np.arange(BOX // 2 + 1))
    )
    truth = (10 * soft * MASK).astype(np.float32)
    bias = np.exp(-0.08 * np.arange(BOX // 2 + 1))
    decoded = [maps.radial_filter(truth, bias) + 0.6 * maps.radial_filter(band_limited(1.0), bias) for _ in range(2)]
    raw = [truth + band_limited(0.8) for _ in range(2)]
    halves, found = _judged((raw[0], raw[1]), (decoded[0], decoded[1]), MASK, 2.0, 0, None)
    shells = slice(0, found.limit_shell)

    def nearness(volume: np.ndarray) -> float:
        return float(np.nanmean(fsc(volume, truth, MASK)[shells]))

    combined = nearness(0.5 * (halves[0] + halves[1]))
    assert combined > max(nearness(0.5 * (decoded[0] + decoded[1])), nearness(0.5 * (raw[0] + raw[1]))) + 0.002
    assert abs(float(np.nanmean(found.c_map[shells])) - combined) < 0.005


@pytest.mark.parametrize("signal", [True, False])
def test_a_state_that_is_seen_from_one_side_is_measurable_where_it_was_seen(signal: bool) -> None:
    """Directions that no view has reached hold noise; they do not outvote those that hold signal."""
    box_size, n, noise, alone = 48, 800, 8.0, np.eye(3)[None]
    rng = np.random.default_rng(0)
    particles = imagined_particles(n, box_size, pixel_size=4.0)
    angles = np.stack([rng.uniform(-180, 180, n), rng.uniform(0, 15, n), rng.uniform(-180, 180, n)], axis=1)
    particles = replace(particles, euler_angles_in_degrees=angles)
    model = ForwardModel.of(particles)
    clean = model.images(model.from_volume(fourier_volume(lopsided_map(box_size)))).numpy()
    images = (signal * clean + noise * clean.std() * rng.normal(size=clean.shape)).astype(np.float32)
    power = np.full((1, box_size // 2 + 1), (noise * clean.std() * box_size) ** 2)
    settings = AccumulationSettings(box_size, box_size, power, alone)
    halves = accumulated(particles, ImagesInMemory(images), np.arange(n) % 2, settings)
    raw = halves[0].raw_map(), halves[1].raw_map()
    decoded = maps.low_pass(raw[0], 4.0, 20.0), maps.low_pass(raw[1], 4.0, 20.0)
    density = measured_density(particles.poses.rotations, alone)
    _, found = _judged(raw, decoded, maps.soft_sphere(box_size, 28, 4), 4.0, 0, density)
    assert (found.resolution_kind != "not_measurable") == signal
