"""Conformations made from deposited models: a hinge, two states, compositions, a bend. Maps of them are cached."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from common import SHARED
from emsplat.io.mrc import write_map
from emsplat.simulation.atoms import centre_of_mass, potential_of_atoms, read_atoms

_HINGE_RESIDUE = 230  # of chain B of 1IGY: a Fab is chain A and what comes before
_B_FACTOR = 60.0  # Å²
_LARGE_CHAIN = 500  # residues


def _read(name: str) -> gemmi.Model:
    model = read_atoms(SHARED / "models" / name)
    model.remove_ligands_and_waters()
    return model


def _places(model: gemmi.Model) -> NDArray[np.float64]:
    """(n, 3) places of the atoms in Å."""
    return np.array([site.atom.pos.tolist() for site in model.all()])


def _placed(model: gemmi.Model, places: NDArray[np.float64]) -> gemmi.Model:
    """A copy with other coordinates."""
    copy = model.clone()
    for site, place in zip(copy.all(), places.tolist(), strict=True):
        site.atom.pos = gemmi.Position(*place)
    return copy


class Hinge:
    """1IGY, one Fab of which turns about its hinge."""

    def __init__(self) -> None:
        self.model = _read("1igy.cif.gz")
        self.places = _places(self.model)
        sites = list(self.model.all())
        chain = np.array([site.chain.name for site in sites])
        number = np.array([site.residue.seqid.num for site in sites])
        self.moves = (chain == "A") | ((chain == "B") & (number < _HINGE_RESIDUE))
        self.pivot = self.places[(chain == "B") & (abs(number - _HINGE_RESIDUE) <= 1)].mean(axis=0)
        towards = self.places[~self.moves & np.isin(chain, ["B", "D"]) & (number > 250)].mean(axis=0) - self.pivot
        self.axis = towards / np.linalg.norm(towards)
        side = np.cross(self.axis, self.places[self.moves].mean(axis=0) - self.pivot)
        self.side = side / np.linalg.norm(side)

    def at(self, about_axis: float, about_side: float = 0.0) -> gemmi.Model:
        """The model with the Fab turned. Args: degrees."""
        turn = Rotation.from_rotvec(np.deg2rad(about_axis) * self.axis)
        turn *= Rotation.from_rotvec(np.deg2rad(about_side) * self.side)
        places = self.places.copy()
        places[self.moves] = turn.apply(places[self.moves] - self.pivot) + self.pivot
        return _placed(self.model, places)


def circle(n: int) -> list[gemmi.Model]:
    """A Fab on a full circle."""
    hinge = Hinge()
    return [hinge.at(360 * i / n) for i in range(n)]


def two_angles(n: int) -> list[gemmi.Model]:
    """A Fab at random angles about two axes."""
    rng, hinge = np.random.default_rng(0), Hinge()
    return [hinge.at(*pair) for pair in rng.uniform((-60, -30), (60, 30), (n, 2)).tolist()]


def two_states(n: int) -> list[gemmi.Model]:
    """MsbA, 8TSO and 8TSQ, superposed by their Cα atoms."""
    del n
    first, second = _read("8tso.cif.gz"), _read("8tsq.cif.gz")

    def alphas(model: gemmi.Model) -> dict[tuple[str, int | None], list[float]]:
        return {
            (site.chain.name, site.residue.seqid.num): site.atom.pos.tolist()
            for site in model.all()
            if site.atom.name == "CA"
        }

    a, b = alphas(first), alphas(second)
    common = sorted(set(a) & set(b))
    p, q = np.array([a[key] for key in common]), np.array([b[key] for key in common])
    turn, _ = Rotation.align_vectors(p - p.mean(axis=0), q - q.mean(axis=0))
    return [first, _placed(second, turn.apply(_places(second) - q.mean(axis=0)) + p.mean(axis=0))]


def compositions(n: int) -> list[gemmi.Model]:
    """7PBL with and without each of its last large chains."""
    whole = read_atoms(SHARED / "models" / "7pbl.pdb.gz")
    whole.remove_ligands_and_waters()
    sizes = {chain.name: len(chain) for chain in whole}
    droppable = [name for name in sizes if sizes[name] > 100][-3:]
    out = []
    for i in range(n):
        model = whole.clone()
        for bit, name in enumerate(droppable):
            if i >> bit & 1:
                model.remove_chain(name)
        out.append(model)
    return out


def bend_and_twist(n: int) -> list[gemmi.Model]:
    """8BK7, bent and twisted about its long axis by random amounts."""
    model = _read("8bk7.cif.gz")
    places = _places(model)
    centre = places.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov((places - centre).T))
    axes = axes[:, ::-1]  # the long one first
    x, y, z = ((places - centre) @ axes).T
    reach = np.abs(x).max()
    out = []
    for bend, twist in (np.random.default_rng(0).uniform(-1, 1, (n, 2)) * (0.3, 0.7)).tolist():
        turn = twist * x / reach
        bent = np.cos(turn) * y - np.sin(turn) * z + 0.5 * bend * (x**2 - (x**2).mean()) / reach
        out.append(_placed(model, np.stack([x, bent, np.sin(turn) * y + np.cos(turn) * z], axis=1) @ axes.T + centre))
    return out


def maps_of(make: str, n: int, box_size: int, pixel_size: float, work: Path) -> list[Path]:
    """The MRC files of the conformations, which are made once."""
    folder = work / f"conformations-{make}-{n}-{box_size}"
    done = folder / "complete"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        models = globals()[make](n)
        centre = centre_of_mass(models[0])
        for i, model in enumerate(models, 1):
            volume = potential_of_atoms(model, box_size, pixel_size, _B_FACTOR, True, centre)
            write_map(folder / f"{i:03d}.mrc", volume, pixel_size)
        done.touch()
    return sorted(folder.glob("*.mrc"))
