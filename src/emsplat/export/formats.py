"""The formats in which a run is exported."""

from __future__ import annotations

import math
from pathlib import Path

from emsplat.errors import InputError
from emsplat.export.cif import write_cif
from emsplat.export.mrc import write_density
from emsplat.export.ply import write_ply
from emsplat.export.relion import NAMES, write_relion_maps
from emsplat.models.gaussians import Gaussians
from emsplat.runs.run import Run, open_run
from emsplat.runs.run_folder import AVERAGE
from emsplat.runtime.folders import check_folder
from emsplat.settings import SMALLEST_BOX


def export(
    folder: Path,
    format: str,
    output: Path | None = None,
    half: str = AVERAGE,
    pixel_size: float | None = None,
    box_size: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a run as ``ply``, ``cif``, ``mrc`` or ``relion``, and return the file or folder.

    Args:
        output: the file or folder to write; by default named after the run and the format, in the working directory.
        half: "1", "2" or "average".
        pixel_size, box_size: pixel size (Å) and box (voxels) of ``mrc``; by default those of the run's map, or a box
            of the same edge in Å.
    """
    run = open_run(folder)
    if format != "mrc" and (pixel_size is not None or box_size is not None):
        raise InputError(f"--pixel-size and --box-size: --format {format} has no grid; use them with --format mrc")
    if format == "relion":
        if half != AVERAGE:
            raise InputError(f"--half {half}: --format relion writes the map and both halves; leave out --half")
        output = output or Path(f"{folder.resolve().name}_relion")
        check_folder(output, NAMES, overwrite, "map of one of these names")
        write_relion_maps(run, output)
        return output
    suffix = "" if half == AVERAGE else f"_half{half}"
    output = output or Path(f"{folder.resolve().name}{suffix}.{format}")
    if output.exists() and not overwrite:
        raise InputError(f"{output}: exists already; choose another name with -o, or replace it with --overwrite")
    gaussians = Gaussians.load(run.gaussians(half))
    centre = run.box_size // 2 * run.pixel_size_in_angstroms
    if format == "ply":
        write_ply(output, gaussians)
    elif format == "cif":
        write_cif(output, gaussians, centre)
    else:
        box_size, pixel_size = _grid(run, box_size, pixel_size)
        shift = centre - box_size // 2 * pixel_size
        write_density(output, gaussians, box_size, pixel_size, run.pixel_size_in_angstroms, shift)
    return output


def _grid(run: Run, box_size: int | None, pixel_size: float | None) -> tuple[int, float]:
    """Box size in voxels and pixel size in Å of the grid that is asked for."""
    if pixel_size is not None and not 0.01 <= pixel_size <= 1000:
        raise InputError(
            f"--pixel-size {pixel_size}: it must be between 0.01 and 1000 Å; leave it out for that of the run"
        )
    pixel_size = pixel_size or run.pixel_size_in_angstroms
    if box_size is None:
        edge = run.box_size * run.pixel_size_in_angstroms
        same = pixel_size == run.pixel_size_in_angstroms
        box_size = run.box_size if same else max(SMALLEST_BOX, 2 * math.ceil(0.5 * edge / pixel_size))
    if box_size < SMALLEST_BOX:
        raise InputError(f"--box-size {box_size}: it must be at least {SMALLEST_BOX} voxels; choose a larger box")
    return box_size, pixel_size
