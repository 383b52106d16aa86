"""How many Gaussians a half's images can support.

The images determine a number of independent Fourier coefficients: in each shell the particle's volume holds
``½ N_shell × (volume / box)`` complex ones, of which a share SSNR/(1 + SSNR) is signal. The count is proportional to
their number, so it grows with the particle's volume, the SNR and the number of images, and stops at Nyquist. The
factor comes from a ladder of counts, `benchmarks/ladder.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emsplat import maps
from emsplat.statistics import Statistics

GAUSSIANS_PER_COEFFICIENT = 0.65
FEWEST, MOST = 200, 200_000
_POOL = 2  # shells pooled on either side


def signal_to_noise(seen: Statistics, unseen: Statistics, mask: NDArray[np.float32]) -> NDArray[np.float64]:
    """(D//2+1,) spectral SNR of the raw map of both together, from the FSC of an uneven split.

    With shares p and q of the images, ``F = 1/sqrt((1 + 1/(p s))(1 + 1/(q s)))``; solved for s. It ends at the first
    shell without correlation.
    """
    a, b = (maps.half_spectrum(s.raw_map() * mask) for s in (seen, unseen))
    size = len(mask)
    ab, aa, bb = (maps.shell_correlation(x, y, size) for x, y in ((a, b), (a, a), (b, b)))
    window = np.ones(2 * _POOL + 1)
    ab, aa, bb = (np.convolve(v, window, mode="same") for v in (ab, aa, bb))
    fsc = np.clip(ab / np.maximum(np.sqrt(aa * bb), 1e-30), 0.0, 0.9999)
    p = seen.n_images / (seen.n_images + unseen.n_images)
    # (1 + u/p)(1 + u/q) = 1/F² with u = 1/s, and p + q = 1
    pq = p * (1 - p)
    u = 0.5 * (-1 + np.sqrt(1 + 4 * pq * (1 / np.maximum(fsc, 1e-6) ** 2 - 1)))
    lost = np.flatnonzero(fsc[1:] < 0.01)
    snr = 1 / np.maximum(u, 1e-9)
    snr[1 + lost[0] if len(lost) else len(snr) :] = 0.0
    return snr


def measurable_coefficients(snr: NDArray[np.float64], mask: NDArray[np.float32]) -> float:
    """Number of complex Fourier coefficients of the particle that the images determine."""
    independent = 0.5 * maps.shell_size(len(mask)) * float(mask.mean())
    return float(np.sum(independent * snr / (1 + snr)))


def automatic_count(seen: Statistics, unseen: Statistics, mask: NDArray[np.float32]) -> tuple[int, float]:
    """The number of Gaussians for a half, two digits, and the coefficients it rests on."""
    coefficients = measurable_coefficients(signal_to_noise(seen, unseen, mask), mask)
    count = float(np.clip(GAUSSIANS_PER_COEFFICIENT * coefficients, FEWEST, MOST))
    digits = 10 ** (int(np.log10(count)) - 1)
    return int(round(count / digits) * digits), coefficients
