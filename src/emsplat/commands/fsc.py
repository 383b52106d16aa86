"""``emsplat fsc``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def fsc(
    first: Annotated[Positional[Path], arg(metavar="A.mrc")],
    second: Annotated[Positional[Path], arg(metavar="B.mrc")],
    mask: Path | None = None,
    output: Annotated[Path, arg(aliases=["-o"], metavar="FIGURE")] = Path("fsc.png"),
    pixel_size: float | None = None,
    ignore_origins: bool = False,
) -> None:
    """Compute the Fourier shell correlation of two maps: the curve, its crossings of 0.5 and 0.143, and a figure.

    Args:
        first: A cubic map.
        second: A map with the same box and pixel size.
        mask: Map with values between 0 and 1 that both maps are multiplied by. It lies where its header places it, and
            is interpolated where its box or pixel size differs.
        output: Figure to draw, with the ending .png, .svg or .pdf.
        pixel_size: Pixel size in Å. It overrides the headers of the maps.
        ignore_origins: Compare voxel with voxel, whatever origins the headers give.

    Examples:
        # Compare the Gaussian half maps of a run within its mask:
        emsplat fsc run/map_half1.mrc run/map_half2.mrc --mask run/mask.mrc
        # Compare a map with one whose header lacks the pixel size:
        emsplat fsc run/map.mrc other.mrc --pixel-size 1.5 -o comparison.pdf
    """
    from emsplat.check.compare import compare

    compare(first, second, mask, output, pixel_size, ignore_origins)
