"""The number of Gaussians that the images of a half can support.

The resolvable elements of a particle are its voxels on a grid that is only as fine as the last shell in which the two
parts of the half still agree. That shell grows with the SNR and the number of images, and so does the count. The
exponent comes from measurements with many counts (`benchmarks/ladder.py`): one Gaussian for every six elements of a
small particle, and for every twelve of a large one. Too few Gaussians cost more than too many, whose overfitting
differs between the halves and averages out. If several fits of a half are averaged, their union resolves the particle,
and each takes fewer Gaussians.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.statistics.sufficient import Statistics

EXPONENT = 0.8  # count = elements to this power
_SHARE_OF_SEVERAL = 0.56  # share of that count if fits are averaged
FEWEST, MOST = 300, 200_000
_POOL = 2  # shells pooled on either side
_AGREEMENT = 0.01  # FSC between the uneven parts of a half below which a shell is lost
_FIRST_SHELL = 5  # in earlier shells the mere outline of the particle agrees


def measurable_shell(training: Statistics, held_out: Statistics, mask: NDArray[np.float32]) -> int:
    """The last shell before the masked direct inversions of the two parts of a half cease to agree."""
    box_size = len(mask)
    a, b = (maps.half_spectrum(s.raw_map() * mask) for s in (training, held_out))
    sums = (maps.shell_correlation(x, y, box_size) for x, y in ((a, b), (a, a), (b, b)))
    ab, aa, bb = (np.convolve(v, np.ones(2 * _POOL + 1), mode="same") for v in sums)
    agreement = ab / np.maximum(np.sqrt(aa * bb), 1e-30)
    lost = np.flatnonzero(agreement[_FIRST_SHELL:] < _AGREEMENT)
    return _FIRST_SHELL + int(lost[0]) - 1 if len(lost) else box_size // 2


def automatic_count(
    training: Statistics, held_out: Statistics, mask: NDArray[np.float32], n_fits: int = 1
) -> tuple[int, int]:
    """The number of Gaussians for a fit, to two digits, and the measurable shell that it is based on.

    Args:
        training, held_out: statistics of a split within the half.
        mask: (D, D, D) soft mask of the particle.
        n_fits: number of fits of a half that will be averaged.
    """
    shell = measurable_shell(training, held_out, mask)
    elements = float(mask.sum()) * (2 * shell / len(mask)) ** 3
    return supported_count(elements, n_fits), shell


def supported_count(elements: float, n_fits: int = 1) -> int:
    """The number of Gaussians for a fit, to two digits, for a particle with this number of resolvable elements."""
    share = _SHARE_OF_SEVERAL if n_fits > 1 else 1.0
    count = float(np.clip(share * elements**EXPONENT, FEWEST, MOST))
    digits = 10 ** (int(np.log10(count)) - 1)
    return round(count / digits) * digits
