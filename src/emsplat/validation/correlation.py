"""Correlations between maps, shell by shell, and how well each of them is known.

`correlation_with_truth` is the heart of the honest resolution. From two regularised maps V₁, V₂ and two direct
inversions r₁, r₂ of the same halves of the images, it computes the correlation of V̄ = ½(V₁ + V₂) with the truth.
`validate` turns it into curves and a verdict.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.fourier import maps
from emsplat.validation.directions import CELLS, REGULARISATION, cells_of, density_at

Curve = NDArray[np.float64]

_FEW_MATES = 4  # symmetry operators up to which voxels of equal radius are many enough for a mean of their own

# --- one pair of maps -------------------------------------------------------------------------------------------------


def fsc(a: NDArray[np.float32], b: NDArray[np.float32], mask: NDArray[np.float32] | None = None) -> Curve:
    """Fourier shell correlation of two volumes (D, D, D), within a mask if given.

    Returns:
        (D//2,) for shells 1 .. D//2; NaN in a shell where a map is empty.
    """
    if a.shape != b.shape or (mask is not None and mask.shape != a.shape):
        shapes = [v.shape for v in (a, b, mask) if v is not None]
        raise InputError(f"volumes of shapes {shapes}: an FSC needs equal boxes; resample one with fourier_resize")
    fa, fb = (maps.half_spectrum(v if mask is None else v * mask) for v in (a, b))
    return normalised(*(maps.shell_correlation(x, y, len(a))[1:] for x, y in ((fa, fb), (fa, fa), (fb, fb))))


def normalised(ab: Curve, aa: Curve, bb: Curve) -> Curve:
    with np.errstate(divide="ignore", invalid="ignore"):
        return ab / np.sqrt(aa * bb)


def resolution_at(curve: Curve, frequency: Curve, threshold: float, first_shell: int = 1) -> float | None:
    """Resolution in Å at which the curve first falls below the threshold; None if it never does.

    The curve is linear in frequency between shells.

    Args:
        curve, frequency: (n,) over shells 1 .. n; frequency in 1/Å.
        first_shell: crossings before this shell are ignored. A curve that starts below the threshold gives its first
            frequency, for want of a better number.
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
class Moments:
    """Sums over shells 1 .. D//2 of the full spectra of the masked maps V and direct inversions r of halves 1 and 2."""

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
        """½(⟨V₁,r₂⟩ + ⟨V₂,r₁⟩): each map against the direct inversion of the other half."""
        return 0.5 * (self.v1r2 + self.v2r1)

    def normalised(self) -> Moments:
        """The moments with ⟨V̄,V̄⟩ = 1 and ⟨r₁,r₁⟩⟨r₂,r₂⟩ = 1 in every shell, so that neighbouring shells can be pooled.

        ``r1r2`` is then the FSC of the direct inversions, and ``products`` is 1/terms for noise that is even over the
        shell.
        """
        v, r = inverse(np.sqrt(self.mean_map)), inverse((self.r1r1 * self.r2r2) ** 0.25)
        factor = {"v": v, "r": r}
        scaled = {pair: factor[pair[0]] * factor[pair[2]] * getattr(self, pair) for pair in PAIRS}
        return Moments(terms=self.terms, products=r**4 * self.products, **scaled)


def inverse(values: Curve) -> Curve:
    """1/values, 0 where a value is not positive."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


def _power(spectrum: NDArray[np.complex64]) -> NDArray[np.float32]:
    return spectrum.real**2 + spectrum.imag**2


def moments(spectra: dict[str, NDArray[np.complex64]], box_size: int) -> Moments:
    """The moments of the half spectra of the four masked maps v1, v2, r1, r2."""
    sums = {p: maps.shell_correlation(spectra[p[:2]], spectra[p[2:]], box_size)[1:] for p in PAIRS}
    products = maps.shell_sum(_power(spectra["r1"]) * _power(spectra["r2"]), box_size)[1:]
    return Moments(terms=maps.shell_size(box_size)[1:], products=products, **sums)


def pooling_half_width(n_shells: int) -> int:
    """Number of shells on either side that are pooled with a shell, for this number of shells in all."""
    return max(2, min(3, n_shells // 8), min(8, n_shells // 20))


def pooling_matrix(n_shells: int) -> Curve:
    """(n, n) rows that replace a shell by the parabola fitted to its neighbours.

    The half width is 2 for 16 shells, 3 for 24 to 64, and 6 for 128. A plain mean of five shells is off by 0.1 where
    the curves bend at the resolution, even in its shells' own powers; a parabola over five or seven is not, at the
    variance of two or three shells. How fast curves bend depends on the box, and the number of pooled shells therefore
    grows with it.
    """
    half_width = pooling_half_width(n_shells)
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
    s_j(x))². Without a mask and for one shell it is 1 / voxels. Only A is approximated, as radial; the usual count
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


def correlation_with_truth(
    m: Moments, weights: Curve, variance: Curve, optimism: Curve | float = 0.0
) -> tuple[Curve, Curve, Curve, Curve]:
    """c_map, its standard error, the FSC F of r₁ and r₂, and its standard error without signal, pooled by the weights.

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
        optimism: (D//2,) by which X is too large on average, because the map was fitted to it; it is taken off X, and
            as much is added to the standard error, in quadrature.
    """
    too_large = weights @ np.broadcast_to(optimism, m.crossed.shape)
    x, z = weights @ m.crossed - too_large, weights @ m.r1r2
    share = np.square(weights) / m.terms
    share /= share.sum(axis=1, keepdims=True)
    one_term = variance * unevenness(m)
    c, se = quotient(x, z, tuple(share @ term for term in error_terms(m)), one_term)
    with np.errstate(divide="ignore", invalid="ignore"):
        se = np.hypot(se, too_large / np.sqrt(z))
    return c, se, z, np.sqrt(one_term)


def error_terms(m: Moments) -> tuple[Curve, Curve, Curve]:
    """n Var X, n Var Z and n Cov(X, Z) of normalised moments, as in `correlation_with_truth`."""
    noise_1, noise_2 = m.r1r1 - m.r1r2, m.r2r2 - m.r1r2
    follow_1, follow_2 = m.v1r1 - m.v1r2, m.v2r2 - m.v2r1
    return (
        (m.v1v1 * noise_2 + m.v2v2 * noise_1 + 2 * follow_1 * follow_2) / 4,
        m.r1r2 * (noise_1 + noise_2) + noise_1 * noise_2,
        (m.v1r1 * noise_2 + m.v2r2 * noise_1) / 2,
    )


def quotient(x: Curve, z: Curve, errors: tuple[Curve, ...], one_term: Curve) -> tuple[Curve, Curve]:
    """c = X / sqrt(Z), Y being 1, and its standard error from `error_terms` over 1 / one_term terms; NaN for Z ≤ 0."""
    var_x, var_z, cov = errors
    var_x = np.maximum(var_x, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        c = x / np.sqrt(z)
        relative = var_x - c / np.sqrt(z) * cov + c**2 / (4 * z) * var_z
        # Near F = 1 the three terms cancel to within their own errors: at least a tenth of the first is kept.
        se = np.sqrt(one_term * np.maximum(relative, 0.1 * var_x) / z)
    return c, se


def unevenness(m: Moments) -> Curve:
    """Factor by which variances exceed those of the mean powers, because few images put the noise on few slices.

    Σ|r₁|²|r₂|² against its value for powers even over the shell (signal in both halves adds F²), over ± 3 shells.
    """
    distance = np.subtract.outer(np.arange(len(m.terms)), np.arange(len(m.terms)))
    near = (np.abs(distance) <= 3).astype(np.float64)
    return (near @ (m.terms**2 * m.products)) / (near @ (m.terms * (1 + m.r1r2**2)))


# --- without the mask -------------------------------------------------------------------------------------------------


def directional_agreement(
    raw_1: NDArray[np.complex64],
    raw_2: NDArray[np.complex64],
    box_size: int,
    shells: tuple[int, int],
    symmetry: NDArray[np.float64] | None = None,
    density: NDArray[np.float64] | None = None,
) -> float:
    """How surely the unmasked halves agree over the shells first .. last, as T between ±sqrt(24).

    The masked FSC alone could be deceived in three ways. A mask made from the data picks the voxels where the noise of
    both halves is high. Images with wrong poses still share their spherical average. Few images put noise and signal on
    few slices, where an error counted in voxels means nothing. This test therefore uses no mask, removes the
    spherical average, and gives each of 24 cells of directions one vote z_b, with T = Σ z_b / sqrt(Σ z_b²).

    For unrelated halves the sign of every z_b is a coin, so T has the tail of a normal variable whatever the noise
    looks like (Efron 1969, JASA 64:1278), and T > sqrt(n) needs more than n of the cells to agree.
    The cells are those of `directions`, so that a direction that no view has measured has no vote, and one that the
    symmetry repeats has a single one.

    Args:
        raw_1, raw_2: half spectra.
        symmetry: (m, 3, 3) operators that both were made with.
        density: density of what was measured, from `directions.measured_density`.
    """
    column = np.s_[:, :, 1:]  # without kx = 0, where both voxels of a pair are present
    shell = maps.shell_index(box_size)[column].ravel()
    radius = maps.radius(box_size)[column].ravel()
    measured = None if density is None else density_at(box_size, density).ravel()
    n_mates = 1 if symmetry is None else len(symmetry)
    a, b = (_without_spherical_part(spectrum[column].ravel(), radius, n_mates, measured) for spectrum in (raw_1, raw_2))
    votes = votes_of(a, b, shell, cells_of(box_size, symmetry, density).ravel(), shells)
    return float(votes.sum() * inverse(np.sqrt(np.square(votes).sum())))


def votes_of(
    a: NDArray[np.complex64],
    b: NDArray[np.complex64],
    shell: NDArray[np.intp],
    cell: NDArray[np.int8],
    shells: tuple[int, int],
) -> Curve:
    """(24,) correlation of two sets of Fourier voxels in each cell of directions, every shell over its own power.

    Args:
        a, b: (n,) values; shell, cell: (n,) shell and cell of each value; shells: the first and the last that count.
    """
    count = np.bincount(shell)
    scale = count * inverse(np.sqrt(np.bincount(shell, _power(a)) * np.bincount(shell, _power(b))))
    key = shell * CELLS + cell
    agreement = np.bincount(key, a.real * b.real + a.imag * b.imag, minlength=CELLS * len(count))
    used = slice(shells[0], shells[1] + 1)
    return scale[used] @ agreement.reshape(-1, CELLS)[used]


def _without_spherical_part(
    values: NDArray[np.complex64],
    radius: NDArray[np.float32],
    n_mates: int,
    measured: NDArray[np.float32] | None = None,
) -> NDArray[np.complex64]:
    """The values less what depends on the radius alone; what is spherical about the origin is real.

    The spherical part is the mean over voxels of equal radius. Where symmetry leaves these few independent values,
    their mean would be most of them: a straight line over a quarter of a shell is then taken instead.

    Args:
        measured: (n,) density of what was measured at each voxel, m. A direct inversion holds m / (m + 0.1) of the
            signal and the noise of 1 / m images: times m + 0.1 the signal is m times as large, and each voxel counts by
            what was measured of it.
    """
    if measured is not None:
        values = values * (measured + REGULARISATION).astype(np.float32)
    m = np.ones_like(radius) if measured is None else measured
    few = n_mates > _FEW_MATES
    group = np.rint(4 * radius if few else np.square(radius)).astype(np.intp)
    weight = np.maximum(np.bincount(group, m * m), 1e-12)
    mean = np.bincount(group, m * values.real) / weight
    if not few:
        return values - (m * mean[group]).astype(np.float32)
    offset = radius - (np.bincount(group, m * m * radius) / weight)[group]
    slope = np.bincount(group, m * offset * values.real) / np.maximum(np.bincount(group, (m * offset) ** 2), 1e-12)
    return values - (m * (mean[group] + slope[group] * offset)).astype(np.float32)
