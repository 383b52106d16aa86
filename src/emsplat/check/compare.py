"""The comparison of two maps for `emsplat fsc`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.figures.reconstruction import figure_fsc_pair
from emsplat.io.masks import GridOfMap, moved_to, offset_in_voxels, read_mask
from emsplat.io.mrc import Map, read_map
from emsplat.validation.correlation import Curve, fsc, resolution_at

THRESHOLDS = (0.5, 0.143)
SMALLEST_BOX = 4
_FORMATS = (".png", ".svg", ".pdf")
_LEAST_OFFSET = 0.01  # voxels, between the origins of two maps that are told apart
_LARGEST_DISAGREEMENT = 0.01  # relative, between the pixel sizes of two maps


def compare(
    first: Path,
    second: Path,
    mask: Path | None,
    figure: Path,
    pixel_size: float | None = None,
    ignore_origins: bool = False,
) -> dict[float, float | None]:
    """Print and draw the FSC of two maps. Returns the resolution in Å at each threshold, or None if not reached."""
    if figure.suffix.lower() not in _FORMATS:
        raise InputError(f"--output {figure}: the name of a figure ends in {', '.join(_FORMATS)}; choose one of these")
    if pixel_size is not None and not 0 < pixel_size < np.inf:
        raise InputError(f"--pixel-size {pixel_size}: it must be a positive number of Å; give that")
    a, b = read_map(first), read_map(second)
    if len(a.values) < SMALLEST_BOX:
        raise InputError(
            f"{first}: has a box of {len(a.values)}, and an FSC needs {SMALLEST_BOX} voxels a side; give a larger map"
        )
    size = _common_pixel_size(first, a, second, b) if pixel_size is None else pixel_size
    if a.values.shape != b.values.shape:
        boxes = f"{len(a.values)}, {len(b.values)}"
        raise InputError(f"{first}, {second}: boxes of {boxes} voxels differ; resample the maps to one box")
    grid = GridOfMap(len(a.values), size, _origin_of(a))
    other = b.values if ignore_origins else _in_place(first, a, second, b, grid)
    window = None
    if mask is not None:
        window, line = read_mask(mask, grid, ignore_origins)
        if line:
            print(line)
    plain = fsc(a.values, other)
    masked = None if window is None else fsc(a.values, other, window)
    best = plain if masked is None else masked
    frequency = np.arange(1, len(plain) + 1) / (len(a.values) * size)
    found = {threshold: resolution_at(best, frequency, threshold) for threshold in THRESHOLDS}
    _print_curves(frequency, plain, masked)
    for threshold, resolution in found.items():
        text = f"{resolution:.2f} Å" if resolution is not None else "not reached"
        print(f"FSC{' masked' if masked is not None else ''} = {threshold}: {text}")
    figure_fsc_pair(plain, frequency, figure, found, masked)
    print(f"figure: {figure}")
    return found


def _origin_of(a: Map) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in a.origin_in_angstroms)
    return x, y, z


def _in_place(first: Path, a: Map, second: Path, b: Map, grid: GridOfMap) -> NDArray[np.float32]:
    """The second map where the headers' origins place it; InputError where the maps agree better without them."""
    offset = offset_in_voxels(b, grid, grid.pixel_size_in_angstroms)
    if np.abs(offset).max() < _LEAST_OFFSET:
        return b.values
    placed = moved_to(b, grid)
    as_they_lie, by_origin = (_correlation(a.values, other) for other in (b.values, placed))
    moved = ", ".join(f"{0.0 - value:+.4g}" for value in offset)
    if as_they_lie > by_origin:
        raise InputError(
            f"{first}, {second}: by the origins in their headers {_text(a)} and {_text(b)} Å the second lies {moved} "
            f"voxels off, where the two correlate by {by_origin:.2f}; as their voxels lie, by {as_they_lie:.2f}: mend "
            "the headers, or give --ignore-origins"
        )
    print(f"{second}: moved by {moved} voxels (x, y, z), as the origins in the headers say")
    return placed


def _text(a: Map) -> str:
    return "(" + ", ".join(f"{value:g}" for value in a.origin_in_angstroms) + ")"


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Of the densities of two maps."""
    x, y = (v.astype(np.float64).ravel() - v.mean(dtype=np.float64) for v in (a, b))
    norm = np.sqrt(np.dot(x, x) * np.dot(y, y))
    return float(np.dot(x, y) / norm) if norm else 0.0


def _common_pixel_size(first: Path, a: Map, second: Path, b: Map) -> float:
    sizes = a.pixel_size_in_angstroms, b.pixel_size_in_angstroms
    known = [size for size in sizes if size is not None]
    if not known:
        raise InputError(f"{first}, {second}: no pixel size in the headers (0 and 1 mean unset); give --pixel-size")
    if max(known) / min(known) - 1 > _LARGEST_DISAGREEMENT:
        raise InputError(f"{first}, {second}: pixel sizes of {known[0]:.5g} and {known[1]:.5g} Å; give --pixel-size")
    return known[0]


def _print_curves(frequency: Curve, plain: Curve, masked: Curve | None) -> None:
    print("shell  resolution     FSC" + ("  masked" if masked is not None else ""))
    for i, (f, value) in enumerate(zip(frequency, plain, strict=True)):
        more = f"  {masked[i]:6.3f}" if masked is not None else ""
        print(f"{i + 1:5d}  {1 / f:8.2f} Å  {value:6.3f}{more}")
