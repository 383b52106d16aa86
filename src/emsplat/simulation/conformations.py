"""The conformations a simulated particle takes: their models, their populations, and which image shows which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.settings import SimulationSettings
from emsplat.simulation.atoms import centre_of_mass, potential_of_atoms, read_models
from emsplat.simulation.truth import is_map, map_of_file

_MOST_CONFORMATIONS = 1000


@dataclass(frozen=True)
class Conformation:
    """One state of the particle; its map is made when it is needed."""

    name: str
    model: gemmi.Model | Path  # an atomic model, or the path of an MRC map
    share: float  # of the images

    def map(self, centre: NDArray[np.float64] | None, settings: SimulationSettings) -> NDArray[np.float32]:
        """(D, D, D) true map. Args: centre: x, y, z in Å of the point at voxel D//2, for atoms."""
        if isinstance(self.model, Path):
            return map_of_file(self.model, settings)
        return potential_of_atoms(
            self.model,
            settings.box_size,
            settings.pixel_size_in_angstroms,
            settings.b_factor_in_square_angstroms,
            settings.solvent,
            centre,
        )


@dataclass(frozen=True)
class Conformations:
    """All states of a simulation. Atomic models share one frame: nothing is superposed."""

    states: tuple[Conformation, ...]
    centre: NDArray[np.float64] | None  # (3,) Å, the first model's centre of mass; None where all states are maps
    _last: dict[tuple[int, SimulationSettings], NDArray[np.float32]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.states)

    def map(self, state: int, settings: SimulationSettings) -> NDArray[np.float32]:
        """(D, D, D) true map of a state, which the caller must not change.

        The last map is kept, because it takes seconds to make one from atoms.
        """
        if (state, settings) not in self._last:
            self._last.clear()
            self._last[state, settings] = self.states[state].map(self.centre, settings)
        return self._last[state, settings]

    def of_images(self, n_images: int) -> NDArray[np.int32]:
        """(n,) state of each image: the states follow one another, each with its share of the images.

        Shares are rounded by the largest remainder, so that the numbers add up.
        """
        exact = n_images * np.array([state.share for state in self.states])
        counts = np.floor(exact).astype(int)
        rest = np.argsort(counts - exact, kind="stable")[: n_images - counts.sum()]
        counts[rest] += 1
        return np.repeat(np.arange(len(self.states), dtype=np.int32), counts)


def read_conformations(models: Sequence[Path], settings: SimulationSettings) -> Conformations:
    """Read every MODEL of every file, in order.

    Args:
        models: PDB or mmCIF files, each with one or several MODELs, or MRC maps.
    Raises:
        InputError: an unusable file, or populations that do not fit the number of conformations.
    """
    if not models:
        raise InputError("no model to simulate; give a PDB or mmCIF model, or an MRC map")
    found: list[tuple[str, gemmi.Model | Path]] = []
    for path in map(Path, models):
        if not path.is_file():
            raise InputError(f"{path}: no such file; give a PDB or mmCIF model, or an MRC map")
        if is_map(path):
            found.append((path.name, path))
            continue
        several = read_models(path, settings.assembly)
        names = [path.name] if len(several) == 1 else [f"{path.name}:{i}" for i in range(1, len(several) + 1)]
        found += zip(names, several, strict=True)
    if len(found) > _MOST_CONFORMATIONS:
        raise InputError(f"{len(found)} conformations; at most {_MOST_CONFORMATIONS} can be simulated at once")
    shares = _shares(settings.populations, len(found))
    first = next((model for _, model in found if isinstance(model, gemmi.Model)), None)
    return Conformations(
        tuple(Conformation(name, model, share) for (name, model), share in zip(found, shares, strict=True)),
        None if first is None else centre_of_mass(first),
    )


def _shares(populations: tuple[float, ...] | None, n: int) -> NDArray[np.float64]:
    if populations is None:
        return np.full(n, 1 / n)
    if len(populations) != n:
        raise InputError(
            f"--populations has {len(populations)} numbers for {n} conformations; give one for each, in their order"
        )
    return np.array(populations) / sum(populations)
