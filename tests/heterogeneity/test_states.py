"""The error of a state's difference, and the halves that are combined to its map."""

from __future__ import annotations

import numpy as np

from emsplat.fourier import maps
from emsplat.heterogeneity.states import _difference, _judged
from emsplat.validation.correlation import fsc

BOX, LIMIT = 32, 12
RNG = np.random.default_rng(0)
MASK = maps.soft_sphere(BOX, 20, 3)


def band_limited(strength: float) -> np.ndarray:
    curve = np.where(np.arange(BOX // 2 + 1) <= LIMIT, 1.0, 0.0)
    return maps.radial_filter(strength * RNG.standard_normal((BOX,) * 3, dtype=np.float32), curve)


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


def test_half_maps_of_a_state_combine_the_decoder_with_the_inversion() -> None:
    """The combination of two estimates with errors of their own is nearer to the truth, and c_map says how near."""
    soft = maps.radial_filter(
        RNG.standard_normal((BOX,) * 3, dtype=np.float32), np.exp(-0.15 * np.arange(BOX // 2 + 1))
    )
    truth = (10 * soft * MASK).astype(np.float32)
    bias = np.exp(-0.08 * np.arange(BOX // 2 + 1))
    decoded = [maps.radial_filter(truth, bias) + 0.6 * maps.radial_filter(band_limited(1.0), bias) for _ in range(2)]
    raw = [truth + band_limited(0.8) for _ in range(2)]
    halves, found = _judged((raw[0], raw[1]), (decoded[0], decoded[1]), MASK, 2.0, 0)
    shells = slice(0, found.limit_shell)

    def nearness(volume: np.ndarray) -> float:
        return float(np.nanmean(fsc(volume, truth, MASK)[shells]))

    combined = nearness(0.5 * (halves[0] + halves[1]))
    assert combined > max(nearness(0.5 * (decoded[0] + decoded[1])), nearness(0.5 * (raw[0] + raw[1]))) + 0.002
    assert abs(float(np.nanmean(found.c_map[shells])) - combined) < 0.005
