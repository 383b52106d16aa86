"""The electrostatic potential of an atomic model, in volts, band-limited to a box.

Independent atoms with electron scattering factors ``f(s) exp(−B s²/4)`` (International Tables C 4.3.2.2, Peng et al.
1996, as tabulated in gemmi), and optionally the vitreous ice that the molecule displaces.
"""

from __future__ import annotations

import math
from pathlib import Path

import gemmi
import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.runtime.files import open_regular

VOLTS_PER_SCATTERING_DENSITY = 47.878  # h²/(2π m e) in V·Å², from Å of scattering length per Å³ to volts

# Mean inner potential of vitreous ice: 0.93 g/cm³ of H2O = 0.03109 molecules/Å³, each of f(0) = 3.04 Å (oxygen 1.983,
# hydrogen 0.529). 4.53 V; Vulović et al. (2013), J. Struct. Biol. 183:19–32, find 4.5301 V the same way.
_WATERS_PER_CUBIC_ANGSTROM = 0.93 / 18.01528 * 0.602214
_FINEST_SPACING = 0.75  # Å: coarser than this the volume of the displaced ice depends on the grid
_ICE_EDGE_B = 50.0  # Å², softens the surface of the displaced ice

_B_RANGE = (10.0, 300.0)  # Å²; what a file's B-factors are clipped to: 0 is a placeholder, 999 a shrug
_HYDROGEN_MOTION_B = 31.0  # Å², 8π² (1.09 Å)² / 3: a hydrogen anywhere on the sphere about its heavy atom
_LOST_IN_CHAIN = {"amino": 2, "nucleic": 3}  # hydrogens a free residue gives up when it is polymerised


def read_atoms(path: Path, assembly: str | None = None) -> gemmi.Model:
    """First model of a PDB or mmCIF file (``.gz`` too), or a biological assembly of it by name."""
    return read_models(path, assembly)[0]


def read_models(path: Path, assembly: str | None = None) -> list[gemmi.Model]:
    """Every MODEL of a PDB or mmCIF file (``.gz`` too), or a biological assembly of each by name."""
    open_regular(path).close()  # gemmi would wait for a pipe without end
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise InputError(f"{path}: gemmi cannot read it as an atomic model: {_one_line(error)}") from error
    if len(structure) == 0 or any(model.count_atom_sites() == 0 for model in structure):
        raise InputError(f"{path}: holds no atoms; give a PDB or mmCIF file, or an MRC map")
    if not all(math.isfinite(x) for model in structure for site in model.all() for x in site.atom.pos.tolist()):
        raise InputError(f"{path}: the coordinates of an atom are not numbers; mend or remove it")
    structure.setup_entities()
    if assembly is None:
        return [model.clone() for model in structure]
    known = {entry.name: entry for entry in structure.assemblies}
    if assembly not in known:
        raise InputError(f"{path}: has no assembly {assembly!r}; it has {', '.join(known) or 'none'}")
    how = gemmi.HowToNameCopiedChain.Short
    return [gemmi.make_assembly(known[assembly], model, how) for model in structure]


def centre_of_mass(model: gemmi.Model) -> NDArray[np.float64]:
    """(3,) x, y, z in Å, of a model as `potential_of_atoms` completes it."""
    return np.array(_prepared(model, 0.0).calculate_center_of_mass().tolist())


def potential_of_atoms(
    model: gemmi.Model,
    box_size: int,
    pixel_size_in_angstroms: float,
    b_factor_in_square_angstroms: float | None = None,
    solvent: bool = True,
    centre: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """(D, D, D) potential in volts that holds no frequency at or beyond Nyquist's radius.

    Args:
        centre: (3,) x, y, z in Å of the point that lies at voxel D//2; the model's centre of mass if absent.
        b_factor_in_square_angstroms: B of every atom; None takes the file's, clipped to 10–300 Å².
        solvent: subtract the ice that the molecule displaces, so that the contrast is that of a particle in ice.
    Raises:
        InputError: the model does not fit into the box.
    """
    model = _prepared(model, b_factor_in_square_angstroms)
    _centre(model, box_size, pixel_size_in_angstroms, centre)
    edge = box_size * pixel_size_in_angstroms
    n = scipy.fft.next_fast_len(max(2 * box_size, int(np.ceil(edge / _FINEST_SPACING))), real=True)
    spacing = edge / n
    spectrum, frequency = _band(_atom_density(model, n, spacing), box_size, spacing)
    spectrum *= np.exp(0.25 * _sampling_blur(spacing) * frequency**2)
    if solvent:
        displaced, _ = _band(_solvent_mask(model, n, spacing), box_size, spacing)
        displaced *= np.exp(-0.25 * _ICE_EDGE_B * frequency**2)
        spectrum -= ice_scattering_density() * displaced
    scale = VOLTS_PER_SCATTERING_DENSITY * (box_size / n) ** 3
    volume = scipy.fft.irfftn(spectrum, s=(box_size,) * 3, workers=numba.get_num_threads())
    return (scale * volume).astype(np.float32)


def ice_scattering_density() -> float:
    """Scattering length of vitreous ice in Å per Å³; times `VOLTS_PER_SCATTERING_DENSITY`, 4.5 V."""
    of_water = sum(gemmi.Element(name).c4322.calculate_sf(0.0) for name in ("O", "H", "H"))
    return _WATERS_PER_CUBIC_ANGSTROM * of_water


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _prepared(model: gemmi.Model, b_factor: float | None) -> gemmi.Model:
    """A copy with clean B-factors, elements that have a scattering factor, and the hydrogens missing in the file."""
    model = model.clone()
    for site in model.all():
        atom = site.atom
        atom.b_iso = float(np.clip(atom.b_iso, *_B_RANGE)) if b_factor is None else b_factor
        atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
        if atom.element.atomic_number == 0 or atom.element.c4322 is None:
            atom.element = gemmi.Element("C")  # the best guess for an unknown atom is the most frequent one
    for chain in model:
        for residue in chain:
            _add_missing_hydrogens(residue)
    return model


def _add_missing_hydrogens(residue: gemmi.Residue) -> None:
    """Spread the hydrogens of a standard residue that has none over its carbons and nitrogens, smeared about them.

    They are half of the atoms of a protein and a fifth of its scattering. Without them the contrast of a particle
    against ice would be about half as large.
    """
    known = gemmi.find_tabulated_residue(residue.name)
    if known is None or not known.found() or any(atom.is_hydrogen() for atom in residue):
        return
    lost = _LOST_IN_CHAIN["amino"] if known.is_amino_acid() else _LOST_IN_CHAIN["nucleic"]
    count = known.hydrogen_count if known.is_water() else known.hydrogen_count - lost
    carriers = [atom for atom in residue if atom.element.name in ("C", "N")] or list(residue)
    if count <= 0:
        return
    for atom in [carrier.clone() for carrier in carriers]:
        atom.element = gemmi.Element("H")
        atom.occ *= count / len(carriers)
        atom.b_iso += _HYDROGEN_MOTION_B
        residue.add_atom(atom)


def _centre(model: gemmi.Model, box_size: int, pixel_size: float, centre: NDArray[np.float64] | None) -> None:
    """Move the centre to voxel D//2 of a box whose first voxel lies at 0 Å; refuse a model that does not fit."""
    positions = np.array([site.atom.pos.tolist() for site in model.all()])
    if centre is None:
        centre = np.array(model.calculate_center_of_mass().tolist())
    radius = float(np.linalg.norm(positions - centre, axis=1).max())
    if radius > (box_size // 2 - 1) * pixel_size:
        enough = 2 * int(np.ceil(radius / pixel_size) + 1)
        raise InputError(
            f"the model extends {radius:.0f} Å from its centre and does not fit a box of {box_size} pixels of "
            f"{pixel_size:g} Å; use a box of at least {enough} pixels, or larger pixels"
        )
    shift = gemmi.Transform()
    shift.vec.fromlist(((box_size // 2) * pixel_size - centre).tolist())
    model.transform_pos_and_adp(shift)


def _sampling_blur(spacing: float) -> float:
    """B that is added while atoms are sampled and removed afterwards, so that σ ≥ one grid step and none aliases."""
    return 8 * np.pi**2 * spacing**2


def _atom_density(model: gemmi.Model, n: int, spacing: float) -> NDArray[np.float32]:
    """(n, n, n) [z, y, x] scattering length density, Å per Å³, blurred by `_sampling_blur`."""
    calculator = gemmi.DensityCalculatorE()
    calculator.blur = _sampling_blur(spacing)
    calculator.cutoff = 1e-6
    calculator.grid.set_unit_cell(_cell(n, spacing))
    calculator.grid.set_size(n, n, n)
    calculator.add_model_density_to_grid(model)
    return calculator.grid.array.T.copy()


def _solvent_mask(model: gemmi.Model, n: int, spacing: float) -> NDArray[np.float32]:
    """(n, n, n) [z, y, x] mask, 1 where the molecule displaces the ice."""
    grid = gemmi.FloatGrid()
    grid.set_unit_cell(_cell(n, spacing))
    grid.set_size(n, n, n)
    gemmi.SolventMasker(gemmi.AtomicRadiiSet.Refmac).put_mask_on_float_grid(grid, model)  # 1 in the solvent
    return 1 - grid.array.T


def _cell(n: int, spacing: float) -> gemmi.UnitCell:
    edge = n * spacing
    return gemmi.UnitCell(edge, edge, edge, 90, 90, 90)


def _band(
    density: NDArray[np.float32], box_size: int, spacing: float
) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """The transform of a fine grid within the Nyquist radius of a box of the same edge.

    Returns:
        (D, D, D//2+1) half-space transform, zero from |k| = D/2 on, and the frequency of each voxel in 1/Å.
    """
    half = scipy.fft.rfftn(density, workers=numba.get_num_threads())
    n = density.shape[0]
    k = np.fft.fftfreq(box_size, 1 / box_size).astype(int)
    kx = np.arange(box_size // 2 + 1)
    spectrum = half[np.ix_(k % n, k % n, kx)]
    radius = np.sqrt((k**2)[:, None, None] + (k**2)[None, :, None] + kx**2).astype(np.float32)
    spectrum[2 * radius >= box_size] = 0
    return spectrum, radius / np.float32(n * spacing)
