"""What a simulation takes for true: slices, the potential of atoms, and maps on other grids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest

from emsplat.conventions import rotation_matrices
from emsplat.fourier.slices import central_slices, fourier_volume, transform_at
from emsplat.io.mrc import write_map
from emsplat.simulation import bundled_model, molecular_map
from emsplat.simulation.acquisition import acquire
from emsplat.simulation.atoms import (
    VOLTS_PER_SCATTERING_DENSITY,
    ice_scattering_density,
    potential_of_atoms,
    read_atoms,
)
from emsplat.simulation.truth import resampled
from simulations import SMALL, TINY


def direct_transform(volume: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(n,) F(k) = Σ V(r) exp(−2πi k·r/D) in float64; k: (n, 3) x, y, z in 1/D."""
    size = volume.shape[0]
    place = np.arange(size) - size // 2
    z, y, x = np.exp(-2j * np.pi / size * k.T[::-1, :, None] * place)
    return np.einsum("kx,ky,kz,zyx->k", x, y, z, volume.astype(np.float64), optimize=True)


def half_plane(box_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """kx, ky (D, D//2+1), and what lies below Nyquist's radius."""
    kx, ky = np.meshgrid(np.arange(box_size // 2 + 1), np.fft.fftfreq(box_size, 1 / box_size))
    return kx, ky, np.hypot(kx, ky) < box_size / 2


def atoms_model(n: int, b_factor: float) -> gemmi.Model:
    """A small lopsided cloud of carbons, oxygens and a sulphur."""
    rng = np.random.default_rng(1)
    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1))
    chain = structure[0].add_chain("A")
    residue = chain.add_residue(gemmi.Residue())
    residue.name = "LIG"
    for i in range(n):
        atom = gemmi.Atom()
        atom.name, atom.element = f"C{i}", gemmi.Element(["C", "O", "S"][i % 3 if i < 3 else i % 2])
        atom.pos = gemmi.Position(*(rng.normal(0, 4, 3) * (1, 0.6, 1.3)))
        atom.b_iso = b_factor
        residue.add_atom(atom)
    return structure[0].clone()


# The slices


@pytest.mark.parametrize("box_size", [20, 21])
def test_slices_against_the_direct_sum(box_size: int) -> None:
    rng = np.random.default_rng(0)
    volume = rng.standard_normal((box_size,) * 3).astype(np.float32)  # noise up to the edges: the hardest case
    rotations = rotation_matrices(rng.uniform(-180, 180, (5, 3)))
    origins = rng.normal(0, 2, (5, 2))
    slices = central_slices(fourier_volume(volume), rotations, origins)
    kx, ky, inside = half_plane(box_size)
    for got, a, (x, y) in zip(slices, rotations, origins, strict=True):
        assert not got[~inside].any()
        k = kx[inside][:, None] * a[0] + ky[inside][:, None] * a[1]
        centre = kx[inside] * (box_size // 2 - x) + ky[inside] * (box_size // 2 - y)
        expected = direct_transform(volume, k) * np.exp(-2j * np.pi / box_size * centre)
        assert np.linalg.norm(got[inside] - expected) < 1e-5 * np.linalg.norm(expected)


def test_the_transform_at_any_point() -> None:
    volume = np.random.default_rng(0).standard_normal((16, 16, 16)).astype(np.float32)
    points = np.random.default_rng(1).uniform(-8, 8, (200, 3))
    expected = direct_transform(volume, points)
    got = transform_at(fourier_volume(volume), points)
    assert np.linalg.norm(got - expected) < 2e-5 * np.linalg.norm(expected)
    assert transform_at(fourier_volume(volume), points[:0]).shape == (0,)


# The truth


@pytest.mark.parametrize("box_size", [32, 33])
@pytest.mark.parametrize(("b_factor", "tolerance"), [(20.0, 0.08), (400.0, 1e-3)])
def test_images_of_atoms_against_their_analytic_transform(box_size: int, b_factor: float, tolerance: float) -> None:
    """Hand, axes, scale, centre and shift, with nothing of the program's own on the other side.

    What is left is the ringing of the sharp band, cut at the box's faces: less with less signal at Nyquist.
    """
    pixel_size = 1.8
    model = atoms_model(12, b_factor)
    truth = potential_of_atoms(model, box_size, pixel_size, b_factor, solvent=False)
    settings = replace(SMALL, n_images=4, box_size=box_size, pixel_size_in_angstroms=pixel_size, snr=np.inf)
    particles = acquire(settings, Path("p.star"), Path("p.mrcs"))
    origins = particles.origin_in_angstroms / pixel_size
    got = central_slices(fourier_volume(truth), particles.rotations(), origins)

    kx, ky, inside = half_plane(box_size)
    kx, ky = kx[inside], ky[inside]
    s = np.hypot(kx, ky) / (box_size * pixel_size)
    centre_of_mass = np.array(model.calculate_center_of_mass().tolist())
    for image, a, origin in zip(got, particles.rotations(), origins, strict=True):
        expected = np.zeros(len(kx), dtype=complex)
        for site in model.all():
            table = site.atom.element.c4322
            factor = sum(p * np.exp(-q * s**2 / 4) for p, q in zip(table.a, table.b, strict=True))
            x, y, _ = a @ (np.array(site.atom.pos.tolist()) - centre_of_mass) / pixel_size
            at = kx * (x + box_size // 2 - origin[0]) + ky * (y + box_size // 2 - origin[1])
            expected += factor * np.exp(-b_factor * s**2 / 4 - 2j * np.pi / box_size * at)
        expected *= VOLTS_PER_SCATTERING_DENSITY / pixel_size**3
        assert np.linalg.norm(image[inside] - expected) < tolerance * np.linalg.norm(expected)


def test_the_truth_is_band_limited_and_centred() -> None:
    for box_size in (48, 49):
        truth = molecular_map(bundled_model(), replace(SMALL, box_size=box_size, solvent=False))
        spectrum = np.fft.fftshift(np.abs(np.fft.fftn(truth)))
        k = np.fft.fftshift(np.fft.fftfreq(box_size, 1 / box_size))
        radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2)
        assert spectrum[2 * radius >= box_size].max() < 1e-6 * spectrum.max()
        place = np.arange(box_size) - box_size // 2
        for axis in range(3):
            others = tuple(i for i in range(3) if i != axis)
            assert abs((truth.sum(axis=others) * place).sum() / truth.sum()) < 0.1


def test_ice_has_the_known_mean_inner_potential() -> None:
    assert ice_scattering_density() * VOLTS_PER_SCATTERING_DENSITY == pytest.approx(4.53, abs=0.02)  # Vulović 2013


def test_solvent_lowers_the_contrast_of_a_protein_but_keeps_it_positive() -> None:
    model = read_atoms(bundled_model())
    vacuum = potential_of_atoms(model, 48, 3.0, solvent=False)
    in_ice = potential_of_atoms(model, 48, 3.0)
    mass = sum(site.atom.element.weight * site.atom.occ for site in model.all())
    displaced = (vacuum - in_ice).sum() * 27 / (ice_scattering_density() * VOLTS_PER_SCATTERING_DENSITY)
    assert 1.1 < displaced / mass < 1.5  # Å³ per Da; protein has 1.2
    assert 0.2 < in_ice.sum() / vacuum.sum() < 0.6


def test_missing_hydrogens_scatter_all_the_same() -> None:
    model = read_atoms(bundled_model())
    bare = model.clone()
    bare.remove_hydrogens()
    whole, restored = (potential_of_atoms(m, 40, 4.0, 40.0, solvent=False).sum() for m in (model, bare))
    heavy_only = sum(s.atom.element.c4322.calculate_sf(0.0) * s.atom.occ for s in bare.all())
    heavy_only *= VOLTS_PER_SCATTERING_DENSITY / 4.0**3
    assert abs(restored / whole - 1) < 0.01
    assert heavy_only / whole < 0.9


def test_an_unknown_element_counts_as_carbon() -> None:
    known, unknown = atoms_model(2, 30.0), atoms_model(2, 30.0)
    for site in known.all():
        site.atom.element = gemmi.Element("C")
    for site in unknown.all():
        site.atom.element = gemmi.Element("X")
    maps = [potential_of_atoms(m, 24, 2.0, solvent=False).sum() for m in (known, unknown)]
    assert maps[0] == pytest.approx(maps[1], rel=1e-4)


def test_b_factor_replaces_the_files(one_chain: Path) -> None:
    sharp, blurred = (molecular_map(one_chain, replace(TINY, b_factor_in_square_angstroms=b)) for b in (0, 200))
    assert sharp.sum() == pytest.approx(blurred.sum(), rel=1e-3)
    assert sharp.max() > 1.2 * blurred.max()


# Maps as models


def test_a_map_resampled_to_its_own_grid_is_itself(one_chain: Path, tmp_path: Path) -> None:
    truth = molecular_map(one_chain, TINY)
    write_map(tmp_path / "map.mrc", truth, 4.0)
    again = molecular_map(tmp_path / "map.mrc", TINY)
    assert np.linalg.norm(again - truth) < 1e-4 * np.linalg.norm(truth)


@pytest.mark.parametrize("box_size", [32, 33, 44])
def test_a_map_on_another_grid_is_the_map_of_the_atoms_there(one_chain: Path, box_size: int) -> None:
    settings = replace(TINY, solvent=False)  # the surface of the ice knows its grid
    fine = molecular_map(one_chain, replace(settings, box_size=48, pixel_size_in_angstroms=2.5))
    expected = molecular_map(one_chain, replace(settings, box_size=box_size, pixel_size_in_angstroms=4.0))
    got = resampled(fine, 2.5, box_size, 4.0)
    assert np.linalg.norm(got - expected) < 0.01 * np.linalg.norm(expected)
