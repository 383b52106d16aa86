"""Gaussians as pseudo-atoms in mmCIF, which has no limit on their number. Ellipsoids are displacement parameters.

Source: the PDBx/mmCIF dictionary, categories atom_site and atom_site_anisotrop: U is the covariance in Å²,
``B = 8π² tr(U)/3``. Each atom is a residue of its own, of the unknown ligand UNL, so that programs draw no bonds.
A chain ends at residue 9999, because some programs read no more than four digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.models.gaussians import Gaussians
from emsplat.runtime.files import replacing

_ATOM_SITE = (
    *("group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id", "label_asym_id"),
    *("label_entity_id", "label_seq_id", "pdbx_PDB_ins_code", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy"),
    *("B_iso_or_equiv", "auth_seq_id", "auth_asym_id", "pdbx_PDB_model_num"),
)
_RESIDUES_IN_A_CHAIN = 9999
_ANISOTROP = ("id", "type_symbol", *(f"U[{i}][{j}]" for i, j in ("11", "22", "33", "12", "13", "23")))


def write_cif(
    path: Path, gaussians: Gaussians, centre_in_angstroms: float, displacements: NDArray[np.float32] | None = None
) -> None:
    """Write coordinates in Å from the first voxel of the map, so that model and map overlay.

    The occupancy is the mass in units of the largest mass, which is _emsplat_gaussians.mass_of_occupancy_1.

    Args:
        centre_in_angstroms: the coordinate of the box centre, the origin of the Gaussians, on each axis.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.writelines(f"{line}\n" for line in _lines(gaussians, centre_in_angstroms))
        if displacements is not None:
            file.writelines(f"{line}\n" for line in _displacement_lines(displacements))


def _displacement_lines(displacements: NDArray[np.float32]) -> Iterator[str]:
    yield "loop_\n" + "\n".join(f"_emsplat_displacement.{name}" for name in ("atom_id", "latent", "x", "y", "z"))
    for number, of_atom in enumerate(displacements.tolist(), start=1):
        for latent, (x, y, z) in enumerate(of_atom, start=1):
            yield f"{number} {latent} {x:.5f} {y:.5f} {z:.5f}"


def _lines(gaussians: Gaussians, centre: float) -> Iterator[str]:
    masses = gaussians.masses().double().numpy()
    positions = (gaussians.centres.double().numpy() + centre).tolist()
    covariances = gaussians.covariances().double().numpy()
    b_factors = 8 * np.pi**2 / 3 * np.trace(covariances, axis1=1, axis2=2)
    yield "data_emsplat"
    yield f"_emsplat_gaussians.mass_of_occupancy_1 {masses.max():.9g}"
    yield "loop_\n_entity.id\n_entity.type\n1 non-polymer"
    yield "loop_\n" + "\n".join(f"_atom_site.{name}" for name in _ATOM_SITE)
    atoms = zip(positions, (masses / masses.max()).tolist(), b_factors.tolist(), strict=True)
    for number, ((x, y, z), mass, b) in enumerate(atoms, start=1):
        chain, residue = divmod(number - 1, _RESIDUES_IN_A_CHAIN)
        name = _chain_name(chain)
        yield (
            f"HETATM {number} C C . UNL {name} 1 . ? {x:.4f} {y:.4f} {z:.4f} {mass:.6g} {b:.4f} {residue + 1} {name} 1"
        )
    yield "loop_\n" + "\n".join(f"_atom_site_anisotrop.{name}" for name in _ANISOTROP)
    upper = covariances[:, (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)].tolist()
    for number, u in enumerate(upper, start=1):
        yield f"{number} C " + " ".join(f"{element:.6f}" for element in u)


def _chain_name(number: int) -> str:
    """The names A, B, ... Z, AA, AB, ... for the numbers from 0."""
    before, letter = divmod(number, 26)
    return (_chain_name(before - 1) if before else "") + chr(ord("A") + letter)
