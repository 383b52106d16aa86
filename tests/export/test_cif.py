"""Gaussians as pseudo-atoms: read by gemmi, and laid over the map by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gemmi
import numpy as np

from emsplat.export.cif import write_cif
from emsplat.io.mrc import write_map
from emsplat.models.gaussians import Gaussians


def atoms_of(path: Path) -> list[gemmi.Atom]:
    structure = gemmi.read_structure(str(path))
    assert len(structure) == 1
    return [atom for chain in structure[0] for residue in chain for atom in residue]


def test_more_than_99999_atoms_with_their_ellipsoids(some_gaussians: Callable, tmp_path: Path) -> None:
    gaussians: Gaussians = some_gaussians(100_500)
    write_cif(tmp_path / "model.cif", gaussians, 33.0)
    atoms = atoms_of(tmp_path / "model.cif")
    assert len(atoms) == 100_500
    assert [atom.serial for atom in atoms[-2:]] == [100_499, 100_500]
    positions = np.array([atom.pos.tolist() for atom in atoms])
    assert np.allclose(positions, gaussians.centres.double().numpy() + 33.0, atol=1e-3)
    covariances = gaussians.covariances().double().numpy()
    u = np.array([atom.aniso.as_mat33().tolist() for atom in atoms])
    assert np.allclose(u, covariances, atol=1e-5)
    assert np.allclose([atom.b_iso for atom in atoms], [atom.b_eq() for atom in atoms], rtol=1e-3)

    occupancies = np.array([atom.occ for atom in atoms])
    assert occupancies.max() == 1
    unit = float(
        gemmi.cif.read(str(tmp_path / "model.cif")).sole_block().find_value("_emsplat_gaussians.mass_of_occupancy_1")
    )
    assert np.allclose(occupancies * unit, gaussians.masses().double().numpy(), rtol=1e-4)


def test_atoms_stand_where_the_map_is_dense(some_gaussians: Callable, tmp_path: Path) -> None:
    """The map's value at a lone atom is the peak of its Gaussian, for odd and even boxes."""
    for box_size in (47, 48):
        one: Gaussians = some_gaussians(1, seed=box_size, narrowest=2.5, isotropic=True)
        write_map(tmp_path / "map.mrc", one.voxelise(box_size, 1.2), 1.2)
        write_cif(tmp_path / "model.cif", one, box_size // 2 * 1.2)
        grid = gemmi.read_ccp4_map(str(tmp_path / "map.mrc"), setup=True).grid
        [atom] = atoms_of(tmp_path / "model.cif")
        sigma = float(one.log_scales.exp().mean())
        peak = float(one.masses()) / (2 * np.pi * sigma**2) ** 1.5
        assert abs(grid.interpolate_value(atom.pos, order=3) / peak - 1) < 0.01
        for shift in (gemmi.Position(1.2, 0, 0), gemmi.Position(0, -1.2, 0), gemmi.Position(0, 0, 1.2)):
            expected = np.exp(-0.5 * (1.2 / sigma) ** 2)
            assert abs(grid.interpolate_value(atom.pos + shift, order=3) / peak - expected) < 0.02
