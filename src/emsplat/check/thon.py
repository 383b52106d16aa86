"""The CTF in the power spectra of the images: do its rings lie where the table says, and how deep are they?

Along lines of equal phase χ, the power of image i at frequency k is

    P_i(k) = S(k) C_i(k)² + N(k)    and, of CTF-premultiplied images,    C_i(k)² (S(k) C_i(k)² + N(k)),

with a signal S and a noise N that all images of an optics group share. Within one shell, the power of images with
different defocus is therefore a straight line in C². The quality of the line shows whether the CTF is right. Its slope
shows what share of the power vanishes at the zeros of the CTF: little if noise is added after the CTF, everything if
images were multiplied with the CTF. Poses are not needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from emsplat.check.findings import Finding, fine, note, problem
from emsplat.optics.ctf import CtfTerms, ctf_terms, terms_of
from emsplat.particles.table import Particles

_FIRST_SHELL = 3  # the shells before hold the background's slope
_LONGEST_STEP = 1.0  # radians of phase from shell to shell; beyond, a shell mixes peaks and zeros
_LEAST_SPAN = 2 * np.pi  # radians of phase over the shells used, two rings; a slope could be taken for a single ring
_LEAST_VARIATION = 0.03  # standard deviation of C² over the images of a shell below which it says nothing
_SCALES = np.exp(np.arange(-70, 71) / 50)  # scales of the pixel size, from 0.25 to 4 in steps of 2 %
_SURE = 6.0  # standard deviations; the best of 141 scales of noise reaches 6 once in ten million cases
_WRONG = 0.05  # relative error of the pixel size that counts as one; it corresponds to 10 % of the defocus
_MULTIPLIED, _NOT_MULTIPLIED = 0.75, 0.5  # share of the power that vanishes at the zeros of the CTF
_LARGEST_SIGNAL_SHARE = 0.6  # share of the variance; in cleaner images the signal itself vanishes at the zeros
_BINS_PER_PERIOD, _PERIODS = 16, 8  # bins and length of the curve that is drawn


@dataclass(frozen=True)
class ThonFit:
    """The fit of the CTF to the power spectra of a sample."""

    significance: float  # significance of the table's CTF in standard deviations
    best_significance: float  # significance at the best scale
    best_scale: float  # scale of the pixel size that fits best
    vanishing: float  # share of the power that vanishes at the zeros of the CTF
    phase: NDArray[np.float64]  # (b,) χ/π of the curve; the CTF is zero at whole numbers
    observed: NDArray[np.float64]  # (b,) power over the shell's mean
    expected: NDArray[np.float64]  # (b,) the fitted lines, averaged like the observed power

    @property
    def is_visible(self) -> bool:
        return self.best_significance > _SURE

    @property
    def pixel_size_is_wrong(self) -> bool:
        surely = self.best_significance**2 - max(self.significance, 0) ** 2 > _SURE**2
        return self.is_visible and surely and abs(self.best_scale - 1) > _WRONG


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _phase_powers(spectra, parameters, out):
    n, rows, columns = spectra.shape
    shells = out.shape[1]
    for i in numba.prange(n):
        terms = terms_of(parameters[i])
        mean = 0.5 * (terms.xx + terms.yy)
        count = np.zeros(shells, dtype=np.int64)
        total = np.zeros(shells)
        for row in range(rows):
            ky = row if 2 * row < rows else row - rows
            for kx in range(columns):
                square = kx * kx + ky * ky
                astigmatic = terms.xx * kx * kx + terms.xy * kx * ky + terms.yy * ky * ky
                scaled = astigmatic / mean if mean != 0.0 else float(square)
                if scaled < 0.0 or 4 * square >= rows * rows or (kx == 0 and ky < 0):
                    continue
                shell = int(np.sqrt(scaled) + 0.5)
                if shell < shells:
                    total[shell] += spectra[i, row, kx].real ** 2 + spectra[i, row, kx].imag ** 2
                    count[shell] += 1
        for shell in range(shells):
            out[i, shell] = total[shell] / count[shell] if count[shell] else 0.0


def phase_powers(spectra: NDArray[np.complex64], parameters: NDArray[np.float64]) -> NDArray[np.float32]:
    """Mean power along ellipses of equal defocus phase, numbered by the shell of the same phase at the mean defocus.

    Args:
        spectra: (n, D, D//2+1) transforms; parameters: (n, 13) from `optics.ctf.ctf_parameters`.
    Returns:
        (n, D//2).
    """
    out = np.empty((len(spectra), spectra.shape[1] // 2), dtype=np.float32)
    _phase_powers(spectra, parameters, out)
    return out


def fit_thon_rings(powers: NDArray[np.float32], particles: Particles) -> ThonFit | None:
    """Compare powers (n, D//2) from `phase_powers` with the CTFs of these n rows.

    The result is None if nothing can be said because all images have much the same defocus, because the box is too
    small for it, or because hardly a ring lies within Nyquist.
    """
    relative = _relative(powers, particles.optics_group)
    terms = ctf_terms(particles)
    shell_step = 1 / (particles.box_size * particles.pixel_size_in_angstroms)
    given = _lines(relative, terms, shell_step)
    scores = np.array([_lines(relative, terms, shell_step / scale).significance for scale in _SCALES])
    best = int(np.argmax(scores))
    if scores[best] <= 0:
        return None
    return ThonFit(
        significance=given.significance,
        best_significance=float(max(scores[best], given.significance)),
        best_scale=float(np.exp(_peak(np.log(_SCALES), scores, best))),
        vanishing=_vanishing(given),
        **_curve(relative, given),
    )


@dataclass(frozen=True)
class _Lines:
    """Straight lines of the relative power in C², one for each shell."""

    phase: NDArray[np.float64]  # (n, shells) χ
    square: NDArray[np.float64]  # (n, shells) C²
    slope: NDArray[np.float64]  # (shells,)
    slope_error: NDArray[np.float64]  # (shells,)
    used: NDArray[np.bool_]  # (shells,)
    significance: float  # 0 if too few shells are used


def _relative(powers: NDArray[np.float32], group: NDArray[np.int32]) -> NDArray[np.float64]:
    """Powers divided by the mean of their shell in the optics group, and by the level of the image."""
    relative: NDArray[np.float64] = np.empty(powers.shape)
    for number in np.unique(group):
        rows = group == number
        relative[rows] = powers[rows] / np.maximum(powers[rows].mean(axis=0, dtype=np.float64), 1e-30)
    outer = relative[:, relative.shape[1] // 2 :]
    return relative / np.maximum(np.median(outer, axis=1, keepdims=True), 1e-30)


def _lines(relative: NDArray[np.float64], terms: CtfTerms, shell_step: float) -> _Lines:
    s = np.arange(relative.shape[1]) * shell_step
    defocus, quartic = 0.5 * (terms.xx + terms.yy)[:, None], terms.quartic[:, None]
    phase = defocus * s**2 + quartic * s**4 + terms.constant[:, None]
    square = np.sin(phase) ** 2
    step = np.abs(2 * defocus * s + 4 * quartic * s**3).mean(axis=0) * shell_step
    deviation = square - square.mean(axis=0)
    spread = np.square(deviation).sum(axis=0)
    used = (step < _LONGEST_STEP) & (spread > _LEAST_VARIATION**2 * len(relative))
    used[:_FIRST_SHELL] = False
    residual = relative - relative.mean(axis=0)
    slope = (residual * deviation).sum(axis=0) / np.maximum(spread, 1e-30)
    error = np.sqrt(np.square(residual).mean(axis=0) / np.maximum(spread, 1e-30))
    spans = used.any() and np.ptp(phase[:, used].mean(axis=0)) > _LEAST_SPAN
    significance = _significance(residual[:, used], deviation[:, used]) if spans else 0.0
    return _Lines(phase, square, slope, error, used, significance)


def _significance(residual: NDArray[np.float64], deviation: NDArray[np.float64]) -> float:
    """Σ over shells of the correlation over images, in standard deviations of no correlation; (n, shells) each.

    Thicker ice at higher defocus, for example, tilts the whole spectrum of an image. That is no ring, and what is
    straight over the shells is therefore removed from every image first.
    """
    n, shells = residual.shape
    straight, _ = np.linalg.qr(np.vander(np.arange(shells), 2).astype(np.float64))
    a, b = (values - values @ straight @ straight.T for values in (residual, deviation))
    norm = np.sqrt(np.square(a).sum(axis=0) * np.square(b).sum(axis=0))
    correlation = (a * b).sum(axis=0) / np.maximum(norm, 1e-30)
    return float(correlation.sum() * np.sqrt(n / shells))


def _peak(x: NDArray[np.float64], y: NDArray[np.float64], i: int) -> float:
    """The maximum of the parabola through the highest of equally spaced points and its neighbours."""
    if i in (0, len(y) - 1):
        return float(x[i])
    left, middle, right = y[i - 1 : i + 2]
    bend = left - 2 * middle + right
    return float(x[i] + (0.5 * (left - right) / bend if bend < 0 else 0.0) * (x[1] - x[0]))


def _vanishing(lines: _Lines) -> float:
    """Mean share of slope × mean C² in the mean power, over the outer half of the shells, with the least signal."""
    shells = np.flatnonzero(lines.used)
    if len(shells) == 0:
        return np.nan
    shells = shells[len(shells) // 2 :]
    level = lines.square[:, shells].mean(axis=0)
    weight = 1 / np.square(np.maximum(lines.slope_error[shells], 1e-30) * level)
    return float(np.average(lines.slope[shells] * level, weights=weight))


def _curve(relative: NDArray[np.float64], lines: _Lines) -> dict[str, NDArray[np.float64]]:
    """Observed and expected power against χ/π, averaged over images and shells."""
    used = lines.used
    expected = 1 + lines.slope[used] * (lines.square[:, used] - lines.square[:, used].mean(axis=0))
    observed = relative[:, used] / np.maximum(relative[:, used].mean(axis=0), 1e-30)
    number = np.floor(lines.phase[:, used] / np.pi * _BINS_PER_PERIOD).astype(np.int64).ravel()
    inside = (number >= 0) & (number < _BINS_PER_PERIOD * _PERIODS)
    count = np.bincount(number[inside])
    kept = count > 0.005 * inside.sum()
    phase = (np.arange(len(count)) + 0.5) / _BINS_PER_PERIOD
    curves = {
        name: np.bincount(number[inside], values.ravel()[inside])[kept] / count[kept]
        for name, values in (("observed", observed), ("expected", expected))
    }
    return {"phase": phase[kept], **curves}


# --- verdicts ---------------------------------------------------------------------------------------------------------


def thon_findings(fit: ThonFit | None, particles: Particles, signal_share: float) -> list[Finding]:
    """Verdicts on whether pixel size and defocus fit, and on whether the images were multiplied with the CTF."""
    if not particles.has_ctf:
        return [note("CTF", "taken as 1; whether the images have one cannot be seen without a defocus")]
    if fit is None:
        text = (
            "cannot be seen in power spectra: defocus differs too little, or too few rings lie within box and Nyquist"
        )
        return [note("CTF", text)]
    if not fit.is_visible:
        text = f"it does not show in the power spectra of {len(particles):,} images at any pixel size"
        return [note("CTF", text, "check the defocus, unless there are few images or little defocus")]
    return [_ring_finding(fit, particles), *_multiplied_findings(fit, particles, signal_share)]


def _ring_finding(fit: ThonFit, particles: Particles) -> Finding:
    if not fit.pixel_size_is_wrong:
        return fine("CTF", f"its rings show in the power spectra where they should ({fit.significance:.0f} σ)")
    size = particles.pixel_size_in_angstroms * fit.best_scale
    text = (
        f"its rings fit a pixel size of {size:.3g} Å ({fit.best_significance:.0f} σ), "
        f"not {particles.pixel_size_in_angstroms:.4g} Å ({max(fit.significance, 0):.0f} σ)"
    )
    advice = f"give --pixel-size {size:.3g}, or multiply the defocus by {fit.best_scale**-2:.3g}, whichever is wrong"
    return problem("CTF", text, advice)


def images_are_multiplied(fit: ThonFit | None, signal_share: float) -> bool | None:
    """Whether the images hold CTF × image, whatever the table says; None if that is not clear."""
    if fit is None or not fit.is_visible or fit.pixel_size_is_wrong or signal_share > _LARGEST_SIGNAL_SHARE:
        return None
    if _NOT_MULTIPLIED < fit.vanishing < _MULTIPLIED:
        return None
    return fit.vanishing >= _MULTIPLIED


def _multiplied_findings(fit: ThonFit, particles: Particles, signal_share: float) -> list[Finding]:
    flagged = {particles.optics[i].premultiplied for i in np.unique(particles.optics_group)}
    are = images_are_multiplied(fit, signal_share)
    if are is None or len(flagged) > 1 or are in flagged:
        return []
    share = f"{100 * np.clip(fit.vanishing, 0, 1):.0f} % of the power vanishes at the zeros of the CTF"
    if are:
        text = f"images were multiplied with the CTF ({share}), and the file does not say so"
        return [problem("CTF", text, "set rlnCtfDataAreCtfPremultiplied to 1 in the optics table")]
    text = f"images were not multiplied with the CTF ({share}), although the file says so"
    return [problem("CTF", text, "set rlnCtfDataAreCtfPremultiplied to 0 in the optics table")]
