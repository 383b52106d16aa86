"""How far a map can be believed: the FSC family and the honest correlation with the truth.

Two Gaussian half maps share the errors of the prior that regularises both, so their FSC overstates them. The *raw*
inversion r of the other half is the truth plus noise that no prior has touched. With ⟨·,·⟩ the sum over a shell of
masked maps, V̄ the average of the two Gaussian half maps,

    c_map  = ½(⟨V₁,r₂⟩ + ⟨V₂,r₁⟩) / sqrt(⟨V̄,V̄⟩ ⟨r₁,r₂⟩)      correlation of the final map with the truth
    c_half = FSC(V₁,r₂) / sqrt(FSC(r₁,r₂)), both ways averaged    the same for the map of one half

Sums first, then the quotient; nothing is clipped. Without a prior (V = r) c_map is the classical sqrt(2F/(1+F)), so
c_map = 0.5 is where the classical FSC is 0.143: the resolution. Nothing is said beyond the limit of measurability,
the last shell before the raw FSC sinks below three standard errors.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from emsplat import maps
from emsplat.errors import InputError

Curve = NDArray[np.float64]
ResolutionKind = Literal["measured", "better_than", "not_measurable"]

FIRST_SHELL = 6  # the shells before hold too few terms, and little but the particle's outline
POOLED_ABOVE = 0.02  # standard error of c_map beyond which neighbours are pooled
POOL = 3  # shells pooled on either side
SIGNIFICANCE = 3.0  # standard errors of the raw FSC that count as signal
C_AT_RESOLUTION = 0.5
RANDOMISED_BELOW = 0.8  # phases are randomised from where the unmasked FSC falls below this


@dataclass(frozen=True)
class Validation:
    """Curves over shells 1 .. D//2, and the resolution they allow. NaN where a quotient has no value."""

    frequency: Curve  # 1/Å
    raw_half_unmasked: Curve  # FSC of the raw half maps, whole box
    raw_half_masked: Curve  # FSC of the raw half maps within the mask; mask effects included
    raw_half_corrected: Curve  # the same less what the mask alone correlates (phase randomisation)
    gaussian_half: Curve  # FSC of the Gaussian half maps: overstates, both share the prior's errors
    c_half: Curve  # correlation of one half's Gaussian map with the truth
    c_map: Curve  # correlation of the averaged map with the truth
    c_map_se: Curve  # its standard error
    gain: Curve  # least-squares factor from the averaged map to the truth, zero beyond the limit
    resolution: float | None  # Å, where c_map = 0.5 or, "better_than", at the limit of measurability
    resolution_kind: ResolutionKind
    limit_shell: int  # last shell in which anything can be measured, 0 for none
    nyquist: float  # Å, the last shell's

    @property
    def shells(self) -> NDArray[np.int64]:
        """(D//2,) shell numbers from 1."""
        return np.arange(1, len(self.frequency) + 1)


# --- correlations -----------------------------------------------------------------------------------------------------


def fsc(a: NDArray[np.float32], b: NDArray[np.float32], mask: NDArray[np.float32] | None = None) -> Curve:
    """Fourier shell correlation of two volumes (D, D, D), within a mask if given.

    Returns:
        (D//2,) for shells 1 .. D//2; NaN in a shell where a map is empty.
    """
    if a.shape != b.shape or (mask is not None and mask.shape != a.shape):
        shapes = [v.shape for v in (a, b, mask) if v is not None]
        raise InputError(f"volumes of shapes {shapes}: an FSC needs equal boxes; resample one with fourier_resize")
    fa, fb = (maps.half_spectrum(v if mask is None else v * mask) for v in (a, b))
    return _normalised(*(maps.shell_correlation(x, y, len(a))[1:] for x, y in ((fa, fb), (fa, fa), (fb, fb))))


def _normalised(ab: Curve, aa: Curve, bb: Curve) -> Curve:
    with np.errstate(divide="ignore", invalid="ignore"):
        return ab / np.sqrt(aa * bb)


def resolution_at(curve: Curve, frequency: Curve, threshold: float, first_shell: int = 1) -> float | None:
    """Å at which the curve first falls below the threshold, linear in frequency between shells; None if it never does.

    Args:
        curve, frequency: (n,) over shells 1 .. n; frequency in 1/Å.
        first_shell: crossings before it are not looked at. A curve that starts below the threshold gives its
            first frequency, for want of a better number.
    """
    start = first_shell - 1
    below = np.flatnonzero(curve[start:] < threshold) + start
    if len(below) == 0:
        return None
    i = below[0]
    if i == start or not np.isfinite(curve[i - 1]):
        return float(1 / frequency[i])
    fraction = (curve[i - 1] - threshold) / (curve[i - 1] - curve[i])
    return float(1 / (frequency[i - 1] + fraction * (frequency[i] - frequency[i - 1])))


# --- the honest correlation -------------------------------------------------------------------------------------------

PAIRS = ("v1v1", "v2v2", "v1v2", "v1r1", "v2r2", "v1r2", "v2r1", "r1r1", "r2r2", "r1r2")


@dataclass(frozen=True)
class _Moments:
    """Sums over shells 1 .. D//2 of the full spectra of the masked maps: V Gaussian, r raw; 1 and 2 the halves."""

    terms: Curve  # voxels of the shell
    v1v1: Curve
    v2v2: Curve
    v1v2: Curve
    v1r1: Curve
    v2r2: Curve
    v1r2: Curve
    v2r1: Curve
    r1r1: Curve
    r2r2: Curve
    r1r2: Curve
    products: Curve  # Σ |r₁|²|r₂|²: the variance of ⟨r₁,r₂⟩ if the halves were unrelated and the voxels independent

    @property
    def mean_map(self) -> Curve:
        """⟨V̄,V̄⟩."""
        return 0.25 * (self.v1v1 + self.v2v2 + 2 * self.v1v2)

    @property
    def crossed(self) -> Curve:
        """½(⟨V₁,r₂⟩ + ⟨V₂,r₁⟩): each Gaussian half against the raw half it has not seen."""
        return 0.5 * (self.v1r2 + self.v2r1)

    def normalised(self) -> _Moments:
        """With ⟨V̄,V̄⟩ = 1 and ⟨r₁,r₁⟩⟨r₂,r₂⟩ = 1 in every shell, so that neighbours can be pooled whatever the falloff.

        ``r1r2`` is then the raw FSC, and ``products`` 1/terms for noise that is even over the shell.
        """
        v, r = _inverse(np.sqrt(self.mean_map)), _inverse((self.r1r1 * self.r2r2) ** 0.25)
        factor = {"v": v, "r": r}
        scaled = {pair: factor[pair[0]] * factor[pair[2]] * getattr(self, pair) for pair in PAIRS}
        return _Moments(terms=self.terms, products=r**4 * self.products, **scaled)


def _inverse(values: Curve) -> Curve:
    """1/values, 0 where a value is not positive."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


def _power(spectrum: NDArray[np.complex64]) -> NDArray[np.float32]:
    return spectrum.real**2 + spectrum.imag**2


def _moments(spectra: dict[str, NDArray[np.complex64]], box_size: int) -> _Moments:
    """From the half spectra of the four masked maps v1, v2, r1, r2."""
    sums = {p: maps.shell_correlation(spectra[p[:2]], spectra[p[2:]], box_size)[1:] for p in PAIRS}
    products = maps.shell_sum(_power(spectra["r1"]) * _power(spectra["r2"]), box_size)[1:]
    return _Moments(terms=maps.shell_size(box_size)[1:], products=products, **sums)


def pooling_matrix(n_shells: int, half_width: int = POOL) -> Curve:
    """(n, n) rows that replace a shell by the parabola fitted to the shells within half_width of it.

    A plain mean of five shells, as one might pool, is off by .1 where the curves bend at the resolution; a parabola
    over seven is not, and its variance is that of three shells.
    """
    rows = np.zeros((n_shells, n_shells))
    for k in range(n_shells):
        near = np.arange(max(0, k - half_width), min(n_shells, k + half_width + 1))
        powers = np.vander(near - k, min(3, len(near)), increasing=True).astype(np.float64)
        rows[k, near] = np.linalg.pinv(powers)[0]
    return rows


def variance_of_mean(mask: NDArray[np.float32], weights: Curve) -> Curve:
    """(n,) variance of weighted means of shell correlations of two white noises of power 1, seen through the mask.

    A mask m correlates the Fourier voxels of white noise as |FT(m²)|², so with A the autocorrelation of m² over
    (Σm²)², s_j the transform of shell j over its number of voxels, and weights h, the variance is Σ_x A(x) (Σ_j h_j
    s_j(x))². Without a mask and for one shell it is 1 / voxels. Exact but for taking A as radial; the usual count
    voxels · (Σm²)² / (N Σm⁴) ignores that a thin shell holds few of the neighbours a voxel is correlated with.

    Args:
        mask: (D, D, D).
        weights: (n, D//2), a row over shells 1 .. D//2 for each mean.
    """
    box_size = len(mask)
    power = _power(maps.half_spectrum(mask * mask))
    auto = maps.from_half_spectrum(power.astype(np.complex64), box_size) / power[0, 0, 0]
    distance = np.rint(maps.distance_from_origin(box_size)).astype(np.intp).ravel()
    count = np.bincount(distance)
    mean = np.bincount(distance, weights=auto.ravel()) / count
    # s_j oscillates within a pixel at the outer shells: integrate over the radius on a finer grid.
    fine = np.arange(0.125, len(count) - 1, 0.25)
    voxels = np.where(fine < box_size // 2, 4 * np.pi * fine**2, np.interp(fine, np.arange(len(count)), count))
    measure = 0.25 * voxels * np.interp(fine, np.arange(len(count)), mean)
    shells = np.arange(1, box_size // 2 + 1)
    waves = np.sinc(2 * np.outer(shells, fine) / box_size) * np.sinc(fine / box_size)
    # A mask can only add correlation; the floor is the voxels' own.
    return np.maximum(np.square(weights @ waves) @ measure, np.square(weights) @ (1 / maps.shell_size(box_size)[1:]))


def correlation_with_truth(m: _Moments, weights: Curve, variance: Curve) -> tuple[Curve, Curve, Curve, Curve]:
    """c_map, its standard error, the raw FSC F, and its standard error without signal, pooled by the weights.

    With r_h = t + n_h, noise of power N_h = ⟨r_h,r_h⟩ − ⟨r₁,r₂⟩, and X = ½(⟨V₁,r₂⟩ + ⟨V₂,r₁⟩), Y = ⟨V̄,V̄⟩,
    Z = ⟨r₁,r₂⟩, c = X / sqrt(Y Z). The true correlation has ⟨V̄,t⟩ for X and ⟨t,t⟩ for Z, so only

        δX = ½(⟨V₁,n₂⟩ + ⟨V₂,n₁⟩)    and    δZ = ⟨t,n₁⟩ + ⟨t,n₂⟩ + ⟨n₁,n₂⟩

    err. a_h = ⟨V_h,n_h⟩ = ⟨V_h,r_h⟩ − ⟨V_h,r_other⟩ is how far a Gaussian half follows its own noise. Over n terms

        n Var X      = ¼(⟨V₁,V₁⟩ N₂ + ⟨V₂,V₂⟩ N₁ + 2 a₁ a₂)
        n Var Z      = Z (N₁ + N₂) + N₁ N₂
        n Cov(X, Z)  = ½(⟨V₁,r₁⟩ N₂ + ⟨V₂,r₂⟩ N₁)
        Var c        = [Var X − c sqrt(Y/Z) Cov + ¼ c² (Y/Z) Var Z] / (Y Z)

    Args:
        m: normalised moments, so that Y = 1 and Z = F.
        weights: (D//2, D//2) pooling rows.
        variance: (D//2,) 1/n for each row, from `variance_of_mean`.
    """
    noise_1, noise_2 = m.r1r1 - m.r1r2, m.r2r2 - m.r1r2
    follow_1, follow_2 = m.v1r1 - m.v1r2, m.v2r2 - m.v2r1
    x, z = weights @ m.crossed, weights @ m.r1r2
    share = np.square(weights) / m.terms
    share /= share.sum(axis=1, keepdims=True)
    one_term = variance * _unevenness(m)
    var_x = share @ (m.v1v1 * noise_2 + m.v2v2 * noise_1 + 2 * follow_1 * follow_2) / 4
    var_z = share @ (m.r1r2 * (noise_1 + noise_2) + noise_1 * noise_2)
    cov = share @ (m.v1r1 * noise_2 + m.v2r2 * noise_1) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        c = x / np.sqrt(z)
        relative = var_x - c / np.sqrt(z) * cov + c**2 / (4 * z) * var_z
        # Near F = 1 the three cancel to within their own errors: keep a tenth of the first.
        se = np.sqrt(one_term * np.maximum(relative, 0.1 * var_x) / z)
    return c, se, z, np.sqrt(one_term)


def _unevenness(m: _Moments) -> Curve:
    """How much larger variances are than the mean powers say, because few images leave the noise on few slices.

    Σ|r₁|²|r₂|² against its value for powers even over the shell (signal in both halves adds F²), over ± 3 shells.
    """
    window = np.ones(2 * POOL + 1)
    found = np.convolve(m.terms**2 * m.products, window, mode="same")
    even = np.convolve(m.terms * (1 + m.r1r2**2), window, mode="same")
    return found / even


# --- the limit of measurability ---------------------------------------------------------------------------------------


def _limit(fsc_pooled: Curve, se_without_signal: Curve, has_signal: NDArray[np.bool_]) -> int:
    """The last shell before the pooled raw FSC first falls below three standard errors; 0 if at FIRST_SHELL already."""
    significant = (fsc_pooled > SIGNIFICANCE * se_without_signal) & has_signal
    failing = np.flatnonzero(~significant[FIRST_SHELL - 1 :])
    limit = FIRST_SHELL - 1 + int(failing[0]) if len(failing) else len(significant)
    return limit if limit >= FIRST_SHELL else 0


def directions_agree(
    raw_1: NDArray[np.complex64], raw_2: NDArray[np.complex64], box_size: int, last_shell: int
) -> float:
    """How surely the unmasked halves agree in shells FIRST_SHELL − POOL .. last_shell, in standard errors.

    The masked FSC alone would be fooled three ways: a mask made from the data picks the voxels where the noise of
    both halves is high; images with wrong poses still share their spherical average; few images put noise and signal
    on few slices, where σ from a count of voxels means nothing. So: no mask; the mean of each shell (the spherical
    average) taken out; and each of 24 equal sectors of directions has one vote z_b, T = Σ z_b / sqrt(Σ z_b²).
    For unrelated halves the sign of every z_b is a coin, so T exceeds 3 no more often than 0.1 % whatever the noise
    looks like, and it can exceed 3 only if more than 9 of the sectors agree.
    """
    index = maps.shell_index(box_size)
    k = np.rint(np.fft.fftfreq(box_size) * box_size).astype(np.int32)
    shells = range(max(1, FIRST_SHELL - POOL), min(last_shell + POOL, box_size // 2) + 1)
    votes = np.zeros(24)
    for shell in shells:
        z, y, x = np.nonzero(index == shell)
        pair = [spectrum[z, y, x] for spectrum in (raw_1, raw_2)]
        a, b = (values - values.real.mean() for values in pair)
        agreement = (a * b.conj()).real
        scale = np.sqrt(_power(a).mean(dtype=np.float64) * _power(b).mean(dtype=np.float64))
        votes += np.bincount(_sector(k[z], k[y], x), weights=agreement, minlength=24) * _inverse(scale)
    return float(votes.sum() * _inverse(np.sqrt(np.square(votes).sum())))


def _sector(kz: NDArray, ky: NDArray, kx: NDArray) -> NDArray[np.intp]:
    """0 .. 23: the signs of ky and kz (kx ≥ 0 on the half spectrum) and the order of |kx|, |ky|, |kz|."""
    z, y, x = abs(kz), abs(ky), abs(kx)
    order = (z > y) * 4 + (y > x) * 2 + (x > z) * 1  # 1 .. 6 but for ties
    return ((kz < 0) * 12 + (ky < 0) * 6 + np.clip(order, 1, 6) - 1).astype(np.intp)


# --- everything -------------------------------------------------------------------------------------------------------


def validate(
    raw_half_1: NDArray[np.float32],
    raw_half_2: NDArray[np.float32],
    gaussian_half_1: NDArray[np.float32],
    gaussian_half_2: NDArray[np.float32],
    mask: NDArray[np.float32],
    pixel_size: float,
    seed: int,
) -> Validation:
    """The FSC family and the resolution of two Gaussian half maps, judged by the raw half maps.

    Args:
        raw_half_1, .. gaussian_half_2, mask: (D, D, D) of one box.
        pixel_size: Å.
        seed: of the random phases.
    """
    volumes = (raw_half_1, raw_half_2, gaussian_half_1, gaussian_half_2, mask)
    if len({v.shape for v in volumes}) > 1:
        raise InputError(f"maps of shapes {[v.shape for v in volumes]}: half maps and mask need one box")
    box_size = len(mask)
    raw = [maps.half_spectrum(v) for v in (raw_half_1, raw_half_2)]
    masked = {
        name: maps.half_spectrum(v * mask) for name, v in zip(("r1", "r2", "v1", "v2"), volumes[:4], strict=True)
    }
    sums = _moments(masked, box_size)
    normalised = sums.normalised()
    unmasked, has_signal = _unmasked(raw, sums, box_size)
    masked_fsc = _normalised(sums.r1r2, sums.r1r1, sums.r2r2)

    pooling = pooling_matrix(len(masked_fsc))
    one = np.eye(len(masked_fsc))
    c_map, se, _, _ = correlation_with_truth(normalised, one, variance_of_mean(mask, one))
    c_pool, se_pool, f_pool, se_null = correlation_with_truth(normalised, pooling, variance_of_mean(mask, pooling))
    uncertain = ~(se <= POOLED_ABOVE)
    c_map, se = np.where(uncertain, c_pool, c_map), np.where(uncertain, se_pool, se)

    limit = _limit(f_pool, se_null, has_signal)
    if limit and directions_agree(*raw, box_size, limit) < SIGNIFICANCE:
        limit = 0
    frequency = np.arange(1, box_size // 2 + 1) / (box_size * pixel_size)
    resolution, kind = _resolution(c_map, frequency, limit)
    return Validation(
        frequency=frequency,
        raw_half_unmasked=unmasked,
        raw_half_masked=masked_fsc,
        raw_half_corrected=phase_randomised(raw, unmasked, masked_fsc, mask, seed),
        gaussian_half=_normalised(sums.v1v2, sums.v1v1, sums.v2v2),
        c_half=_c_half(normalised, pooling, uncertain),
        c_map=c_map,
        c_map_se=se,
        gain=_gain(sums, pooling, uncertain, limit),
        resolution=resolution,
        resolution_kind=kind,
        limit_shell=limit,
        nyquist=float(1 / frequency[-1]),
    )


def _unmasked(
    raw: list[NDArray[np.complex64]], sums: _Moments, box_size: int
) -> tuple[Curve, NDArray[np.bool_]]:
    """FSC of the raw halves without mask, and in which shells the maps hold anything.

    Masking smears the power of a shell over its neighbours: beyond a low-pass the masked maps hold only what leaked
    in, and agree perfectly.
    """
    a, b = raw
    aa, bb, ab = (maps.shell_correlation(x, y, box_size)[1:] for x, y in ((a, a), (b, b), (a, b)))
    return _normalised(ab, aa, bb), aa + bb > 0.1 * (sums.r1r1 + sums.r2r2)


def _c_half(m: _Moments, pooling: Curve, uncertain: NDArray[np.bool_]) -> Curve:
    """FSC(V₁,r₂)/sqrt(FSC(r₁,r₂)), the mean of both directions, pooled where c_map is."""
    crossed = 0.5 * (
        _normalised(m.v1r2, m.v1v1, m.r2r2) + _normalised(m.v2r1, m.v2v2, m.r1r1)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        single, pooled = crossed / np.sqrt(m.r1r2), (pooling @ crossed) / np.sqrt(pooling @ m.r1r2)
    return np.where(uncertain, pooled, single)


def _gain(m: _Moments, pooling: Curve, uncertain: NDArray[np.bool_], limit: int) -> Curve:
    """½(⟨V₁,r₂⟩ + ⟨V₂,r₁⟩) / ⟨V̄,V̄⟩, pooled where c_map is, not below 0, 0 beyond the limit; 1 if there is no limit."""
    if limit == 0:
        return np.ones_like(m.terms)
    single = m.crossed * _inverse(m.mean_map)
    gain = np.maximum(np.where(uncertain, pooling @ single, single), 0)
    gain[limit:] = 0
    return gain


def _resolution(c_map: Curve, frequency: Curve, limit: int) -> tuple[float | None, ResolutionKind]:
    """Where c_map first falls below 0.5, beyond FIRST_SHELL and up to the limit shell."""
    if limit == 0 or not c_map[FIRST_SHELL - 1] >= C_AT_RESOLUTION:
        return None, "not_measurable"
    crossing = resolution_at(c_map[:limit], frequency[:limit], C_AT_RESOLUTION, FIRST_SHELL)
    if crossing is None:
        return float(1 / frequency[limit - 1]), "better_than"
    return crossing, "measured"


def phase_randomised(
    raw: list[NDArray[np.complex64]], unmasked: Curve, masked: Curve, mask: NDArray[np.float32], seed: int
) -> Curve:
    """The masked FSC t less the part n that the mask alone makes: (t − n)/(1 − n) beyond the shell of randomisation + 1.

    n is the masked FSC after the phases of both halves are made random from where the unmasked FSC falls below 0.8.
    Source: Chen et al. (2013), Ultramicroscopy 135:24; as relion_postprocess does it.
    """
    box_size = len(mask)
    below = np.flatnonzero(unmasked < RANDOMISED_BELOW)
    if len(below) == 0:
        return masked.copy()
    first = int(below[0]) + 1
    rng = np.random.default_rng(seed)
    halves = [maps.from_half_spectrum(_random_phases(spectrum, first, box_size, rng), box_size) for spectrum in raw]
    n = fsc(halves[0], halves[1], mask)
    with np.errstate(divide="ignore", invalid="ignore"):
        corrected = (masked - n) / (1 - n)
    return np.where(np.arange(1, len(masked) + 1) < first + 2, masked, corrected)


def _random_phases(
    spectrum: NDArray[np.complex64], first_shell: int, box_size: int, rng: np.random.Generator
) -> NDArray[np.complex64]:
    """The spectrum with random phases from a shell on; the transform of white noise gives phases with the symmetry."""
    noise = maps.half_spectrum(rng.standard_normal((box_size,) * 3, dtype=np.float32))
    noise *= np.abs(spectrum) / np.maximum(np.abs(noise), np.finfo(np.float32).tiny)
    return np.where(maps.shell_index(box_size) >= first_shell, noise, spectrum)


def final_map(mean_map: NDArray[np.float32], validation: Validation) -> NDArray[np.float32]:
    """The average of the two Gaussian half maps, (D, D, D), with each shell times its gain; shell 0 takes shell 1's."""
    return maps.radial_filter(mean_map, np.append(validation.gain[:1], validation.gain))


def write_fsc_csv(path: Path, validation: Validation) -> None:
    """One row a shell; NaN is written as nan. The file appears whole or not at all."""
    columns = (
        "frequency raw_half_unmasked raw_half_masked raw_half_corrected gaussian_half c_half c_map c_map_se".split()
    )
    rows = np.stack([getattr(validation, name) for name in columns], axis=1)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["shell", *columns])
            writer.writerows([shell, *(f"{x:.6f}" for x in row)] for shell, row in enumerate(rows, start=1))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
