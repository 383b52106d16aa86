"""Within a mask that ends abruptly, coarse detail does not vouch for fine detail."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.fourier import maps
from emsplat.validation.bands import bands_of, moments_by_bands, smear
from emsplat.validation.correlation import PAIRS, fsc, moments
from emsplat.validation.validate import validate
from experiment import Experiment, noise, particle

Volume = np.ndarray


def hard_mask(density: Volume, share: float) -> Volume:
    """1 at this share of the voxels, the densest of the low-passed map, and 0 elsewhere: no soft edge."""
    smooth = maps.low_pass(density, 1.0, 10.0)
    return (smooth > np.quantile(smooth, 1 - share)).astype(np.float32)


@pytest.mark.parametrize(("box_size", "diameter"), [(32, 20), (33, 8), (64, 40), (128, 60), (12, 6)])
def test_bands_cover_every_shell_once(box_size: int, diameter: float) -> None:
    mask = maps.soft_sphere(box_size, diameter, 2)
    bands, margin = bands_of(mask), smear(mask)
    shells = [shell for band in bands for shell in range(band.first, band.last + 1)]
    assert shells == list(range(1, box_size // 2 + 1))
    assert bands[0].cut == 0
    assert all(band.cut in (0, band.first - margin) for band in bands)


def test_one_band_has_the_moments_of_the_masked_maps_without_what_is_coarser() -> None:
    rng = np.random.default_rng(0)
    mask = maps.soft_sphere(24, 10, 2)
    volumes = {name: noise(rng, 24) for name in ("r1", "r2", "v1", "v2")}
    found = moments_by_bands({name: maps.half_spectrum(v) for name, v in volumes.items()}, mask)
    for band in bands_of(mask):
        high_pass = (np.arange(40) >= band.cut).astype(float)
        cut = {name: maps.radial_filter(v, high_pass) if band.cut else v for name, v in volumes.items()}
        shell = maps.shell_index(24)
        spectra = {name: np.where(shell >= band.cut, maps.half_spectrum(v), 0) for name, v in volumes.items()}
        cut = {name: maps.from_half_spectrum(spectrum, 24) * mask for name, spectrum in spectra.items()}
        expected = moments({name: maps.half_spectrum(v) for name, v in cut.items()}, 24)
        here = slice(band.first - 1, band.last)
        for pair in (*PAIRS, "products", "terms"):
            np.testing.assert_allclose(getattr(found, pair)[here], getattr(expected, pair)[here], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("box_size", "falloff", "half_at"), [(64, 12.0, 0.4), (49, 8.0, 0.5)])
def test_within_a_soft_mask_both_ways_tell_the_truth(box_size: int, falloff: float, half_at: float) -> None:
    experiment = Experiment(box_size, falloff, half_at, 0.3, seed=7)
    errors, apart = [], []
    for _ in range(4):
        raw, gaussian = experiment.run()
        plain, bands = (
            validate(*raw, *gaussian, experiment.mask, 1.5, 0, by_bands=by_bands) for by_bands in (False, True)
        )
        assert bands.resolution == pytest.approx(plain.resolution, rel=0.02)
        assert abs(bands.limit_shell - plain.limit_shell) <= 2
        truth = fsc(0.5 * (gaussian[0] + gaussian[1]), experiment.truth, experiment.mask)
        shown = slice(0, bands.limit_shell)
        errors.append(np.abs(bands.c_map - truth)[shown].mean())
        apart.append(np.abs(bands.c_map - plain.c_map)[shown].max())
        np.testing.assert_array_equal(bands.raw_half_masked, plain.raw_half_masked)
    assert np.mean(errors) < 0.012
    assert np.mean(apart) < 0.03


@pytest.mark.parametrize("share", [0.07, 0.03])
@pytest.mark.parametrize(("box_size", "last"), [(48, 10), (64, 12)])
def test_a_mask_without_an_edge_measures_nothing_that_is_not_there(box_size: int, last: int, share: float) -> None:
    """Clean maps that hold signal up to a shell and noise beyond."""
    rng = np.random.default_rng(3)
    truth = maps.radial_filter(particle(rng, box_size, 3.0), (np.arange(box_size) <= last).astype(float))
    raw = [truth + truth.std() * noise(rng, box_size) for _ in range(2)]
    gaussian = [maps.radial_filter(r, np.exp(-0.5 * (np.arange(box_size) / last) ** 2)) for r in raw]
    mask = hard_mask(truth, share)
    plain, bands = (validate(*raw, *gaussian, mask, 1.0, 0, by_bands=by_bands) for by_bands in (False, True))
    assert last - 1 <= bands.limit_shell <= last + smear(mask) + 2  # shells are pooled, too
    assert bands.resolution is not None and box_size / bands.resolution <= last + smear(mask) + 2
    assert plain.limit_shell > last + 2 * smear(mask)  # what leaks is taken for signal without the bands


@pytest.mark.parametrize("share", [0.1, 0.02])
def test_noise_alone_has_no_resolution_within_a_mask_without_an_edge(share: float) -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        raw = [noise(rng, 32) for _ in range(2)]
        gaussian = [maps.low_pass(r, 1.0, 4.0) for r in raw]
        for mask in (hard_mask(raw[0] + raw[1], share), hard_mask(noise(rng, 32), share)):
            verdict = validate(*raw, *gaussian, mask, 1.0, 0, by_bands=True)
            assert (verdict.resolution, verdict.resolution_kind) == (None, "not_measurable")
