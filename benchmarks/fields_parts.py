"""What can be read off the models without another fit: the mass of regions, one domain by itself, its movement."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from common import Case, Report, mean_fsc
from conformations import Hinge
from emsplat.fit.by_statistics import FitSettings, fit_statistics
from emsplat.io.mrc import write_map
from emsplat.models.gaussians import Gaussians
from emsplat.simulation.atoms import centre_of_mass, potential_of_atoms
from study_data import Data, prepared

_NEAR = 8.0  # Å from an atom within which density counts as that of the molecule
_TURNS = (5.0, 20.0)  # degrees that the Fab is turned by
_NAMES = ("Fab A", "other Fab", "Fc")
_EDGE = 1.0  # pixels of the soft edge of a region's mask
_REGIONS, _MOVEMENT = "Regions of the antibody", "The movement of a domain"
_REGIONS_TEXT = """The antibody in three regions: the Fab of chain A, the other Fab, and the Fc. A Gaussian belongs to
the region of the atom that is nearest to its centre, and a voxel of a map to the region of the atom nearest to it
(within 8 Å). "Error of mass" is the largest error of a region's share of the mass, in percentage points; the true
shares are those of the true map. "F of" a part is the mean FSC of the region by itself with the potential of its atoms
alone: of Gaussians the chosen ones, of a map the product with the region's soft mask. "s a region" is what another
region costs without another fit."""
_MOVEMENT_TEXT = """Images of the antibody as it is and with one Fab turned. The Gaussians of the first set are moved on
the turned set by the same fit, without splits, so that each Gaussian can be followed. The rotation that best carries
the Gaussians of a region from the first place to the second, weighted by mass, is read off and compared with that of
the atoms. A neural field or a map has nothing that could be followed from one fit to the next."""


def kept(work: Path, case: Case, name: str) -> Path:
    """Where the volume of a model is kept."""
    return work / "fields" / f"{case.name} {name}.npy".replace(" ", "_").replace(",", "")


def curves_of(path: Path, quick: bool) -> dict[str, dict[str, list]]:
    """The curves of an earlier run, by set and model."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, dict[str, list]] = content.get("curves", {}) if content["quick"] == quick else {}
    return found


def add(report: Report, case: Case, work: Path) -> None:
    """Add both tables."""
    data = prepared(case, work)
    report.table(_REGIONS, list(regions(case, data, work)), _REGIONS_TEXT)
    report.table(_MOVEMENT, list(movement(case, work)), _MOVEMENT_TEXT)


class Regions:
    """The antibody in three regions, placed as in the simulation."""

    def __init__(self, box_size: int, pixel_size: float) -> None:
        hinge = Hinge()
        sites = list(hinge.model.all())
        chain = np.array([site.chain.name for site in sites])
        number = np.array([site.residue.seqid.num for site in sites])
        other = (chain == "C") | ((chain == "D") & (number < 230))
        self.of_atoms = np.where(hinge.moves, 0, np.where(other, 1, 2))
        self.centre = centre_of_mass(hinge.model)
        self.places = hinge.places - self.centre
        self._tree, self._model = cKDTree(self.places), hinge.model
        self.box_size, self.pixel_size = box_size, pixel_size

    def of(self, points: NDArray) -> NDArray[np.int64]:
        """(n,) region of points x, y, z in Å from the centre; −1 far from all atoms."""
        distance, nearest = self._tree.query(points, distance_upper_bound=_NEAR)
        found = np.full(len(points), -1)
        near = np.isfinite(distance)
        found[near] = self.of_atoms[nearest[near]]
        return found

    def of_voxels(self) -> NDArray[np.int64]:
        """(D, D, D) region of each voxel."""
        axis = (np.arange(self.box_size) - self.box_size // 2) * self.pixel_size
        z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
        return self.of(np.stack([x, y, z], axis=-1).reshape(-1, 3)).reshape(x.shape)

    def truth(self, region: int, settings: Any) -> NDArray[np.float32]:
        """The potential of the region's atoms alone."""
        model = self._model.clone()
        for chain in model:
            for residue in chain:
                for number in reversed(range(len(residue))):
                    place = np.array(residue[number].pos.tolist()) - self.centre
                    if self.of_atoms[self._tree.query(place)[1]] != region:
                        del residue[number]
        for chain in model:
            for number in reversed(range(len(chain))):
                if not len(chain[number]):
                    del chain[number]
        b_factor = settings.b_factor_in_square_angstroms
        return potential_of_atoms(model, self.box_size, self.pixel_size, b_factor, settings.solvent, self.centre)


def regions(case: Case, data: Data, work: Path) -> Any:
    """A row for each model that the main table has."""
    size, pixel_size = len(data.truth), data.particles.pixel_size_in_angstroms
    places = Regions(size, pixel_size)
    of_voxels = places.of_voxels()
    masks = [gaussian_filter((of_voxels == region).astype(np.float32), _EDGE) for region in range(3)]
    true_parts = [places.truth(region, case.settings) for region in range(3)]
    ones = np.ones_like(data.truth)

    def shares(volume: NDArray) -> NDArray:
        mass = np.array([volume[of_voxels == region].sum() for region in range(3)])
        return mass / mass.sum()

    true_shares = shares(data.truth)
    model, _ = fit_statistics(data.seen, data.unseen, data.start(), FitSettings())
    gaussians = model.parameters.gaussians(pixel_size)
    mine = places.of(gaussians.centres.numpy())
    mass = np.array([float(gaussians.masses()[mine == region].sum()) for region in range(3)])
    begin = time.process_time()
    parts = [data.volume(gaussians.rows(np.flatnonzero(mine == region))) for region in range(3)]
    seconds = (time.process_time() - begin) / 3
    yield _region_row("Gaussians, by their centres", mass / mass.sum(), true_shares, parts, true_parts, ones, seconds)
    names = ("Gaussians", "hash grid", "neural field", "direct inversion")
    for name in names:
        if kept(work, case, name).exists():
            volume = np.load(kept(work, case, name))
            begin = time.process_time()
            parts = [volume * mask for mask in masks]
            seconds = (time.process_time() - begin) / 3
            yield _region_row(f"{name}, by voxels", shares(volume), true_shares, parts, true_parts, ones, seconds)


def _region_row(
    name: str, found: NDArray, true: NDArray, parts: list, true_parts: list, ones: NDArray, seconds: float
) -> dict[str, Any]:
    """A row of the table of regions."""
    return {
        "model": name,
        "error of mass, points": float(100 * np.abs(found - true).max()),
        **{f"F of {part}": mean_fsc(a, b, ones) for part, a, b in zip(_NAMES, parts, true_parts, strict=True)},
        "s a region": seconds,
    }


def movement(case: Case, work: Path) -> Iterator[dict[str, Any]]:
    """The rotation of each region between two states, as it is and as the Gaussians have it."""
    pixel_size = case.settings.pixel_size_in_angstroms
    places = Regions(case.settings.box_size, pixel_size)
    first = _state(case, 0.0, places, work)
    start, _ = fit_statistics(first.seen, first.unseen, first.start(), FitSettings())
    before = start.parameters.gaussians(pixel_size)
    still = replace(FitSettings().densification, first=10**6)
    sizes = {"everything": FitSettings().step_sizes, "places only": {"centres": FitSettings().step_sizes["centres"]}}
    for angle in _TURNS:
        second = _state(case, angle, places, work)
        for changed, step_sizes in sizes.items():
            settings = FitSettings(densification=still, step_sizes=step_sizes)
            begin = time.process_time()
            moved, _ = fit_statistics(second.seen, second.unseen, start, settings)
            seconds = time.process_time() - begin
            after = moved.parameters.gaussians(pixel_size)
            for region in range(3):
                row = _moved(before, after, places, region, angle)
                yield {"turned by, °": angle, "what may change": changed} | row | {"fit, s": seconds}


def _state(case: Case, angle: float, places: Regions, work: Path) -> Data:
    """The images of the antibody with its Fab turned. Args: angle: degrees."""
    settings = case.settings
    path = work / f"antibody-{settings.box_size}-turned-{angle:g}.mrc"
    volume = potential_of_atoms(
        Hinge().at(0.0, angle), settings.box_size, settings.pixel_size_in_angstroms,
        settings.b_factor_in_square_angstroms, settings.solvent, places.centre,
    )  # fmt: skip
    write_map(path, volume, settings.pixel_size_in_angstroms)
    images = settings.n_images + 2 * round(angle)  # another number of images draws other views and another noise
    return prepared(Case(f"{case.name}, turned by {angle:g}°", str(path), replace(settings, n_images=images)), work)


def _moved(before: Gaussians, after: Gaussians, places: Regions, region: int, angle: float) -> dict[str, Any]:
    """A row of the table of movements."""
    chosen = places.of(before.centres.numpy()) == region
    mass = before.masses().numpy()[chosen]
    old, new = (model.centres.numpy()[chosen] for model in (before, after))
    turn, shift = _carries(old, new, mass)
    atoms = places.of_atoms == region
    now = np.array([site.atom.pos.tolist() for site in Hinge().at(0.0, angle).all()])[atoms] - places.centre
    true_turn, true_shift = _carries(places.places[atoms], now, np.ones(int(atoms.sum())))
    return {
        "region": _NAMES[region],
        "true turn, °": float(np.rad2deg(true_turn.magnitude())),
        "turn of the Gaussians, °": float(np.rad2deg(turn.magnitude())),
        "error of the turn, °": float(np.rad2deg((turn * true_turn.inv()).magnitude())),
        "true shift, Å": float(np.linalg.norm(true_shift)),
        "shift of the Gaussians, Å": float(np.linalg.norm(shift)),
    }


def _carries(old: NDArray, new: NDArray, mass: NDArray) -> tuple[Rotation, NDArray]:
    """The rotation and the shift of the centre of mass that best carry points to others."""
    centres = [np.average(points, axis=0, weights=mass) for points in (old, new)]
    turn, _ = Rotation.align_vectors(new - centres[1], old - centres[0], weights=mass)
    return turn, centres[1] - centres[0]
