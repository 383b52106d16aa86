"""The standard error of the map, against known truths."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.fourier import maps
from emsplat.validation.combination import combine
from emsplat.validation.uncertainty import standard_error
from emsplat.validation.validate import validate
from experiment import Experiment, noise


def filled(experiment: Experiment) -> Experiment:
    """With a truth that fills its outline, as molecules do: isolated points have errors that are isolated, too."""
    d = experiment.box_size
    texture = maps.low_pass(noise(experiment.rng, d), 1.0, 3.0)
    density = (2 + texture / texture.std()) * maps.soft_sphere(d, 0.5 * d, 3)
    experiment.truth = (density * (experiment.truth.std() / density.std())).astype(np.float32)
    return experiment


@pytest.mark.parametrize(
    ("box_size", "falloff", "half_at", "prior_error"), [(64, 12.0, 0.6, 0.05), (49, 8.0, 0.5, 0.3), (48, 6.0, 0.8, 0.1)]
)
def test_as_many_voxels_lie_within_it_as_should(
    box_size: int, falloff: float, half_at: float, prior_error: float
) -> None:
    experiment = filled(Experiment(box_size, falloff, half_at, prior_error, seed=5))
    within_one, within_two = [], []
    for _ in range(4):
        raw, gaussian = (tuple(pair) for pair in experiment.run())
        found = validate(*raw, *gaussian, experiment.mask, 1.5, 0)
        combination = combine(raw, gaussian, experiment.mask, found.limit_shell, found.last_shell)
        errors = standard_error(raw, combination.halves, experiment.mask, found.last_shell)
        truth = maps.radial_filter(experiment.truth, np.ones(found.last_shell + 1))
        particle = experiment.mask >= 0.5
        off = np.abs(0.5 * (combination.halves[0] + combination.halves[1]) - truth)[particle] / errors[particle]
        within_one.append(np.mean(off <= 1))
        within_two.append(np.mean(off <= 2))
        assert np.all(errors[experiment.mask == 0] == 0) and np.all(errors[particle] > 0)
    assert np.mean(within_one) == pytest.approx(0.68, abs=0.06)
    assert np.mean(within_two) == pytest.approx(0.95, abs=0.03)


def test_it_tells_poor_places_from_good_ones() -> None:
    """Noise that is three times as strong on one side of the particle."""
    experiment = Experiment(48, 6.0, 0.8, 0.0)
    left = np.where(np.arange(48) < 24, np.float32(3), np.float32(1))
    halves = [experiment.truth + 0.05 * experiment.truth.max() * left * noise(experiment.rng, 48) for _ in range(2)]
    errors = standard_error(tuple(halves), tuple(halves), experiment.mask, 24)
    particle = experiment.mask > 0.9
    assert np.median(errors[:, :, :16][particle[:, :, :16]]) > 2 * np.median(errors[:, :, 32:][particle[:, :, 32:]])


def test_what_both_halves_miss_counts() -> None:
    """Half maps that agree perfectly and are wrong."""
    experiment = Experiment(48, 6.0, 0.8, 0.0)
    raw = tuple(experiment.truth + 0.1 * experiment.truth.std() * noise(experiment.rng, 48) for _ in range(2))
    blurred = maps.low_pass(experiment.truth, 1.0, 8.0)
    errors = standard_error(raw, (blurred, blurred), experiment.mask, 24)
    particle = experiment.mask > 0.5
    true = np.sqrt(np.mean(np.square(blurred - experiment.truth)[particle]))
    assert np.sqrt(np.mean(np.square(errors[particle]))) == pytest.approx(true, rel=0.1)


def test_noise_alone_is_as_uncertain_as_it_is_strong() -> None:
    rng = np.random.default_rng(1)
    raw = (noise(rng, 32), noise(rng, 32))
    halves = tuple(maps.low_pass(r, 1.0, 4.0) for r in raw)
    mask = maps.soft_sphere(32, 20, 3)
    errors = standard_error(raw, halves, mask, 16)
    volume = 0.5 * (halves[0] + halves[1])
    assert np.mean(np.abs(volume[mask > 0.5]) <= errors[mask > 0.5]) == pytest.approx(0.68, abs=0.12)


def test_an_empty_mask_has_no_errors() -> None:
    empty = np.zeros((16,) * 3, np.float32)
    assert not standard_error((empty, empty), (empty, empty), empty, 8).any()
