"""An atomic model over the map: the traces of its chains as tubes, and its bonds as lines."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.spatial import cKDTree

from emsplat.errors import InputError
from emsplat.simulation.atoms import read_atoms
from emsplat.viewer.colours import CHAINS
from emsplat.viewer.glb import Mesh

_TRACED = {"CA": 4.6, "P": 9.0}  # largest distance in Å between neighbours of a chain; beyond, residues are missing
_RADIUS = 0.7  # radius of a tube in Å
_SIDES = 6
_STEPS = (6, 2)  # points from one residue to the next; the second for large models
_LARGE = 6000  # residues
_LONGEST_BOND = 1.95  # Å, between atoms other than hydrogens
_MOST_BONDS = 150_000
_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif", ".gz")


@dataclass(frozen=True)
class AtomicModel:
    """An atomic model, with places in Å from the box centre."""

    name: str
    traces: tuple[tuple[NDArray[np.float64], int], ...]  # (n, 3) places of unbroken stretches, and number of the chain
    atoms: NDArray[np.float64]  # (N, 3) without hydrogens
    chains: NDArray[np.int64]  # (N,) number of the chain of each atom

    def moved(self, by: NDArray[np.float64]) -> AtomicModel:
        """The same model, moved."""
        traces = tuple((points + by, chain) for points, chain in self.traces)
        return AtomicModel(self.name, traces, self.atoms + by, self.chains)

    def share_within(self, half_edge: float) -> float:
        """Share of the atoms within a box of this half edge in Å."""
        return float(np.mean(np.abs(self.atoms).max(axis=1) < half_edge))

    def tubes(self) -> tuple[Mesh, NDArray[np.float32]] | None:
        """The traces as one mesh, with a colour for each vertex; None if there are no traces."""
        steps = _STEPS[sum(len(points) for points, _ in self.traces) > _LARGE]
        parts = [(*_tube(_smooth(points, steps)), chain) for points, chain in self.traces]
        if not parts:
            return None
        firsts = np.cumsum([0, *(len(places) for places, _, _, _ in parts)])
        mesh = Mesh(
            np.concatenate([places for places, _, _, _ in parts]),
            np.concatenate([normals for _, normals, _, _ in parts]),
            np.concatenate([faces + first for (_, _, faces, _), first in zip(parts, firsts, strict=False)]),
        )
        return mesh, np.concatenate([np.tile(_colour(chain), (len(places), 1)) for places, _, _, chain in parts])

    def bonds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(B, 2, 3) ends of the bonds, found by distance, and (B, 2, 3) colours; empty for a very large model."""
        pairs = cKDTree(self.atoms).query_pairs(_LONGEST_BOND, output_type="ndarray")
        pairs = pairs[:_MOST_BONDS] if len(pairs) <= _MOST_BONDS else pairs[:0]
        palette = np.array([_colour(chain) for chain in range(len(CHAINS))], dtype=np.float32)
        return self.atoms[pairs].astype(np.float32), palette[self.chains[pairs] % len(CHAINS)]


def load_model(path: Path, origin: float, centred: bool) -> AtomicModel:
    """Load a PDB or mmCIF file, also compressed with gzip, and place it over the map.

    Args:
        origin: coordinate in Å of the map's first voxel, from which the coordinates of the file count.
        centred: place the middle of the model at the box centre instead.
    Raises:
        InputError: no atoms can be read from the file.
    """
    model = read_atoms(path)
    traces: list[tuple[NDArray[np.float64], int]] = []
    atoms: list[list[float]] = []
    chains: list[int] = []
    for number, chain in enumerate(model):
        traces += [(points, number) for points in _traces(chain)]
        heavy = [atom.pos.tolist() for residue in chain for atom in residue if not atom.is_hydrogen()]
        atoms += heavy
        chains += [number] * len(heavy)
    if not atoms:
        raise InputError(f"{path}: there are no atoms other than hydrogens in it; give another PDB or mmCIF file")
    found = AtomicModel(path.name, tuple(traces), np.array(atoms), np.array(chains))
    shift = -np.array(model.calculate_center_of_mass().tolist()) if centred else np.full(3, origin)
    return found.moved(shift)


def load_uploaded(name: str, content: bytes, origin: float, centred: bool) -> AtomicModel:
    """Load a model from the bytes of a file, as `load_model` does."""
    if not name.lower().endswith(_SUFFIXES):
        raise InputError(f"{name}: not the name of an atomic model; give a .pdb or .cif file")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(content)
        try:
            return load_model(path, origin, centred)
        except InputError as error:
            raise InputError(str(error).replace(str(path), name)) from None


def _traces(chain: gemmi.Chain) -> list[NDArray[np.float64]]:
    """Unbroken stretches of at least two Cα or P atoms."""
    stretches: list[list[list[float]]] = []
    before: tuple[str, NDArray[np.float64]] | None = None
    for residue in chain.first_conformer():
        for name, longest in _TRACED.items():
            atom = residue.find_atom(name, "*", gemmi.Element("C" if name == "CA" else "P"))
            if atom is None:
                continue
            place = np.array(atom.pos.tolist())
            if before is None or before[0] != name or np.linalg.norm(place - before[1]) > longest:
                stretches.append([])
            stretches[-1].append(place.tolist())
            before = (name, place)
            break
    return [np.array(stretch) for stretch in stretches if len(stretch) > 1]


def _smooth(points: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """A curve through the points."""
    at = np.arange(len(points))
    return CubicSpline(at, points)(np.linspace(0, at[-1], steps * at[-1] + 1))


def _tube(curve: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint32]]:
    """Places, normals and faces of a tube about a curve of n points, closed at its ends.

    The rings are carried along without twisting. Source: Bishop (1975), Am. Math. Mon. 82:246.
    """
    along = np.gradient(curve, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    across = np.empty_like(along)
    across[0] = np.cross(along[0], np.eye(3)[np.abs(along[0]).argmin()])
    for i in range(1, len(curve)):
        across[i] = across[i - 1] - along[i] * (along[i] @ across[i - 1])
        across[i] /= max(float(np.linalg.norm(across[i])), 1e-9)
    across[0] /= np.linalg.norm(across[0])
    third = np.cross(along, across)
    angle = 2 * np.pi * np.arange(_SIDES) / _SIDES
    normals = np.cos(angle)[:, None] * across[:, None] + np.sin(angle)[:, None] * third[:, None]
    places = curve[:, None] + _RADIUS * normals
    ring, side = np.meshgrid(np.arange(len(curve) - 1), np.arange(_SIDES), indexing="ij")
    here, beside = ring * _SIDES + side, ring * _SIDES + (side + 1) % _SIDES
    quads = [(here, beside, here + _SIDES), (beside, beside + _SIDES, here + _SIDES)]
    fan = np.arange(1, _SIDES - 1)
    last = (len(curve) - 1) * _SIDES
    caps = [np.stack([0 * fan, fan + 1, fan], axis=1), np.stack([0 * fan, fan, fan + 1], axis=1) + last]
    faces = np.concatenate([*(np.stack(q, axis=-1).reshape(-1, 3) for q in quads), *caps])
    return (
        places.reshape(-1, 3).astype(np.float32),
        normals.reshape(-1, 3).astype(np.float32),
        faces.astype(np.uint32),
    )


def _colour(chain: int) -> NDArray[np.float32]:
    return np.array(CHAINS[chain % len(CHAINS)], dtype=np.float32)
