"""How far each place of the map can be trusted: the honest correlation with the truth, window by window.

It is the same quotient of the same four maps as in `validate`, with ⟨·,·⟩ the sum over a window of band-passed maps
instead of the sum over a shell:

    c_map(x, k) = ½(⟨V₁,r₂⟩ + ⟨V₂,r₁⟩) / sqrt(⟨V̄,V̄⟩ ⟨r₁,r₂⟩)

The local resolution at x is where c_map(x, k) first falls below 0.5. Bands follow one another by 8 % in frequency and
are 20 % of it wide at half height. The maps are whitened first, so that a band does not represent its lower edge alone.
The window of a band is cos² along each axis, times the mask, and ends four times the band's resolution from x. It is
wide enough for hundreds of independent terms, and narrow enough to distinguish domains.

No shell beyond the global limit of measurability is used. The local limit is the last band before ⟨r₁,r₂⟩ falls below
two of the standard errors that it has without signal. Globally it is three. Here the quotient is safe by itself,
because its numerator is known so much better than ⟨r₁,r₂⟩ that noise does not reach 0.5 where ⟨r₁,r₂⟩ is high by
chance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft

from emsplat.fourier import maps
from emsplat.validation.correlation import PAIRS, Curve, Moments, error_terms, inverse, moments, quotient, unevenness
from emsplat.validation.validate import C_AT_RESOLUTION, FIRST_SHELL, SE_MARGIN

BAND_STEP = 1.08  # factor from the frequency of one band to the next
BAND_SIGMA = 0.085  # standard deviation of the weights of a band, as a share of its frequency
WINDOW_REACH = 4.0  # from a window's centre to its end along an axis, in resolutions of the band
SIGNIFICANCE = 2.0  # standard errors of the local correlation of the direct inversions that count as signal
_BANDS_AT_ONCE = 2  # each needs the memory of four maps
PERCENTILES = (5, 25, 50, 75, 95)  # percentiles over the voxels of the particle in the summary

Spectra = dict[str, NDArray[np.complex64]]
Axes = Sequence[NDArray[np.float64]]  # places along z, y and x in voxels; a grid is their product
Array = NDArray[Any]

# --- the result -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalResolution:
    """The local resolution; volumes are (D, D, D), lengths in Å."""

    resolution: NDArray[np.float32]  # NaN outside the mask, and where nothing is measurable in the first band
    standard_error: NDArray[np.float32]  # NaN also where the resolution is a bound
    better_than: NDArray[np.bool_]  # the resolution is a bound: c_map is above 0.5 up to the limit, local or global
    mask: NDArray[np.float32]
    coarsest: float  # resolution of the first band
    finest: float  # resolution of the last band

    def filled(self) -> NDArray[np.float32]:
        """(D, D, D) values to colour surfaces by: 0 outside the mask, the coarsest value where nothing was shown."""
        inside = np.where(np.isnan(self.resolution), np.float32(self.coarsest), self.resolution)
        return np.where(self.mask > 0, inside, np.float32(0))

    def text(self) -> str:
        """The local resolution in one line."""
        found = self.summary()
        low, median, high = (found[f"percentile_{p}"] for p in (5, 50, 95))
        if low is None or median is None or high is None:
            return "local resolution: nothing measurable"
        return f"local resolution: median {median:.2f} Å, {low:.2f} to {high:.2f} Å in 90 % of the particle"

    def summary(self) -> dict[str, float | None]:
        """Values in Å and shares, over the voxels in which the mask is at least ½; percentiles over those with one."""
        particle = self.mask >= 0.5
        values, errors = self.resolution[particle], self.standard_error[particle]
        values, errors = values[np.isfinite(values)], errors[np.isfinite(errors)]
        voxels = max(int(np.count_nonzero(particle)), 1)
        levels = [float(np.percentile(values, p)) if len(values) else None for p in PERCENTILES]
        return {
            **{f"percentile_{p}": level for p, level in zip(PERCENTILES, levels, strict=True)},
            "median_standard_error": float(np.median(errors)) if len(errors) else None,
            "share_better_than": int(np.count_nonzero(self.better_than & particle)) / voxels,
            "share_not_measurable": 1 - len(values) / voxels,
            "coarsest_tested": self.coarsest,
            "finest_tested": self.finest,
        }


def local_resolution(
    raw_half_1: NDArray[np.float32],
    raw_half_2: NDArray[np.float32],
    gaussian_half_1: NDArray[np.float32],
    gaussian_half_2: NDArray[np.float32],
    mask: NDArray[np.float32],
    pixel_size: float,
    limit_shell: int,
) -> LocalResolution:
    """The local resolution of the average of two half maps, judged by the direct inversions of the halves.

    Args:
        raw_half_1, .. gaussian_half_2, mask: (D, D, D) of one box, as for `validation.validate`.
        pixel_size: Å.
        limit_shell: the last shell in which anything is measurable globally, 0 for none.
    """
    edge = len(mask) * pixel_size
    bands = frequency_bands(limit_shell)
    if not bands or not np.any(mask > 0):
        nothing = np.full(mask.shape, np.nan, dtype=np.float32)
        return LocalResolution(nothing, nothing, np.isfinite(nothing), mask, edge / FIRST_SHELL, edge / FIRST_SHELL)
    spectra, uneven = whitened(raw_half_1, raw_half_2, gaussian_half_1, gaussian_half_2)
    points = window_centres(mask, limit_shell)
    lower, middle, upper = falls = [_FirstFall(tuple(len(p) for p in points)) for _ in range(3)]
    correlate = partial(local_correlation, spectra, mask, points=points, uneven=uneven)
    with closing(_in_parallel(correlate, bands)) as found:
        for band, (c, se, raw, se_without_signal) in zip(bands, found, strict=True):
            usable = raw > SIGNIFICANCE * se_without_signal
            for fall, curve in zip(falls, (c - SE_MARGIN * se, c, c + SE_MARGIN * se), strict=True):
                fall.advance(band.shell / edge, curve, usable)
            if not np.any(upper.open):
                break
    with np.errstate(divide="ignore", invalid="ignore"):
        # A lower curve that begins below 0.5 falls at the first band, for want of a better number. Where the upper
        # one reaches the limit, the distance to the lower one has to do for both.
        below = 1 / np.fmax(lower.frequency, bands[0].shell / edge) - 1 / middle.frequency
        above = 1 / middle.frequency - 1 / upper.frequency
        error = np.where(upper.fallen, 0.5 * (below + above), below)
        reached = np.isfinite(middle.frequency)
        resolution = np.reciprocal(_at_voxels(middle.frequency, reached, points, mask))
    fallen = _at_voxels(middle.fallen, reached, points, mask)
    better_than = fallen < 0.5
    standard_error = _at_voxels(error, middle.fallen, points, mask)
    standard_error[better_than] = np.nan
    return LocalResolution(resolution, standard_error, better_than, mask, edge / bands[0].shell, edge / bands[-1].shell)


def _in_parallel(work: Callable[[Band], Any], bands: Sequence[Band]) -> Generator[Any]:
    """The work on each band, in order. Two bands at a time share the threads that the caller allows its transforms."""
    workers = fft.get_workers()
    at_once = min(workers, _BANDS_AT_ONCE)

    def on_its_share(band: Band) -> Any:
        with fft.set_workers(workers // at_once):
            return work(band)

    # A new thread of torch would work with as many threads as there are cores.
    with ThreadPoolExecutor(at_once, initializer=partial(torch.set_num_threads, 1)) as pool:
        begun: deque[Future[Any]] = deque()
        for band in bands:
            begun.append(pool.submit(on_its_share, band))
            if len(begun) > at_once:  # not far ahead, because the last bands may not be needed
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


class _FirstFall:
    """How far curves stay above 0.5, at many points at once, for one frequency after the other."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.frequency = np.full(shape, np.nan, dtype=np.float32)  # frequency of the fall, or the last one above 0.5
        self.open = np.ones(shape, dtype=bool)  # neither fallen nor at the limit
        self.fallen = np.zeros(shape, dtype=bool)
        self._before: tuple[float, Array] | None = None

    def advance(self, frequency: float, curve: Array, usable: NDArray[np.bool_]) -> None:
        """Follow the curves, linear in frequency, to the next frequency; they end where they are not usable."""
        above = self.open & usable & (curve >= C_AT_RESOLUTION)
        if self._before is not None:
            falls = self.open & usable & ~above
            last_frequency, last = self._before
            share = (last[falls] - C_AT_RESOLUTION) / (last[falls] - curve[falls])
            self.frequency[falls] = last_frequency + share * (frequency - last_frequency)
            self.fallen |= falls
        self.frequency[above] = frequency
        self.open = above
        self._before = frequency, curve


# --- bands ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Band:
    """A range of shells with soft ends. Products of maps that passed it have Gaussian weights about its centre."""

    centre: float  # shells
    last: float  # radius in shells beyond which it holds nothing

    def weights(self, radius: Array) -> Array:
        """Weights of the products at these radii in shells."""
        return np.exp(-0.5 * ((radius - self.centre) / (BAND_SIGMA * self.centre)) ** 2) * (radius <= self.last)

    @property
    def shell(self) -> float:
        """The mean radius of what the band holds, by which it is named."""
        radius = self._radii()
        return float(np.average(radius, weights=self.weights(radius) * radius**2))

    def voxels_of_a_term(self, box_size: int, sigma: float) -> float:
        """Voxels of an independent term in a Gaussian window of standard deviation sigma, for noise white in the band.

        With ρ the autocorrelation of the noise and A that of the window, A(0) = 1: Σ_d ρ²(d) A(d).
        """
        distance = np.arange(0.125, 0.75 * box_size, 0.25)
        radius = self._radii()
        share = self.weights(radius) * radius**2
        rho = np.sinc(2 / box_size * np.outer(distance, radius)) @ (share / share.sum())
        return float(np.sum(np.pi * np.square(distance * rho) * np.exp(-np.square(0.5 * distance / sigma))))

    def _radii(self) -> Array:
        return np.arange(0.125, self.last, 0.25)


def frequency_bands(limit_shell: int) -> list[Band]:
    """The bands from the first shell that is judged to the limit; none if nothing is measurable."""
    if limit_shell < FIRST_SHELL:
        return []
    steps = int(np.ceil(np.log(limit_shell / FIRST_SHELL) / np.log(BAND_STEP)))
    centres = np.geomspace(FIRST_SHELL, limit_shell, steps + 1)
    return [Band(float(c), min(limit_shell + 0.5, float(c) * (1 + 4 * BAND_SIGMA))) for c in centres]


def whitened(
    raw_half_1: NDArray[np.float32],
    raw_half_2: NDArray[np.float32],
    gaussian_half_1: NDArray[np.float32],
    gaussian_half_2: NDArray[np.float32],
) -> tuple[Spectra, Curve]:
    """Half spectra v1, v2 over the power of their average, and r1, r2 over that of the direct inversions, by shell.

    Also returns the `unevenness` of the direct inversions, (D//2,).
    """
    box_size = len(raw_half_1)
    volumes = {"r1": raw_half_1, "r2": raw_half_2, "v1": gaussian_half_1, "v2": gaussian_half_2}
    spectra = {name: maps.half_spectrum(volume) for name, volume in volumes.items()}
    sums = moments(spectra, box_size)
    factors = {"v": inverse(np.sqrt(sums.mean_map)), "r": inverse((sums.r1r1 * sums.r2r2) ** 0.25)}
    radius = maps.radius(box_size)
    for name, spectrum in spectra.items():
        spectrum *= np.interp(radius, np.arange(1, box_size // 2 + 1), factors[name[0]]).astype(np.float32)
    return spectra, unevenness(sums.normalised())


# --- windows ----------------------------------------------------------------------------------------------------------


def window_centres(mask: NDArray[np.float32], limit_shell: int) -> Axes:
    """A grid over the box that holds the mask, with points a resolution element at the limit apart."""
    step = max(1, len(mask) // limit_shell)
    return [np.arange(float(first), float(last + step), step) for first, last in _extent(mask)]


def _extent(mask: NDArray[np.float32]) -> list[tuple[int, int]]:
    """First and last voxel of the mask along each axis."""
    inside = [np.flatnonzero(np.any(mask > 0, axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    return [(int(i[0]), int(i[-1])) for i in inside]


def local_correlation(
    spectra: Spectra, mask: NDArray[np.float32], band: Band, points: Axes, uneven: Curve
) -> tuple[Array, Array, Array, Array]:
    """c_map, its standard error, the correlation ⟨r₁,r₂⟩ and its standard error without signal, at the points.

    The products of the band are sums over a grid no finer than needed: twice its last shell, and what the window
    transmits. The noise of r is taken as stationary in space, and the errors are those of `correlation_with_truth`.

    Args:
        spectra, uneven: as from `whitened`.
        mask: (D, D, D).
    Returns:
        four arrays over the grid of points; NaN where a window holds no signal, or none of the mask.
    """
    box_size = len(mask)
    n = min(box_size, fft.next_fast_len(int(np.ceil(2 * band.last + band.centre / 2)) + 16, real=True))
    spacing = box_size / n
    every = (np.arange(n) - n // 2) * spacing + box_size // 2
    near = [np.flatnonzero((every > first - spacing) & (every < last + spacing)) for first, last in _extent(mask)]
    weights = _contract(mask, [_tent(every[i], np.arange(box_size), 1.0) for i in near])
    cut = tuple(slice(i[0], i[-1] + 1) for i in near)
    amplitude = np.sqrt(band.weights(maps.radius(n)))
    passed = {name: _filtered(spectrum, amplitude)[cut].copy() for name, spectrum in spectra.items()}

    reach = WINDOW_REACH * box_size / band.centre
    windows = [_cosine_square(p, every[i], reach) for p, i in zip(points, near, strict=True)]
    mass = _contract(weights, windows)
    square = _contract(weights**2, [w**2 for w in windows])
    # The Gaussian of the same effective width, (∫w)²/∫w², stands for the window in the count of terms.
    term = band.voxels_of_a_term(box_size, reach / 0.75 / np.sqrt(4 * np.pi))
    shells = np.arange(1, box_size // 2 + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = mass**2 / square * spacing**3 / term
        sums = {p: _contract(weights * passed[p[:2]] * passed[p[2:]], windows) / mass for p in PAIRS}
        m = Moments(terms=terms, products=sums["r1r1"] * sums["r2r2"] / terms, **sums).normalised()
        one_term = np.average(uneven, weights=band.weights(shells) * shells**2) / terms
        c, se = quotient(m.crossed, m.r1r2, error_terms(m), one_term)
    return c, se, m.r1r2, np.sqrt(one_term)


def _filtered(spectrum: NDArray[np.complex64], amplitude: Array) -> NDArray[np.float32]:
    """(n, n, n) a map times amplitudes (n, n, n//2+1), on n³ of its D³ voxels, the origin at n//2; no scale is kept."""
    n = len(amplitude)
    if n < len(spectrum):
        k = np.rint(fft.fftfreq(n) * n).astype(int)
        spectrum = spectrum[np.ix_(k, k, np.arange(n // 2 + 1))]
        spectrum *= amplitude
    else:
        spectrum = spectrum * amplitude
    return maps.from_half_spectrum(spectrum, n)


def _contract(volume: Array, matrices: Sequence[Array]) -> Array:
    """(Z, Y, X) sums over a (z, y, x) volume with separable weights: matrices (Z, z), (Y, y), (X, x).

    It uses torch, whose threads are set by `threads`. Those of numpy's own BLAS would take the cores from the
    transforms.
    """
    along_z, along_y, along_x, values = (
        torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in (*matrices, volume)
    )
    return torch.tensordot(along_z, torch.matmul(along_y, values @ along_x.T), dims=1).numpy()


def _cosine_square(centres: Array, places: Array, reach: float) -> Array:
    """(centres, places) 1 at the centre and exactly 0 from `reach` on.

    Tiny values such as 1e-33 would make denormal products, which are ten times as slow on many processors.
    """
    offset = np.subtract.outer(centres, places) / reach
    return np.where(np.abs(offset) < 1, np.cos(0.5 * np.pi * offset) ** 2, 0.0)


def _tent(places: Array, nodes: Array, spacing: float) -> Array:
    """(places, nodes) weights of linear interpolation between equidistant nodes."""
    return np.maximum(1 - np.abs(np.subtract.outer(places, nodes)) / spacing, 0)


def _at_voxels(values: Array, valid: NDArray[np.bool_], points: Axes, mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """(D, D, D) linear interpolation between the points that are valid.

    NaN outside the mask, and where the valid points have less than half of the weight.
    """
    tents = [_tent(np.arange(len(mask)), p, float(p[1] - p[0]) if len(p) > 1 else 1.0) for p in points]
    weight = _contract(valid, tents)
    total = _contract(np.where(valid, values, 0), tents)
    return np.where((weight >= 0.5) & (mask > 0), total / np.maximum(weight, 0.5), np.float32(np.nan))
