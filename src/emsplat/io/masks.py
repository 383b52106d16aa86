"""Masks and maps on the grid of another map, in the place that their headers give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from emsplat.errors import InputError
from emsplat.io.mrc import Map, read_map

_TOLERANCE = 0.02  # by which interpolation may leave values beyond 0 and 1
_SAME = 0.01  # voxels or relative pixel size, below which two grids are one
_LEAST_COVERED = 0.5  # share of a mask's volume that must lie within the box


@dataclass(frozen=True)
class GridOfMap:
    """Where the voxels of a map lie."""

    box_size: int
    pixel_size_in_angstroms: float
    origin_in_angstroms: tuple[float, float, float] = (0.0, 0.0, 0.0)  # x, y, z of the first voxel


def read_mask(path: Path, grid: GridOfMap, ignore_origin: bool = False) -> tuple[NDArray[np.float32], str | None]:
    """A mask on the grid of a map, and a line on how it was placed where that is not obvious.

    The header's origin places it; where both origins are 0 and the edges of the boxes differ, the middles of the boxes
    coincide, as RELION and cryoSPARC have it. It is interpolated where box or pixel size differ.

    Args:
        ignore_origin: the first voxels coincide, whatever the headers say.
    Returns:
        (D, D, D) between 0 and 1.
    Raises:
        InputError: values beyond 0 and 1, none of them above ½, a pixel size that is not known where it is needed, or
            a mask most of which lies outside the box.
    """
    mask = read_map(path, cubic=False)
    check_mask(path, mask.values)
    found, line = _placed(path, mask, grid, ignore_origin)
    if found.sum(dtype=np.float64) < _LEAST_COVERED * _volume_on(mask, grid):
        raise InputError(
            f"{path}: most of the mask lies outside the box of the map ({line}); "
            "mend the origin in its header, or make it on the map's grid"
        )
    return np.clip(found, 0, 1), line


def check_mask(path: Path, values: NDArray[np.float32]) -> None:
    """InputError unless the values of a map can be those of a mask."""
    lowest, highest = float(values.min()), float(values.max())
    if lowest < -_TOLERANCE or highest > 1 + _TOLERANCE:
        first = "add 128 and " if lowest < -100 else ""
        bytes_of_old = f" (bytes? {first}divide by 255)" if 100 < highest - lowest < 256 else ""
        raise InputError(
            f"{path}: values from {lowest:g} to {highest:g}; a mask must lie between 0 and 1{bytes_of_old}: "
            "scale it, or give another file"
        )
    if highest < 0.5:
        raise InputError(f"{path}: no value above {highest:g}; a mask is 1 where the particle is: give another file")


def _volume_on(mask: Map, grid: GridOfMap) -> float:
    """The sum that the mask would have in voxels of the grid if all of it lay within the box."""
    size = mask.pixel_size_in_angstroms or grid.pixel_size_in_angstroms
    return float(np.clip(mask.values, 0, 1).sum(dtype=np.float64)) * (size / grid.pixel_size_in_angstroms) ** 3


def _placed(path: Path, mask: Map, grid: GridOfMap, ignore_origin: bool) -> tuple[NDArray[np.float32], str | None]:
    same_box = mask.values.shape == (grid.box_size,) * 3
    size = mask.pixel_size_in_angstroms
    if size is None:
        if not same_box:
            raise InputError(
                f"{path}: {' × '.join(map(str, mask.values.shape))} voxels and no pixel size in the header, for a "
                f"map of {grid.box_size}; write the pixel size into the header, or make the mask on the map's grid"
            )
        size = grid.pixel_size_in_angstroms
    ratio = grid.pixel_size_in_angstroms / size
    same_size = abs(ratio - 1) < _SAME / grid.box_size
    offset = offset_in_voxels(mask, grid, size)
    if ignore_origin:
        offset = np.zeros(3)
    elif not np.any(mask.origin_in_angstroms) and not np.any(grid.origin_in_angstroms):
        middle = np.array(mask.values.shape) // 2
        offset = middle[::-1] - ratio * (grid.box_size // 2)
    if same_box and same_size and np.abs(offset).max() < _SAME:
        return mask.values, None
    values = ndimage.affine_transform(
        mask.values, np.full(3, ratio), offset[::-1], output_shape=(grid.box_size,) * 3, order=1, cval=0.0
    )
    what = [] if same_size else [f"interpolated from voxels of {size:.4g} Å"]
    if np.abs(offset).max() >= _SAME:
        moved = ", ".join(f"{0.0 - value / ratio:+.4g}" for value in offset)
        what.append(f"placed {moved} voxels (x, y, z) off, by its header's origin and box")
    return values.astype(np.float32, copy=False), f"mask {path}: {' and '.join(what) or 'cropped'}"


def offset_in_voxels(of: Map, grid: GridOfMap, pixel_size_in_angstroms: float) -> NDArray[np.float64]:
    """(3,) x, y, z: the voxel of the map that lies at the first voxel of the grid, by the headers."""
    return (np.array(grid.origin_in_angstroms) - of.origin_in_angstroms) / pixel_size_in_angstroms


def moved_to(of: Map, grid: GridOfMap) -> NDArray[np.float32]:
    """(D, D, D) a map of the same box and pixel size where its header places it; 0 outside it."""
    offset = offset_in_voxels(of, grid, grid.pixel_size_in_angstroms)[::-1]
    whole = np.rint(offset)
    order = 1 if np.abs(offset - whole).max() < _SAME else 3
    shift = -whole if order == 1 else -offset
    return ndimage.shift(of.values, shift, order=order, mode="constant", cval=0.0).astype(np.float32, copy=False)
