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
    """A finished run's Gaussians or maps for other programs.

    Args:
        run: the folder that emsplat reconstruct wrote.
        format: ply: the Gaussians for 3D Gaussian splatting viewers, for looking only; cif: as pseudo-atoms with
            anisotropic displacements (mmCIF), for ChimeraX; mrc: on a grid of any pixel size and box; relion: a folder
            with map, unfiltered half maps and mask under RELION's names, for relion_postprocess.
        output: the file or folder to write; left out: named after DIR, in the working directory.
        half: the Gaussians of one half, or the average of both.
        pixel_size: of an mrc, Å; left out: that of the run's map.
        box_size: of an mrc, voxels; left out: as large as the run's map.
        overwrite: replace what exists.
    """
    from emsplat.runtime.console import ConsoleReporter

    reporter = ConsoleReporter()
    with reporter.stage("loading"):
        from emsplat.export.formats import export
    with reporter.stage("writing"):
        written = export(run, format, output, half, pixel_size, box_size, overwrite)
    reporter.line(str(written))
