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
) -> None:
    """The Fourier shell correlation of two maps: curve, where it falls below 0.5 and 0.143, and a figure.

    Args:
        first: a cubic map.
        second: a map of the same box and pixel size.
        mask: a map between 0 and 1 that both are multiplied by.
        output: the figure to draw: .png, .svg or .pdf.
        pixel_size: Å; overrides the maps' headers.
    """
    from emsplat.check.compare import compare

    compare(first, second, mask, output, pixel_size)
