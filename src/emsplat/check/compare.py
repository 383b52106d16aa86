"""The comparison of two maps for `emsplat fsc`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from emsplat.errors import InputError
from emsplat.figures.reconstruction import figure_fsc_pair
from emsplat.io.mrc import Map, read_map
from emsplat.validation.correlation import Curve, fsc, resolution_at

THRESHOLDS = (0.5, 0.143)
SMALLEST_BOX = 4
_FORMATS = (".png", ".svg", ".pdf")
_LARGEST_DISAGREEMENT = 0.01  # relative, between the pixel sizes of two maps


def compare(
    first: Path, second: Path, mask: Path | None, figure: Path, pixel_size: float | None = None
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
    window = None if mask is None else read_map(mask).values
    if window is not None and not window.max() > 0:
        raise InputError(f"--mask {mask}: is zero everywhere; give a mask that is 1 where the particle is")
    if a.values.shape != b.values.shape or (window is not None and window.shape != a.values.shape):
        boxes = ", ".join(f"{len(v)}" for v in (a.values, b.values, window) if v is not None)
        raise InputError(f"{first}, {second}: boxes of {boxes} voxels differ; resample the maps to one box")
    plain = fsc(a.values, b.values)
    masked = None if window is None else fsc(a.values, b.values, window)
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
