"""The positions of the particles on the micrographs, as far as a RELION star has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from emsplat.check.findings import Finding, fine, problem
from emsplat.errors import InputError
from emsplat.io.formats import Format, sniff
from emsplat.io.star import Table, read_star
from emsplat.particles.table import Particles

_X, _Y, _MICROGRAPH = "rlnCoordinateX", "rlnCoordinateY", "rlnMicrographName"
_PIXEL_SIZES = ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize")  # of RELION 5 and 3.1
_COLUMNS: dict[str, type[str] | type[float]] = {
    **dict.fromkeys((_MICROGRAPH, "rlnImageName"), str),
    **dict.fromkeys((_X, _Y, *_PIXEL_SIZES), float),
}
_TOO_CLOSE = 0.5  # of the particle's diameter: two cannot be so near each other


@dataclass(frozen=True)
class Picks:
    """Positions, with one row for each image."""

    micrograph: NDArray[np.int64]  # (N,) numbered from 0
    position_in_angstroms: NDArray[np.float64] | None  # (N, 2) x, y of the particle's centre; None: not known

    @property
    def n_micrographs(self) -> int:
        return int(self.micrograph.max()) + 1


def read_picks(path: Path, particles: Particles) -> Picks | None:
    """Micrographs and refined positions of the rows of a RELION star; None if the file does not have them."""
    if sniff(path) is not Format.RELION:
        return None
    blocks = read_star(path, _COLUMNS)
    table = next((t for name, t in blocks.items() if name != "optics" and "rlnImageName" in t), None)
    if table is None or _MICROGRAPH not in table:
        return None
    rows = _rows_of(particles, table.column("rlnImageName"))
    if rows is None:
        return None
    micrograph = np.unique(np.asarray(table.column(_MICROGRAPH))[rows], return_inverse=True)[1].reshape(-1)
    pixel_size = _pixel_size([table, *(blocks[name] for name in blocks if name == "optics")])
    if pixel_size is None or _X not in table or _Y not in table:
        return Picks(micrograph, None)
    picked = np.stack([table.floats(_X), table.floats(_Y)], axis=1)[rows] * pixel_size
    return Picks(micrograph, picked - particles.origin_in_angstroms)


def _rows_of(particles: Particles, names: Sequence[str]) -> NDArray[np.int64] | None:
    """(N,) the row of the star for each image; None if some were left out and images share a name."""
    if len(names) == len(particles):
        return np.arange(len(names))
    row_of = {name: row for row, name in enumerate(names)}
    if len(row_of) < len(names):
        return None
    return np.array([row_of[name] for name in particles.ids.tolist()], dtype=np.int64)


def _pixel_size(tables: Sequence[Table]) -> float | None:
    """Pixel size of the micrographs in Å; None if there is none, or more than one."""
    for name in _PIXEL_SIZES:
        for table in tables:
            if name in table:
                sizes = np.unique(table.floats(name))
                return float(sizes[0]) if len(sizes) == 1 and sizes[0] > 0 else None
    return None


def closeness_findings(picks: Picks | None, particles: Particles, diameter_in_angstroms: float | None) -> list[Finding]:
    """Particles that lie on top of each other; empty if positions or the size of the particle are not known."""
    tilted = len(np.unique(particles.particle)) < len(particles)
    if picks is None or picks.position_in_angstroms is None or diameter_in_angstroms is None or tilted:
        return []
    if len(particles) < 2:
        return []
    apart = 1e9 * picks.micrograph[:, None]  # Å; keeps the particles of different micrographs apart
    points = np.concatenate([picks.position_in_angstroms, apart], axis=1)
    if not np.isfinite(points).all():
        raise InputError(f"{particles.source}: {_X} or {_Y} is not finite; mend the value or remove the row")
    nearest = cKDTree(points).query(points, k=2)[0][:, 1]
    limit = _TOO_CLOSE * diameter_in_angstroms
    n = int(np.sum(nearest < limit))
    if n == 0:
        return [fine("picks", f"no two particles within {limit:.0f} Å of each other on a micrograph")]
    text = f"{n:,} particles have another within {limit:.0f} Å on the same micrograph, half their diameter"
    return [problem("picks", text, "remove duplicates in the program that picked them")]
