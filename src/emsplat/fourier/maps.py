"""Operations on volumes: shells, radial filters, masks, sharpening and resampling.

Volumes are ``[z, y, x]`` cubes of edge D, the origin at voxel ``D // 2`` for odd and even D. A shell is the set of
Fourier voxels whose radius, in units of 1/(D · pixel size), rounds to the same integer; shell ``D // 2`` is the last
complete one. Transforms are half spectra of shape (D, D, D//2+1), in which each voxel with ``0 < kx < D/2`` stands for
two.
Transforms run on as many threads as the caller allows with ``scipy.fft.set_workers``.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from emsplat.errors import InputError

PARTICLE_SHARE = 0.85  # share of the box: the assumed diameter of a particle of unknown size
GUINIER_START_IN_ANGSTROMS = 10.0  # beyond this the amplitudes of proteins fall as exp(−B s²/4)


# --- shells -----------------------------------------------------------------------------------------------------------


def half_spectrum(volume: NDArray[np.float32]) -> NDArray[np.complex64]:
    """(D, D, D//2+1) transform of a (D, D, D) volume, with phases relative to the origin at voxel D//2."""
    return fft.rfftn(fft.ifftshift(volume))


def from_half_spectrum(spectrum: NDArray[np.complex64], box_size: int) -> NDArray[np.float32]:
    """The inverse of `half_spectrum`; box_size distinguishes odd from even boxes."""
    volume = fft.irfftn(spectrum, s=(box_size,) * 3)
    return fft.fftshift(volume).astype(np.float32, copy=False)


def radius(box_size: int) -> NDArray[np.float32]:
    """(D, D, D//2+1) radius of every half-spectrum voxel in shells."""
    k = (fft.fftfreq(box_size) * box_size).astype(np.float32)
    kx = np.arange(box_size // 2 + 1, dtype=np.float32)
    return np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + kx**2)


@lru_cache(maxsize=2)
def shell_index(box_size: int) -> NDArray[np.intp]:
    """(D, D, D//2+1) shell number of every half-spectrum voxel; corners lie beyond D//2. Read-only, cached."""
    index = np.rint(radius(box_size)).astype(np.intp)
    index.flags.writeable = False
    return index


def shell_sum(values: NDArray, box_size: int) -> NDArray[np.float64]:
    """Sums over the shells of the *full* spectrum of a real quantity with Friedel symmetry.

    Args:
        values: (D, D, D//2+1) on the half spectrum.
    Returns:
        (D//2+1,) float64, shells 0 .. D//2.
    """
    index = shell_index(box_size)

    def total(part: tuple[slice, ...]) -> NDArray[np.float64]:
        n = box_size // 2 + 1
        weights = values[part].ravel()
        return np.bincount(index[part].ravel(), weights, minlength=n)[:n].astype(np.float64, copy=False)

    # Interior columns stand for two voxels; kx = 0, and kx = D/2 for even D, are their own mirror images.
    whole, first, last = (np.s_[:, :, :], np.s_[:, :, :1], np.s_[:, :, -1:])
    sums = 2 * total(whole) - total(first)
    return sums - total(last) if box_size % 2 == 0 else sums


@lru_cache(maxsize=8)
def shell_size(box_size: int) -> NDArray[np.float64]:
    """(D//2+1,) number of full-spectrum voxels in each shell, half of them independent complex numbers."""
    sizes = shell_sum(np.ones((box_size, box_size, box_size // 2 + 1), dtype=np.float32), box_size)
    sizes.flags.writeable = False
    return sizes


def shell_correlation(a: NDArray[np.complex64], b: NDArray[np.complex64], box_size: int) -> NDArray[np.float64]:
    """(D//2+1,) Σ Re(a b*) over each shell of the full spectrum, from two half spectra."""
    return shell_sum(a.real * b.real + a.imag * b.imag, box_size)


# --- filters ----------------------------------------------------------------------------------------------------------


def radial_filter(volume: NDArray[np.float32], curve: NDArray[np.float64]) -> NDArray[np.float32]:
    """The volume with each Fourier voxel multiplied by a factor that depends on its radius.

    Args:
        volume: (D, D, D).
        curve: (n,) factors at shells 0, 1, .. n−1; linear in between, zero from shell n on.
    """
    box_size = len(volume)
    spectrum = half_spectrum(volume)
    factor = np.interp(radius(box_size), np.arange(len(curve) + 1), np.append(curve, 0.0), right=0.0)
    spectrum *= factor.astype(np.float32)
    return from_half_spectrum(spectrum, box_size)


def low_pass_curve(box_size: int, pixel_size: float, resolution: float) -> NDArray[np.float64]:
    """Factors at shells 0 .. D (beyond every corner): 1, then a cosine edge whose half height is at the resolution (Å).

    The edge is half as wide as the pass band and at least 3 shells wide, so that there is little ringing.
    """
    cut = box_size * pixel_size / resolution
    width = max(3.0, 0.5 * cut)
    return 0.5 + 0.5 * np.cos(np.pi * np.clip((np.arange(box_size + 1) - cut) / width + 0.5, 0, 1))


def low_pass(volume: NDArray[np.float32], pixel_size: float, resolution: float) -> NDArray[np.float32]:
    """The volume without detail finer than the resolution; pixel size and resolution in Å."""
    return radial_filter(volume, low_pass_curve(len(volume), pixel_size, resolution))


def sharpen(
    volume: NDArray[np.float32], b_factor: float, pixel_size: float, resolution: float | None = None
) -> NDArray[np.float32]:
    """The volume times exp(−B s²/4), cut with a soft edge at the resolution (Å; None: no cut).

    Args:
        b_factor: B-factor in Å² with RELION's sign: negative values sharpen, positive values blur.
    """
    box_size = len(volume)
    frequency = np.arange(box_size + 1) / (box_size * pixel_size)
    curve = np.exp(-0.25 * b_factor * frequency**2)
    if resolution is None:
        return radial_filter(volume, curve)
    cut = box_size * pixel_size / resolution
    # The edge is narrow, because the wide one of `low_pass` would sharpen a quarter beyond the resolution.
    return radial_filter(volume, curve * np.clip(0.5 * (cut + 2 - np.arange(box_size + 1)), 0, 1))


def estimate_b_factor(volume: NDArray[np.float32], pixel_size: float, resolution: float | None) -> float | None:
    """The B-factor in Å² that flattens the amplitudes between 10 Å and the resolution (Å), as `sharpen` takes it.

    It is the slope of a straight line through ln(rms amplitude) against s², with each shell weighted by its number of
    voxels, and it is negative if the amplitudes fall. It is None if the range is too short for a line, because there is
    no resolution or it is hardly better than 10 Å.
    Source: Rosenthal & Henderson (2003), J. Mol. Biol. 333:721, Guinier plot.
    """
    box_size = len(volume)
    if resolution is None:
        return None
    spectrum = half_spectrum(volume)
    n = shell_size(box_size)
    power = shell_correlation(spectrum, spectrum, box_size) / n
    frequency = np.arange(len(power)) / (box_size * pixel_size)
    used = (frequency >= 1 / GUINIER_START_IN_ANGSTROMS) & (frequency <= 1 / resolution) & (power > 0)
    if np.count_nonzero(used) < 5 or resolution > 0.8 * GUINIER_START_IN_ANGSTROMS:
        return None
    slope, _ = np.polyfit(frequency[used] ** 2, 0.5 * np.log(power[used]), 1, w=np.sqrt(n[used]))
    return float(4 * slope)


# --- masks ------------------------------------------------------------------------------------------------------------


def distance_from_origin(box_size: int) -> NDArray[np.float32]:
    """(D, D, D) distance of every voxel from voxel D//2, in pixels."""
    x = np.arange(box_size, dtype=np.float32) - box_size // 2
    return np.sqrt(x[:, None, None] ** 2 + x[None, :, None] ** 2 + x**2)


def _cosine_edge(distance: NDArray, edge: float) -> NDArray[np.float32]:
    """1 up to distance 0, 0 from distance `edge` on, and half a cosine between."""
    return (0.5 + 0.5 * np.cos(np.pi * np.clip(distance / max(edge, 1e-6), 0, 1))).astype(np.float32)


def soft_sphere(box_size: int, diameter: float, edge: float) -> NDArray[np.float32]:
    """(D, D, D) sphere: 1 inside the diameter, 0 from diameter/2 + edge on, a cosine between; both in pixels."""
    return _cosine_edge(distance_from_origin(box_size) - 0.5 * diameter, edge)


def mask_margins(box_size: int) -> tuple[float, float]:
    """(extension, edge) of a data mask in pixels: 1 and 2.5 at D = 32, 2 and 5 at 128, 4 and 8 at most.

    They grow with the box because the particle does: a mask that ends abruptly on the scale of the particle correlates
    the shells, and a mask that extends to the border of the box masks nothing.
    """
    return float(np.clip(box_size / 64, 1, 4)), float(np.clip(box_size / 25, 2.5, 8))


def data_mask(
    volume: NDArray[np.float32],
    pixel_size: float,
    diameter: float | None = None,
    resolution: float = 12.0,
) -> NDArray[np.float32] | None:
    """A soft mask around the particle, from the data; None if the data show no particle.

    Args:
        volume: (D, D, D) the average of the two half maps, with a white particle.
        pixel_size: pixel size in Å.
        diameter: diameter in Å of a sphere that surely holds the particle; by default `PARTICLE_SHARE` of the box.
        resolution: resolution in Å of the low-passed map that is cut, but never finer than 4 pixels.
    Returns:
        (D, D, D) between 0 and 1, 0 at the border of the box.
    """
    box_size = len(volume)
    extension, edge = mask_margins(box_size)
    smooth = low_pass(volume, pixel_size, max(resolution, 4 * pixel_size))
    support = _support(smooth, distance_from_origin(box_size), _radius_of(diameter, pixel_size, box_size))
    if support is None:
        return None
    return _soften(support, extension, edge) * soft_sphere(box_size, 2 * (box_size // 2 - edge), edge)


def soft_mask(
    volume: NDArray[np.float32], pixel_size: float, diameter: float | None = None, resolution: float = 12.0
) -> NDArray[np.float32]:
    """The mask of `data_mask`, or a soft sphere of this diameter if the data show no particle."""
    mask = data_mask(volume, pixel_size, diameter, resolution)
    if mask is not None:
        return mask
    box_size = len(volume)
    _, edge = mask_margins(box_size)
    radius = min(_radius_of(diameter, pixel_size, box_size), box_size // 2 - edge)
    return soft_sphere(box_size, 2 * radius, edge)


def _radius_of(diameter: float | None, pixel_size: float, box_size: int) -> float:
    """Radius in voxels for a diameter in Å, or for `PARTICLE_SHARE` of the box."""
    return 0.5 * (PARTICLE_SHARE * box_size if diameter is None else min(diameter / pixel_size, box_size))


def _support(smooth: NDArray[np.float32], distance: NDArray[np.float32], radius: float) -> NDArray[np.bool_] | None:
    """The voxels in which the low-passed map stands out from the noise; None if none does.

    The threshold is four noise levels above the background or 15 % of the peak, whichever is higher. The first decides
    in noisy maps, the second in clean maps, whose weak ripples would pass the first.
    """
    inside = distance <= radius
    background, noise = _level_and_spread(smooth[~inside])
    # 0.1 % of the sphere is above the peak: one hot voxel must not set the scale.
    peak = float(np.quantile(smooth[inside], 0.999)) - background
    if not np.isfinite(peak) or peak <= 6 * noise:
        return None
    binary = inside & (smooth - background > max(4 * noise, 0.15 * peak))
    labels, count = ndimage.label(binary)
    if count == 0:
        return None
    mass = ndimage.sum_labels(smooth - background, labels, np.arange(1, count + 1))
    kept = np.concatenate([[False], mass >= 0.1 * mass.max()])[labels]
    (box,) = ndimage.find_objects(kept.astype(np.int8))  # outside it there is nothing to fill
    kept[box] = ndimage.binary_fill_holes(kept[box])
    return kept


def _level_and_spread(values: NDArray[np.float32]) -> tuple[float, float]:
    """The median, and the standard deviation that follows from the median absolute deviation."""
    level = float(np.median(values))
    return level, 1.4826 * float(np.median(np.abs(values - level)))


def _soften(support: NDArray[np.bool_], extension: float, edge: float) -> NDArray[np.float32]:
    """The support, grown by `extension` pixels, with a cosine edge. Only the part that can be non-zero is computed."""
    margin = int(np.ceil(extension + edge)) + 1
    box = tuple(
        slice(max(s.start - margin, 0), s.stop + margin) for s in ndimage.find_objects(support.astype(np.int8))[0]
    )
    mask = np.zeros(support.shape, dtype=np.float32)
    mask[box] = _cosine_edge(ndimage.distance_transform_edt(~support[box]) - extension, edge)
    return mask


def mirrored(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mirror image of a (D, D, D) volume: z is negated about voxel D//2. For even D, one plane wraps around."""
    flipped = volume[::-1]
    return np.ascontiguousarray(np.roll(flipped, 1, axis=0) if len(volume) % 2 == 0 else flipped)


# --- resampling -------------------------------------------------------------------------------------------------------


def fourier_resize(volume: NDArray[np.float32], box_size: int) -> NDArray[np.float32]:
    """The same density with another number of voxels, cropped or zero-padded in Fourier space with the origin kept.

    The field of view stays, so that the pixel size is multiplied by ``D / box_size``; densities keep their values.
    The Nyquist planes of even boxes hold only half of each pair and are left out.
    """
    old = len(volume)
    if box_size < 2:
        raise InputError(f"new box of {box_size} voxels: it must have at least 2; choose a larger box")
    keep = (min(old, box_size) - 1) // 2
    source = half_spectrum(volume)
    target = np.zeros((box_size, box_size, box_size // 2 + 1), dtype=np.complex64)
    low, high = slice(0, keep + 1), slice(-keep, None) if keep else slice(0, 0)
    for z in (low, high):
        for y in (low, high):
            target[z, y, : keep + 1] = source[z, y, : keep + 1]
    return from_half_spectrum(target * np.float32((box_size / old) ** 3), box_size)
