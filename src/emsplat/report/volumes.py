"""Maps made small enough for a page: cut to the particle, down-sampled, one byte a voxel, packed."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

from emsplat.fourier import maps

SLICES_EDGE = 112  # voxels of the volumes that are sliced, at most: 1.4 MB before packing
SURFACE_EDGE = 120  # of the one whose surface is shown: finer than the map where that is small, so that it is smooth
_COARSE_EDGE = 48  # of what colours the surface
_EFFORT = 4  # of the packing: noise hardly packs any smaller at the default of 6, which takes twice the time
_MARGIN = 3  # voxels about the mask
_NEIGHBOURHOOD = 2.5  # σ in coarse voxels, of the neighbourhood in which halves are compared


@dataclass(frozen=True)
class Window:
    """A cube about the particle, sampled on n voxels an edge."""

    first: int  # voxel of the run's map at which it begins, on every axis
    edge: int  # voxels of the run's map
    n: int
    pixel_size_in_angstroms: float  # of the run's map

    @property
    def voxel_in_angstroms(self) -> float:
        return self.pixel_size_in_angstroms * self.edge / self.n

    @property
    def cut(self) -> tuple[slice, slice, slice]:
        return (slice(self.first, self.first + self.edge),) * 3

    def sample(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, n, n) what the window shows of a (D, D, D) map, cropped in Fourier space."""
        return resampled(volume[self.cut], (self.n,) * 3)

    @property
    def coarse_n(self) -> int:
        """Voxels an edge of what varies slowly."""
        return min(self.edge, _COARSE_EDGE)

    def coarse(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        """(c, c, c) the same, on the coarse grid."""
        return resampled(volume[self.cut], (self.coarse_n,) * 3)

    def nearest(self, volume: NDArray) -> NDArray:
        """(c, c, c) voxels of a (D, D, D) volume at the places of the coarse grid, picked, not filtered."""
        at = self.first + np.arange(self.coarse_n) * self.edge // self.coarse_n
        return volume[np.ix_(at, at, at)]


def window_about(mask: NDArray[np.float32], pixel_size: float) -> Window:
    """The cube about the box centre that holds the mask."""
    box_size = len(mask)
    half = box_size // 2
    if mask.any():
        seen = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        reach = max(max(half - int(at[0]), int(at[-1]) - half) for at in seen)
        half = min(half, reach + _MARGIN)
    edge = min(2 * half, box_size)
    return Window(box_size // 2 - half, edge, min(edge, SLICES_EDGE), pixel_size)


def resampled(volume: NDArray[np.float32], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """The same on a finer or coarser grid, in Fourier space, axis by axis; grey values and voxel 0 stay."""
    along_z, along_y, along_x = (_resampling(*pair) for pair in zip(volume.shape, shape, strict=True))
    # One product an axis, not one a plane, whose threads would wait for each other at every plane.
    if along_x is not None:
        volume = np.tensordot(volume, along_x, axes=(2, 1))
    if along_y is not None:
        volume = np.tensordot(volume, along_y, axes=(1, 1)).swapaxes(1, 2)
    if along_z is not None:
        volume = (along_z @ volume.reshape(len(volume), -1)).reshape(-1, *volume.shape[1:])
    return np.ascontiguousarray(volume)


def _resampling(old: int, new: int) -> NDArray[np.float32] | None:
    """(new, old) matrix, None for the identity: for edges of some hundreds a product is faster than transforms."""
    if old == new:
        return None
    kept = (min(old, new) + 1) // 2  # the Nyquist frequency of an even edge is left out
    spectra = scipy.fft.rfft(np.eye(old))[:, :kept]
    return np.ascontiguousarray(scipy.fft.irfft(spectra, n=new).T * (new / old), dtype=np.float32)


def packed(volume: NDArray[np.float32], low: float, high: float) -> dict[str, Any]:
    """A volume for the page: bytes from `low` to `high`, deflated, base64."""
    scaled = np.clip((volume - low) * (255 / (high - low)), 0, 255)
    data = zlib.compress(np.rint(scaled).astype(np.uint8).tobytes(), _EFFORT)
    return {"n": len(volume), "low": low, "high": high, "data": base64.b64encode(data).decode()}


def span(volume: NDArray[np.float32]) -> tuple[float, float]:
    """Lowest and highest value, never equal."""
    low, high = float(volume.min()), float(volume.max())
    return low, high if high > low else low + 1.0


def surface_level(volume: NDArray[np.float32], mask: NDArray[np.float32]) -> float:
    """A first level for the isosurface: Otsu's threshold of the density in the mask, the best cut of it into two.

    Source: Otsu (1979), IEEE Trans. Syst. Man Cybern. 9:62.
    """
    inside = volume[mask > 0.5]
    if len(inside) == 0:
        return float(volume.mean() + 3 * volume.std())
    counts, edges = np.histogram(inside, bins=256)
    centres = 0.5 * (edges[1:] + edges[:-1])
    below = np.cumsum(counts)[:-1]
    above = len(inside) - below
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total[:-1] / below - (total[-1] - total[:-1]) / above) ** 2
    return float(edges[1:-1][np.nanargmax(between)])


# --- what the surface is coloured by ----------------------------------------------------------------------------------


def local_agreement(first: NDArray[np.float32], second: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Correlation of two volumes within a Gaussian neighbourhood of σ voxels about every voxel."""
    a, b = first - first.mean(), second - second.mean()
    ab, aa, bb = (ndimage.gaussian_filter(x, sigma) for x in (a * b, a * a, b * b))
    return ab / np.sqrt(np.maximum(aa * bb, np.finfo(np.float32).tiny))


def agreement_on(
    window: Window, first: NDArray[np.float32], second: NDArray[np.float32], resolution: float | None
) -> NDArray[np.float32]:
    """(c, c, c) local agreement of two maps on the coarse grid, without detail finer than the resolution (Å)."""
    voxel = window.pixel_size_in_angstroms * window.edge / window.coarse_n
    low_pass = max(resolution or 0.0, 2 * voxel)
    a, b = (maps.low_pass(volume, voxel, low_pass) for volume in (first, second))
    return local_agreement(a, b, _NEIGHBOURHOOD)


def colours_on(window: Window, values: NDArray[np.float32], mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """(c, c, c) of a (D, D, D) property known within the mask; beyond it, that of the nearest known voxel."""
    return spread_outwards(window.nearest(values), window.nearest(mask) > 0.5)


def spread_outwards(values: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The values where they are known, elsewhere those of the nearest voxel where they are."""
    if not known.any():
        return values
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return values[tuple(nearest)]
