"""Writes refined particles in their original format: new values for what was refined, and everything else unchanged."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from emsplat.io.cs_columns import read_columns
from emsplat.io.formats import Format, sniff
from emsplat.io.relion import pixel_sizes_of_star
from emsplat.io.relion_rows import read_rows
from emsplat.io.star import read_star
from emsplat.io.write_back import write_back
from emsplat.io.write_relion import write_relion
from emsplat.particles.table import Particles

NAMES = ("particles.star", "particles.cs")


def write_refined(
    refined: Particles, contrast: NDArray[np.float64], quantities: Collection[str], folder: Path, by_column: bool = True
) -> Path:
    """Write particles.star or particles.cs into a folder and return its path.

    A source without columns for the pose of an image (tomography, cryoDRGN) gives a RELION star of everything that is
    known about the particles.

    Args:
        refined: the refined particles.
        contrast: (N,) factor by which the contrast changed.
        quantities: the quantities that were refined, of `settings.REFINABLE`.
        by_column: False if the values are not those of the source's columns.
    """
    kind = sniff(refined.source) if by_column and refined.source.exists() else Format.UNKNOWN
    if kind is Format.RELION:
        out, updates = folder / "particles.star", _of_star(refined, quantities)
    elif kind is Format.CRYOSPARC and "alignments3D/pose" in read_columns(refined.source, []).tables[0]:
        out, updates = folder / "particles.cs", _of_cs(refined, contrast, quantities)
    else:
        write_relion(refined, folder / "particles.star")
        return folder / "particles.star"
    write_back(refined.source, out, refined.ids.tolist(), updates)
    return out


def write_posed(particles: Particles, folder: Path, by_column: bool = True) -> list[Path]:
    """Write particles whose poses were found into a folder: particles.star, and particles.cs if they come from one.

    The particles' own format keeps every other column; poses, shifts and half sets are filled in, or added.

    Args:
        by_column: False if the CTFs of the particles are not those of the source's columns.
    """
    star = folder / NAMES[0]
    kind = sniff(particles.source) if by_column and particles.source.exists() else Format.UNKNOWN
    if kind is Format.RELION:
        updates = _of_star(particles, ("poses", "shifts")) | {"rlnRandomSubset": particles.half_set.astype(int)}
        write_back(particles.source, star, particles.ids.tolist(), updates)
        return [star]
    write_relion(particles, star)
    if kind is not Format.CRYOSPARC:
        return [star]
    columns = {
        "alignments3D/pose": Rotation.from_matrix(particles.rotations().transpose(0, 2, 1)).as_rotvec(),
        "alignments3D/shift": particles.origin_in_angstroms / particles.pixel_size_in_angstroms,
        "alignments3D/psize_A": np.full(len(particles), particles.pixel_size_in_angstroms),
        "alignments3D/split": particles.half_set - 1,
        "alignments3D/alpha": np.ones(len(particles)),
    }
    kinds = {"alignments3D/split": np.uint32}
    updates = {name: np.asarray(values).astype(kinds.get(name, np.float32)) for name, values in columns.items()}
    write_back(particles.source, folder / NAMES[1], particles.ids.tolist(), updates)
    return [star, folder / NAMES[1]]


def _of_star(p: Particles, quantities: Collection[str]) -> dict[str, ArrayLike]:
    columns: dict[str, ArrayLike] = {}
    if "poses" in quantities:
        columns |= {f"rlnAngle{name}": p.euler_angles_in_degrees[:, i] for i, name in enumerate(("Rot", "Tilt", "Psi"))}
    if "shifts" in quantities:
        columns |= _origins(p)
    if "contrast" in quantities:
        columns["rlnCtfScalefactor"] = p.ctf_scale
    if "defocus" in quantities:
        columns |= {"rlnDefocusU": p.defocus_u_in_angstroms, "rlnDefocusV": p.defocus_v_in_angstroms}
    return columns


def _origins(p: Particles) -> dict[str, ArrayLike]:
    """The origins for the columns that the star has. Those of RELION 3.0 are in pixels.

    Where the user gave another pixel size than the star has, the origins in Å are those of the star's: read again, they
    are the same number of pixels.
    """
    names = {name: f"rlnOrigin{name}" for name in "XY"}
    kept = {"rlnImageName": str} | {column: str for name in names.values() for column in (name, f"{name}Angst")}
    present = {column for table in read_star(p.source, kept).values() for column in table.columns}
    columns: dict[str, ArrayLike] = {}
    scale = _pixel_sizes_of_star(p) / p.pixel_size_in_angstroms
    for i, name in enumerate(names.values()):
        origin = p.origin_in_angstroms[:, i]
        if name in present:
            columns[name] = origin / p.pixel_size_in_angstroms
        if f"{name}Angst" in present or name not in present:
            columns[f"{name}Angst"] = origin * scale
    return columns


def _pixel_sizes_of_star(p: Particles) -> NDArray[np.float64]:
    """(N,) Å, as the star itself says for each image; that of the particles if it says nothing."""
    rows = read_rows(p.source, mandatory=())
    said = pixel_sizes_of_star(rows)
    if not said:
        return np.full(len(p), p.pixel_size_in_angstroms)
    size_of = dict(zip(rows.texts("rlnImageName"), np.asarray(said[0].value).tolist(), strict=True))
    return np.array([size_of[name] for name in p.ids.tolist()])


def _of_cs(p: Particles, contrast: NDArray[np.float64], quantities: Collection[str]) -> dict[str, ArrayLike]:
    """The values in the conventions that `read_cs` expects, in single precision as in cryoSPARC."""
    table = read_columns(p.source, []).tables[0]
    row_of = {str(uid): row for row, uid in enumerate(table["uid"].tolist())}
    rows = np.array([row_of[name] for name in p.ids.tolist()])
    columns: dict[str, NDArray] = {}
    if "poses" in quantities:
        columns["alignments3D/pose"] = Rotation.from_matrix(p.rotations().transpose(0, 2, 1)).as_rotvec()
    if "shifts" in quantities:
        pixel_size = np.full(len(p), p.pixel_size_in_angstroms)
        if "alignments3D/psize_A" in table:
            aligned = table["alignments3D/psize_A"][rows].astype(np.float64)
            # As in reading: if the user gives a better pixel size than the table, its ratio of two still holds.
            pixel_size = aligned * (pixel_size / table["blob/psize_A"][rows] if "blob/psize_A" in table else 1)
        columns["alignments3D/shift"] = p.origin_in_angstroms / pixel_size[:, None]
    if "contrast" in quantities:
        name = "alignments3D/alpha" if "alignments3D/alpha" in table else "ctf/scale"
        columns[name] = contrast * (table[name][rows] if name in table else 1)
    if "defocus" in quantities:
        columns |= {"ctf/df1_A": p.defocus_u_in_angstroms, "ctf/df2_A": p.defocus_v_in_angstroms}
    return {name: values.astype(np.float32) for name, values in columns.items()}
