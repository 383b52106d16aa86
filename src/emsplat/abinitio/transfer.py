"""Whether the CTFs belong to their images: images must be more likely with their own CTFs than with exchanged ones.

At the resolution of a search most CTFs have the same sign, so poses can be right although the CTFs are not. Let ρ be
the share of the signal that another image's CTF transmits in its place. If correct CTFs are exchanged, a projection's
log-likelihood falls by the factor ``2ρ − 1``; if they never belonged to the images, it does not fall. Only the outer
half of the rings is used, because on the inner ones all CTFs are alike.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from emsplat.abinitio.polar import PolarGrid, read_polar
from emsplat.abinitio.refinement import likelihoods
from emsplat.fourier.cropping import fourier_crop
from emsplat.optics.ctf import ctf
from emsplat.particles.batches import Images
from emsplat.particles.table import Particles

_SAMPLE = 500
_LEAST_DIFFERENCE = 0.1  # 1 − ρ; if CTFs are more alike than that, exchanging them tells nothing
_OF_AN_IMAGE = (
    "defocus_u_in_angstroms",
    "defocus_v_in_angstroms",
    "defocus_angle_in_degrees",
    "phase_shift_in_degrees",
    "b_factor_in_square_angstroms",
    "ctf_scale",
)


def own_ctfs_win(
    particles: Particles,
    images: Images,
    rows: NDArray[np.int64],
    noise: NDArray[np.float64],
    grid: PolarGrid,
    circle_in_pixels: float,
    map_: NDArray[np.float32],
    rotations: NDArray[np.float64],
    centres: NDArray[np.float64],
    signal: NDArray[np.float64],
    rng: np.random.Generator,
) -> float:
    """How much likelier images are with their own CTFs than with exchanged ones, divided by the expected value.

    It is near 1 if CTFs and images belong together, near 0 if not, and 1 if nothing can be said.

    Args:
        rows: (n,) images with known poses: rotations (n, 3, 3) and centres (n, 2) in pixels from the image's middle.
        noise: (groups, D//2+1) from `noise_spectra`; signal: (R,) power of a projection.
    """
    plain = ~np.array([g.premultiplied for g in particles.optics])[particles.optics_group[rows]]
    chosen = rng.permutation(np.flatnonzero(plain))[:_SAMPLE]
    if len(chosen) < 2:
        return 1.0
    chosen = chosen[np.argsort(rows[chosen])]
    own_rows = rows[chosen]
    others = own_rows[np.roll(rng.permutation(len(chosen)), 1)]
    exchanged = replace(particles)
    for name in _OF_AN_IMAGE:
        values = getattr(particles, name).copy()
        values[own_rows] = values[others]
        exchanged = replace(exchanged, **{name: values})
    inner = grid.n_rings // 2
    alike = _alike(particles.select(own_rows), exchanged.select(own_rows), signal, inner)
    if 1 - alike < _LEAST_DIFFERENCE:
        return 1.0
    own, other = (
        likelihoods(
            read_polar(table, images, own_rows, noise, grid, circle_in_pixels)[0],
            map_,
            rotations[chosen],
            centres[chosen],
            particles.box_size,
            inner,
        ).mean(dtype=np.float64)
        for table in (particles, exchanged)
    )
    return float((own - other) / max(own * (2 - 2 * alike), 1e-6)) if own > 0 else 0.0


def _alike(own: Particles, exchanged: Particles, signal: NDArray[np.float64], inner: int) -> float:
    """ρ: ⟨C C′⟩ over ⟨C²⟩ beyond the inner rings, with each ring weighted by its pixels and the signal's power."""
    box_size = min(own.box_size, 2 * (len(signal) + 2))
    first, second = (fourier_crop(ctf(p).astype(np.complex64), box_size).real for p in (own, exchanged))
    ky, kx = np.meshgrid(np.fft.fftfreq(box_size, 1 / box_size), np.arange(box_size // 2 + 1), indexing="ij")
    radius = np.hypot(kx, ky)
    weight = np.where(
        (radius > inner + 0.5) & (radius <= len(signal)), np.interp(radius, np.arange(1, len(signal) + 1), signal), 0
    )
    return float((weight * first * second).sum() / max((weight * first**2).sum(), 1e-30))
