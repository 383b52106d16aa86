"""The combination of Gaussians and direct inversion, against known truths, pure noise and direct sums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emsplat.fourier import maps
from emsplat.validation.combination import Combination, _non_negative, _shell_grams, combine, places
from emsplat.validation.correlation import fsc
from emsplat.validation.validate import FIRST_SHELL, Validation, validate, validate_combination
from experiment import Experiment

Volume = np.ndarray


def combined(experiment: Experiment) -> tuple[Combination, Validation, Volume, list[Volume], list[Volume]]:
    """The combination, its validation, the map it makes, and the half maps that it was made of."""
    raw, gaussian = experiment.run()
    found = validate(*raw, *gaussian, experiment.mask, 1.5, 0)
    combination = combine(tuple(raw), tuple(gaussian), experiment.mask, found.limit_shell, found.last_shell)
    judged = validate_combination(found, combination, *raw, experiment.mask)
    return combination, judged, 0.5 * (combination.halves[0] + combination.halves[1]), raw, gaussian


@pytest.mark.parametrize("box_size", [12, 13])
def test_sums_are_those_of_the_full_spectra(box_size: int) -> None:
    rng = np.random.default_rng(0)
    volumes = rng.standard_normal((4, *(box_size,) * 3)).astype(np.float32)
    spectra = [maps.half_spectrum(v) for v in volumes]
    grams = _shell_grams(spectra, box_size)
    for i in range(4):
        for j in range(4):
            expected = maps.shell_correlation(spectra[i], spectra[j], box_size)[1:]
            np.testing.assert_allclose(grams[:, i, j], expected, rtol=1e-4, atol=1e-3 * box_size**3)


def testplaces_are_shares_of_every_place_by_its_density() -> None:
    density = np.zeros((24,) * 3, dtype=np.float32)
    density[8:16, 8:16, 8:16] = np.linspace(0.1, 4, 8, dtype=np.float32)
    classes = places(density, np.ones_like(density), 1.0, (0.1, 0.5, 0.9))
    np.testing.assert_allclose(sum(classes), 1, atol=1e-5)
    assert classes[0][2, 2, 2] == 1 and classes[-1][12, 12, 14] == 1
    alike = places(np.ones((8,) * 3, np.float32), np.ones((8,) * 3, np.float32), 1.0, (0.1, 0.5, 0.9))
    np.testing.assert_allclose(sum(alike), 1, atol=1e-5)


def test_weights_are_the_best_that_are_not_negative() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        half = rng.standard_normal((4, 6))
        gram, truth = half @ half.T, rng.standard_normal(4)
        a = _non_negative(gram, truth)
        slope = gram @ a - truth
        assert np.all(a >= 0) and np.all(slope > -1e-9) and abs(a @ slope) < 1e-9


@pytest.mark.parametrize(
    ("box_size", "falloff", "half_at", "prior_error"), [(64, 12.0, 0.4, 0.3), (49, 8.0, 0.5, 0.3), (32, 6.0, 0.4, 0.3)]
)
def test_it_is_nearer_to_the_truth_and_says_how_near(
    box_size: int, falloff: float, half_at: float, prior_error: float
) -> None:
    experiment = Experiment(box_size, falloff, half_at, prior_error, seed=7)
    errors, signed, within, scaled = [], [], [], []
    for _ in range(12):
        combination, judged, volume, raw, gaussian = combined(experiment)
        shown = slice(0, judged.limit_shell)
        of_map, of_gaussians, of_raw = (
            fsc(v, experiment.truth, experiment.mask)[shown]
            for v in (volume, 0.5 * (gaussian[0] + gaussian[1]), 0.5 * (raw[0] + raw[1]))
        )
        assert of_map.mean() > max(of_gaussians.mean(), of_raw.mean()) + 0.01
        error, se = judged.c_map[shown] - of_map, judged.c_map_se[shown]
        errors.append(np.abs(error).mean())
        signed.append(error.mean())
        within.append(np.abs(error) <= np.maximum(0.03, 2 * se))
        scaled.append((error / se)[FIRST_SHELL:][se[FIRST_SHELL:] > 0.01])
        assert np.all(combination.weights >= 0)
        assert np.all(combination.weights[:, judged.last_shell :] == 0)
    # The bounds are those of the Gaussians alone, in test_validate.
    assert np.mean(np.concatenate(within)) > 0.95
    assert np.mean(errors) < (0.015 if box_size < 40 else 0.01)
    assert abs(np.mean(signed)) < 0.005
    assert 0.7 < np.sqrt(np.mean(np.square(np.concatenate(scaled)))) < 1.4


def test_the_optimism_of_fitted_weights_is_what_noise_makes() -> None:
    """Estimates that are noise alone: without the correction, chance would look like correlation."""
    rng = np.random.default_rng(3)
    box_size = 40
    mask = maps.soft_sphere(box_size, 20, 4)
    with_it, without = [], []
    for _ in range(12):
        truth = rng.standard_normal((box_size,) * 3, dtype=np.float32)
        raw, gaussian = (
            [truth + 3 * rng.standard_normal(truth.shape, dtype=np.float32) for _ in range(2)] for _ in "rg"
        )
        found = validate(*raw, *gaussian, mask, 1.5, 0)
        combination = combine(tuple(raw), tuple(gaussian), mask, box_size // 2 - 2, box_size // 2)
        true = fsc(0.5 * (combination.halves[0] + combination.halves[1]), truth, mask)
        for errors, one in ((with_it, combination), (without, replace(combination, optimism=0 * combination.optimism))):
            errors.append((validate_combination(found, one, *raw, mask).c_map - true)[3:-2])
    bias, uncorrected = np.nanmean(with_it), np.nanmean(without)
    assert uncorrected > 0.004
    assert abs(bias) < 0.6 * uncorrected


def test_the_inversion_stays_within_the_mask() -> None:
    experiment = Experiment(48, 8.0, 0.5, 0.3)
    combination, _, volume, raw, _ = combined(experiment)
    outside = maps.distance_from_origin(48) > 0.5 * 0.6 * 48 + 8
    assert np.abs(volume[outside]).max() < 0.1 * np.abs(0.5 * (raw[0] + raw[1])[outside]).max()
    assert combination.inversion_share[3] > 0.2


def test_perfect_inversions_are_taken_as_they_are() -> None:
    experiment = Experiment(40, 8.0, 0.5, 0.3)
    _, gaussian = experiment.run()
    exact = (experiment.truth, experiment.truth)
    combination = combine(exact, tuple(gaussian), experiment.mask, 20, 20)
    assert np.all(combination.inversion_share[1:] > 0.9)
    assert fsc(combination.halves[0], experiment.truth, experiment.mask)[1:-2].min() > 0.998
