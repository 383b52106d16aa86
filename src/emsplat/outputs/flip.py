"""The other hand of a finished run, which its images fit as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from emsplat.errors import InputError
from emsplat.fourier.maps import mirrored
from emsplat.io import read_map, read_particles, write_map
from emsplat.io.write_refined import write_refined
from emsplat.particles.table import Particles
from emsplat.runs.run import open_run, required
from emsplat.runtime.files import replacing

NAMES = ("map_flipped.mrc", "particles_flipped")


def flipped(particles: Particles) -> Particles:
    """The particles as images of the map's mirror image, z negated: of every pose, the tilt."""
    return replace(particles, euler_angles_in_degrees=particles.euler_angles_in_degrees * np.array([1.0, -1.0, 1.0]))


def flip(folder: Path, overwrite: bool = False) -> list[Path]:
    """Write the mirror image of a run's map, and its particles with the poses of that, into its folder.

    Args:
        overwrite: replace the files that an earlier call has written.
    Returns:
        The files.
    Raises:
        InputError: no finished run, or files that are there already.
    """
    run = open_run(folder)
    source = read_map(required(run.folder.map()))
    has_poses = run.summary.get("refinement") or run.summary.get("ab_initio")
    tables = [path for path in run.folder.refined_particles if path.is_file()] if has_poses else []
    written = [folder / NAMES[0], *(folder / f"{NAMES[1]}{path.suffix}" for path in tables)]
    present = [path for path in written if path.exists()]
    if present and not overwrite:
        raise InputError(f"{present[0]}: is there already; replace it with --overwrite")
    with replacing(written[0]) as temporary:
        write_map(temporary, mirrored(source.values), run.pixel_size_in_angstroms)
    for table, out in zip(tables, written[1:], strict=True):
        particles = flipped(read_particles(table, need_stacks=False, need_ctf=False))
        with TemporaryDirectory(dir=folder) as temporary_folder:
            made = write_refined(particles, np.ones(len(particles)), ("poses",), Path(temporary_folder))
            made.replace(out)
    return written
