"""The local resolution, against a truth whose quality varies in space, and against noise."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.reconstruction.reconstruct import Reconstruction
from emsplat.runtime.reporting import Reporter
from emsplat.validation.correlation import inverse, resolution_at
from emsplat.validation.local_resolution import (
    BAND_SIGMA,
    WINDOW_REACH,
    Band,
    LocalResolution,
    frequency_bands,
    local_correlation,
    local_resolution,
    whitened,
    window_centres,
)
from emsplat.validation.validate import FIRST_SHELL, validate

Volume = NDArray[np.float32]


def noise(rng: np.random.Generator, box_size: int) -> Volume:
    return rng.standard_normal((box_size,) * 3, dtype=np.float32)


class TwoDomains:
    """Points in a ball, blurred at x < 0. Raw halves with white noise, Gaussian halves that share an error."""

    def __init__(self, box_size: int, seed: int, blur: float = 40.0, noise_level: float = 0.08) -> None:
        self.rng = np.random.default_rng(seed)
        self.box_size, self.level = box_size, noise_level
        places = self.rng.uniform(-0.3, 0.3, (9 * box_size, 3)) * box_size
        places = np.rint(places[np.linalg.norm(places, axis=1) < 0.3 * box_size]).astype(int)
        sharp, soft = (np.zeros((box_size,) * 3, dtype=np.float32) for _ in range(2))
        for volume, side in ((sharp, places[:, 2] >= 0), (soft, places[:, 2] < 0)):
            np.add.at(volume, tuple((places[side] + box_size // 2).T), 1)
        square = np.square(np.arange(box_size) / box_size)
        self.truth = maps.radial_filter(sharp, np.exp(-2 * square)) + maps.radial_filter(soft, np.exp(-blur * square))
        self.mask = maps.soft_sphere(box_size, 0.66 * box_size, 4)

    def halves(self) -> tuple[list[Volume], list[Volume]]:
        """Raw and Gaussian halves."""
        raw = [self.truth + self.level * noise(self.rng, self.box_size) for _ in range(2)]
        cut = np.clip((0.9 * self.box_size / 2 - np.arange(self.box_size)) / 4 + 1, 0.15, 1)
        error = maps.radial_filter(
            0.5 * self.level * noise(self.rng, self.box_size), np.linspace(0, 1, self.box_size // 2)
        )
        return raw, [maps.radial_filter(r, cut) * self.mask + error * self.mask for r in raw]


class TrueCorrelation:
    """The definition, by full transforms and explicit sums over the window at a voxel."""

    def __init__(self, average: Volume, truth: Volume, raw: list[Volume], mask: Volume) -> None:
        self.box_size, self.mask = len(mask), mask
        k = np.fft.fftfreq(self.box_size) * self.box_size
        self.radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2)
        v, t, *r = (np.fft.fftn(volume) for volume in (average, truth, *raw))
        self.spectra = (
            v * self._by_shell(inverse(np.sqrt(self._power(v)))),
            t * self._by_shell(inverse((self._power(r[0]) * self._power(r[1])) ** 0.25)),
        )

    def _power(self, spectrum: NDArray) -> NDArray:
        shell = np.rint(self.radius).astype(int).ravel()
        return np.bincount(shell, np.abs(spectrum).ravel() ** 2)[1 : self.box_size // 2 + 1]

    def _by_shell(self, curve: NDArray) -> NDArray:
        return np.interp(self.radius, np.arange(1, self.box_size // 2 + 1), curve)

    def __call__(self, band: Band, voxels: list[tuple[int, int, int]]) -> NDArray:
        amplitude = np.exp(-0.25 * ((self.radius - band.centre) / (BAND_SIGMA * band.centre)) ** 2)
        v, t = (np.fft.ifftn(s * amplitude * (self.radius <= band.last)).real for s in self.spectra)
        reach = WINDOW_REACH * self.box_size / band.centre
        found = []
        for voxel in voxels:
            wz, wy, wx = (
                np.cos(np.pi / 2 * np.clip((np.arange(self.box_size) - c) / reach, -1, 1)) ** 2 for c in voxel
            )
            weights = self.mask * wz[:, None, None] * wy[None, :, None] * wx
            found.append(np.sum(weights * v * t) / np.sqrt(np.sum(weights * v * v) * np.sum(weights * t * t)))
        return np.array(found)


# --- the quotient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box_size", [48, 49])
def test_with_the_truth_for_raw_maps_it_is_the_definition(box_size: int) -> None:
    """On every working grid: those of the first bands have a fraction of the voxels."""
    phantom = TwoDomains(box_size, seed=1)
    _, gaussian = phantom.halves()
    average = 0.5 * (gaussian[0] + gaussian[1])
    points = window_centres(phantom.mask, box_size // 2)
    rows = [(3, 5, 4), (8, 8, 3), (9, 7, 12)]
    voxels = [tuple(int(p[i]) for p, i in zip(points, row, strict=True)) for row in rows]
    spectra, uneven = whitened(phantom.truth, phantom.truth, average, average)
    definition = TrueCorrelation(average, phantom.truth, [phantom.truth] * 2, phantom.mask)
    for band in frequency_bands(box_size // 2)[::5]:
        c = local_correlation(spectra, phantom.mask, band, points, uneven)[0]
        np.testing.assert_allclose([c[row] for row in rows], definition(band, voxels), atol=0.01)


def test_it_is_unbiased_and_its_standard_error_is_right() -> None:
    """Over draws of the noise, each window against the true correlation of its own map."""
    errors, scaled = [], []
    places = [14, 24, 34]
    voxels = [(24, y, x) for y in places for x in places]
    for seed in range(8):
        phantom = TwoDomains(48, seed)
        raw, gaussian = phantom.halves()
        definition = TrueCorrelation(0.5 * (gaussian[0] + gaussian[1]), phantom.truth, raw, phantom.mask)
        spectra, uneven = whitened(*raw, *gaussian)
        points = [np.array([24.0]), np.array(places, dtype=float), np.array(places, dtype=float)]
        for band in frequency_bands(24)[8::4]:
            c, se, raw_fsc, null = local_correlation(spectra, phantom.mask, band, points, uneven)
            used = (raw_fsc > 3 * null).ravel()
            errors.append((c.ravel() - definition(band, voxels))[used])
            scaled.append(errors[-1] / se.ravel()[used])
    assert sum(len(e) for e in errors) > 100
    assert abs(np.mean(np.concatenate(errors))) < 0.01
    assert 0.8 < np.sqrt(np.mean(np.square(np.concatenate(scaled)))) < 1.4


def test_variance_without_signal() -> None:
    """Windowed correlations of unrelated noise scatter as the standard error without signal says."""
    mask = maps.soft_sphere(40, 28, 4)
    points = [np.array([15.0, 20, 25])] * 3
    for band in (Band(8.0, 10.7), Band(14.0, 18.8), Band(20.0, 20.5)):
        values, predicted = [], []
        for seed in range(25):
            rng = np.random.default_rng(seed)
            spectra, uneven = whitened(*(noise(rng, 40) for _ in range(4)))
            _, _, raw, null = local_correlation(spectra, mask, band, points, uneven)
            values.append(raw)
            predicted.append(null)
        assert np.std(values) == pytest.approx(np.sqrt(np.mean(np.square(predicted))), rel=0.25)


# --- the resolution ---------------------------------------------------------------------------------------------------


def run(phantom: TwoDomains, limit: int | None = None) -> tuple[LocalResolution, list[Volume], list[Volume]]:
    raw, gaussian = phantom.halves()
    if limit is None:
        limit = validate(*raw, *gaussian, phantom.mask, 1.0, 0).limit_shell
    return local_resolution(*raw, *gaussian, phantom.mask, 1.0, limit), raw, gaussian


def test_a_blurred_domain_has_the_coarser_resolution_it_truly_has() -> None:
    for seed in range(3):
        phantom = TwoDomains(48, seed)
        local, raw, gaussian = run(phantom)
        definition = TrueCorrelation(0.5 * (gaussian[0] + gaussian[1]), phantom.truth, raw, phantom.mask)
        bands = [band for band in frequency_bands(24) if 48 / band.shell >= 0.999 * local.finest]
        frequency = np.array([band.shell / 48 for band in bands])
        curves = np.array([definition(band, [(24, 24, 15), (24, 24, 33)]) for band in bands]).T
        found = {}
        for x, curve in zip((15, 33), curves, strict=True):
            true = resolution_at(curve, frequency, 0.5) or local.finest
            found[x] = local.resolution[24, 24, x]
            if local.better_than[24, 24, x]:
                assert found[x] > 0.9 * true
            else:
                assert abs(found[x] - true) < max(0.1 * true, 3 * local.standard_error[24, 24, x])
        assert found[33] < 0.8 * found[15]


def test_nothing_finer_than_the_global_limit_is_claimed() -> None:
    for limit in (8, 15, 24):
        local, _, _ = run(TwoDomains(48, 5, blur=3.0, noise_level=0.01), limit)
        inside = local.mask > 0
        assert np.nanmin(local.resolution) >= 48 / limit
        assert local.finest == pytest.approx(np.nanmin(local.resolution), rel=1e-5)
        assert local.finest < 1.12 * 48 / limit
        assert np.all(np.isnan(local.resolution[~inside]))
        assert np.all(np.isnan(local.standard_error[local.better_than]))
        assert local.better_than[local.mask >= 0.5].mean() > 0.5
        filled = local.filled()
        assert np.all(filled[~inside] == 0)
        assert np.all((filled[inside] >= 48 / limit) & (filled[inside] <= local.coarsest))


def test_noise_has_none_even_where_the_global_limit_is_wrong() -> None:
    lost = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        raw = [noise(rng, 48) for _ in range(2)]
        gaussian = [maps.low_pass(np.maximum(r, 0), 1.0, 4.0) for r in raw]
        mask = maps.soft_sphere(48, 30, 4)
        local = local_resolution(*raw, *gaussian, mask, 1.0, 24)
        lost.append(local.summary()["share_not_measurable"])
        nothing = local_resolution(*raw, *gaussian, mask, 1.0, 0)
        assert np.all(np.isnan(nothing.resolution))
        assert np.all(nothing.filled()[mask > 0] == np.float32(48 / FIRST_SHELL))
        assert "nothing measurable" in nothing.text()
    assert np.mean(lost) > 0.98


def test_empty_surroundings_get_no_fine_resolution() -> None:
    """A mask much larger than the particle: where a window does not reach the particle, it claims nothing."""
    phantom = TwoDomains(64, 2, noise_level=0.03)
    phantom.truth *= np.roll(maps.soft_sphere(64, 16, 2), -10, axis=0)  # from z = 12 to 32
    raw, gaussian = phantom.halves()
    local = local_resolution(*raw, *gaussian, phantom.mask, 1.0, 32)
    empty = phantom.mask >= 0.5
    empty[:44] = False  # 12 voxels on: windows of less than 3 Å do not reach back
    assert np.mean(local.resolution[empty] < 3) < 0.02
    assert np.nanmedian(local.resolution[18:26, 30:36, 34:40]) < 0.6 * np.median(local.filled()[empty])


def test_the_summary_counts_the_particle() -> None:
    mask = np.zeros((4, 4, 4), dtype=np.float32)
    mask[1:3] = 1
    resolution = np.full(mask.shape, np.nan, dtype=np.float32)
    resolution[1] = 4
    resolution[2, :2] = 6
    error = np.full(mask.shape, np.nan, dtype=np.float32)
    error[1] = 0.2
    found = LocalResolution(resolution, error, resolution == 6, mask, 10.0, 3.0).summary()
    assert (found["percentile_5"], found["percentile_50"], found["percentile_95"]) == (4, 4, 6)
    assert found["share_better_than"] == found["share_not_measurable"] == 0.25
    assert found["median_standard_error"] == pytest.approx(0.2)


@pytest.mark.parametrize("box_size", [12, 13])
def test_tiny_boxes_and_empty_maps_run(box_size: int) -> None:
    rng = np.random.default_rng(1)
    full, empty = noise(rng, box_size), np.zeros((box_size,) * 3, np.float32)
    single = empty.copy()
    single[box_size // 2, 3:9, 3:9] = 1
    for volumes in ([full] * 4, [empty] * 4, [full, full, empty, empty]):
        for mask in (np.ones_like(full), empty, single):
            local = local_resolution(*volumes, mask, 1.0, box_size // 2)
            assert local.filled().shape == full.shape
            assert np.isfinite(local.filled()).all()
            if volumes[2] is empty:
                assert np.all(np.isnan(local.resolution))


def test_a_run_has_it(reconstructed: tuple[Reconstruction, Reporter]) -> None:
    result, reporter = reconstructed
    v, found = result.validation, result.local_resolution.summary()
    assert json.loads(json.dumps(found)) == found
    assert found["finest_tested"] >= 1 / v.frequency[v.limit_shell - 1]
    assert v.resolution is not None
    assert 0.9 * v.resolution < found["percentile_50"] < 1.4 * v.resolution
    assert found["share_not_measurable"] < 0.05
    assert result.local_resolution.text() in "\n".join(reporter.log)
