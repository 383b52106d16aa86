"""The image sets of the benchmark of ab initio: simulations, sets made by others, and traps."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import gemmi
import mrcfile
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from common import SHARED, Case
from emsplat.commands.run_demo import IMAGES
from emsplat.io import ImageSource, read_particles
from emsplat.io.formats import Format
from emsplat.io.pkl import read_cryodrgn
from emsplat.particles.table import Particles
from emsplat.settings import SimulationSettings

_RING, _DISTANCE, _HEIGHT = 8, 62.0, 27.0  # subunits in a ring; Å from its axis; Å from the plane between the rings


def _simulation(n_images: int, pixel_size: float, snr: float, **more: Any) -> SimulationSettings:
    settings = {"box_size": 64, "b_factor_in_square_angstroms": 80.0} | more
    return SimulationSettings(n_images=n_images, pixel_size_in_angstroms=pixel_size, snr=snr, **settings)


IGG = Case("IgG", "1igy.cif.gz", _simulation(3000, 3.5, 0.05))
RUVB = Case("7PBL, pseudo-C6", "7pbl.pdb.gz", _simulation(3000, 3.5, 0.05))
BETAGAL = _simulation(3000, 3.8, 0.03)
FERRITIN = _simulation(2000, 3.0, 0.05, assembly="1")
PSEUDO = "pseudo-d8"  # in place of a model's name: the model is built by `sixteen_subunits`
SETS = [
    (IGG, "C1"),
    (Case("images of the demo", "7pbl.pdb.gz", IMAGES), "C1"),
    (RUVB, "C1"),
    (Case("MsbA, C2 not imposed", "8tso.cif.gz", _simulation(3000, 2.8, 0.05)), "C1"),
    (Case("8BK7, D2 not imposed", "8bk7.cif.gz", BETAGAL), "C1"),
    (Case("8BK7, D2 imposed", "8bk7.cif.gz", BETAGAL), "D2"),
    (Case("8BK7, 128²", "8bk7.cif.gz", _simulation(3000, 1.9, 0.03, box_size=128)), "C1"),
]
LADDER = [
    (replace(case, name=f"{name}, SNR {snr:g}", settings=replace(case.settings, snr=snr)), "C1")
    for snr in (0.02, 0.3, 0.1, 0.01, 0.005)
    for name, case in (("IgG", IGG), ("7PBL", RUVB))
]
HARD = [
    (Case("7PBL, 30 % junk", "7pbl.pdb.gz", replace(RUVB.settings, junk=0.3)), "C1"),
    (Case("7PBL, uneven, SNR .02", "7pbl.pdb.gz", _simulation(3000, 3.5, 0.02, orientations="uneven")), "C1"),
    (Case("pseudo-D8 16-mer", PSEUDO, _simulation(3000, 4.2, 0.05)), "C1"),
    (Case("IgG, off by a tenth", "1igy.cif.gz", _simulation(3000, 3.5, 0.05, shift_sigma_in_angstroms=15.8)), "C1"),
    (Case("8BK7, 5.6 Å pixels", "8bk7.cif.gz", _simulation(3000, 5.6, 0.03, box_size=48)), "C1"),
    (Case("apoferritin, O imposed", "7a4m.cif.gz", FERRITIN), "O"),
    (Case("apoferritin, C1", "7a4m.cif.gz", FERRITIN), "C1"),
    (Case("asymmetric IgG, C2 imposed", "1igy.cif.gz", replace(IGG.settings, n_images=1500)), "C2"),
    (Case("pseudo-C6 7PBL, C6 imposed", "7pbl.pdb.gz", replace(RUVB.settings, n_images=1500)), "C6"),
]
_FAINT = 0.06  # of the brightest pixel of a typical image
IGNORED = "CTFs taken as 1"  # the trap that is searched with --no-ctf
QUICK = Case("7PBL, tiny", "7pbl.pdb.gz", _simulation(240, 7.0, 0.3, box_size=32))


def built(case: Case, work: Path) -> Case:
    """The case with the path of its model, if that has to be built."""
    return (
        replace(case, model=str(sixteen_subunits(work / "models" / f"{PSEUDO}.pdb"))) if case.model == PSEUDO else case
    )


def sixteen_subunits(path: Path) -> Path:
    """Write a model of two rings of eight subunits that are alike but not the same, as in a chaperonin.

    Subunits are copies of one chain of 7PBL. Each of the eight of a ring lacks another tenth of its residues and is
    turned about its own centre by up to 10°. A twofold axis takes one ring to the other, so the group is C2.
    """
    if path.exists():
        return path
    chain = gemmi.read_structure(str(SHARED / "models" / "7pbl.pdb.gz"))[0][0]
    rng = np.random.default_rng(8)
    structure, model = gemmi.Structure(), gemmi.Model("1")
    twofold = np.diag([1.0, -1.0, -1.0])
    for place in range(_RING):
        turn = Rotation.from_rotvec(np.deg2rad(10) * rng.uniform(-1, 1, 3)).as_matrix()
        around = Rotation.from_euler("z", 360 / _RING * place, degrees=True).as_matrix()
        subunit = gemmi.Chain("ABCDEFGH"[place])
        residues = list(chain)
        first = rng.integers(len(residues) * 9 // 10)
        for number, residue in enumerate(residues):
            if residue.name != "HOH" and not first <= number < first + len(residues) // 10:
                subunit.add_residue(residue)
        atoms = [atom for residue in subunit for atom in residue]
        at = np.array([atom.pos.tolist() for atom in atoms])
        at = (at - at.mean(axis=0)) @ turn.T + np.array([_DISTANCE, 0, _HEIGHT])
        for other in (False, True):
            copy = subunit.clone()
            copy.name = subunit.name.lower() if other else subunit.name
            placed = at @ (twofold @ around if other else around).T
            for atom, (x, y, z) in zip((a for r in copy for a in r), placed, strict=True):
                atom.pos = gemmi.Position(x, y, z)
            model.add_chain(copy)
    structure.add_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    structure.write_pdb(str(path))
    return path


def shows_particle(star: Path, n: int) -> NDArray[np.bool_]:
    """(n,) whether each simulated image shows a particle, and not junk."""
    labels = star.parent / "labels.csv"
    if not labels.exists():
        return np.ones(n, dtype=bool)
    with labels.open(encoding="utf-8", newline="") as file:
        return np.array([not row["junk"] for row in csv.DictReader(file)])


# --- sets made by others ----------------------------------------------------------------------------------------------


def foreign_sets() -> dict[str, Particles]:
    """Noise-free images of cryoDRGN's tests, with the poses that come with them."""
    hand, toy = (SHARED.parent / "foreign" / name for name in ("cryodrgn-hand", "cryodrgn-toy"))
    if not hand.exists():
        return {}
    return {
        "cryodrgn-hand": read_cryodrgn(
            hand / "hand.mrcs", hand / "hand_rot_trans.pkl", None, pixel_size_in_angstroms=3.0, kind=Format.STACK
        ),
        "cryodrgn-toy": read_cryodrgn(
            toy / "toy_projections.mrcs", toy / "toy_rot_trans.pkl", toy / "test_ctf.pkl", kind=Format.STACK
        ),
    }


def moments_left(particles: Particles, rotations: NDArray[np.float64]) -> float:
    """The spread of the second moments of noise-free projections that poses do not explain, over the whole spread.

    It is 0 for right poses and about 1 for poses that say nothing. The covariance of a projection,
    about its centre of mass, is the upper left part of ``R M Rᵀ`` where M is that of the particle, so that six numbers
    must explain all images. Neither maps nor shifts are needed. Faint pixels do not count, because ripples far from the
    particle would weigh most.

    Args:
        rotations: (n, 3, 3) the poses, for all particles in their order.
    """
    with ImageSource(particles) as images:
        values = images.read(np.arange(len(particles))).astype(np.float64)
    values[values < _FAINT * np.median(values.max(axis=(1, 2)))] = 0
    axis = np.arange(particles.box_size) - particles.box_size // 2
    weights = values / values.sum(axis=(1, 2), keepdims=True)
    found, rows = [], []
    places = np.stack(np.broadcast_arrays(axis[None, :], axis[:, None]))  # x, y
    middle = np.einsum("nyx,cyx->nc", weights, places)
    for a, b in ((0, 0), (1, 1), (0, 1)):
        second = np.einsum("nyx,yx->n", weights, places[a] * places[b])
        found.append(second - middle[:, a] * middle[:, b])
        product = rotations[:, a, :, None] * rotations[:, b, None, :]
        symmetric = product + np.swapaxes(product, 1, 2)
        rows.append(symmetric[:, *np.triu_indices(3)])
    table, values = np.concatenate(rows), np.concatenate(found)
    left = np.split(values - table @ np.linalg.lstsq(table, values)[0], 3)
    return float(np.mean([part.std() / whole.std() for part, whole in zip(left, found, strict=True)]))


# --- traps ------------------------------------------------------------------------------------------------------------


def traps(star: Path, work: Path, n: int) -> dict[str, Particles]:
    """Images in which there is nothing to find, or not what the table says."""
    particles = read_particles(star).select(np.arange(n))
    particles = replace(particles, half_set=np.zeros(n, dtype=np.int8))
    rng = np.random.default_rng(3)
    with ImageSource(particles) as images:
        one, all_of_them = images.read(np.arange(7, 8)), images.read(np.arange(n))
    noise = rng.normal(size=all_of_them.shape).astype(np.float32)
    wrong = rng.uniform(8_000, 20_000, n)
    return {
        "noise alone": _with_stack(particles, noise, work / "traps" / "noise"),
        "one image repeated": _with_stack(particles, np.repeat(one, n, axis=0), work / "traps" / "one"),
        "one image in new noise": _with_stack(particles, one + one.std() * noise, work / "traps" / "noisy"),
        "CTFs of other images": replace(particles, defocus_u_in_angstroms=wrong, defocus_v_in_angstroms=wrong),
        IGNORED: particles,
        "dark particles": _with_stack(particles, -all_of_them, work / "traps" / "dark"),
    }


def _with_stack(particles: Particles, images: NDArray[np.float32], folder: Path) -> Particles:
    """The particles with other images."""
    folder.mkdir(parents=True, exist_ok=True)
    mrcfile.write(folder / "images.mrcs", images, overwrite=True)
    return replace(
        particles,
        stacks=(folder / "images.mrcs",),
        stack=np.zeros(len(particles), dtype=np.int32),
        section=np.arange(len(particles)),
    )
