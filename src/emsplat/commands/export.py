"""``emsplat export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


def export(
    run: Annotated[Positional[Path], arg(metavar="DIR")],
    format: Literal["ply", "cif", "mrc", "relion"],
    output: Annotated[Path | None, arg(aliases=["-o"], metavar="PATH")] = None,
    half: Literal["1", "2", "average"] = "average",
    pixel_size: float | None = None,
    box_size: int | None = None,
    overwrite: bool = False,
) -> None:
    """Export the Gaussians or the maps of a finished run for other programs.

    Args:
        run: Folder that emsplat reconstruct wrote.
        format: ply: the Gaussians for viewers of 3D Gaussian splats, only to look at. cif: the Gaussians as
            pseudo-atoms with anisotropic displacements (mmCIF), for ChimeraX. mrc: the density on a grid with any
            pixel size and box. relion: a folder with the map, the half maps by direct inversion and the mask under the
            names that relion_postprocess expects.
        output: File or folder to write. If left out, it is named after DIR, in the working directory.
        half: Export the Gaussians of one half, or the average of both.
        pixel_size: Pixel size of an mrc in Å. If left out, that of the run's map.
        box_size: Box size of an mrc in voxels. If left out, the box is as large as that of the run's map.
        overwrite: Replace what exists.

    Examples:
        # Write the Gaussians as pseudo-atoms for ChimeraX:
        emsplat export run --format cif
        # Put the Gaussians on a finer grid:
        emsplat export run --format mrc --pixel-size 0.8 --box-size 256 -o fine.mrc
        # Prepare the half maps for relion_postprocess:
        emsplat export run --format relion -o postprocess
    """
    from emsplat.runtime.console import ConsoleReporter

    reporter = ConsoleReporter()
    with reporter.loading():
        from emsplat.export.formats import export
    with reporter.stage("writing"):
        written = export(run, format, output, half, pixel_size, box_size, overwrite)
    reporter.line(str(written))
