"""The rows of a RELION particle file: its particle table joined to its optics table by rlnOpticsGroup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.io.relion_aberrations import ABERRATION_COLUMNS
from emsplat.io.star import Table, read_star

_MANDATORY = (
    *("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnDefocusU", "rlnDefocusV"),
    *("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"),
)

CTF_COLUMNS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnCtfBfactor")  # of single images
_POSES = frozenset(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"))


def mandatory_columns(poses: bool = True, ctf: bool = True) -> tuple[str, ...]:
    """The columns that a particle table must have, with or without those of the poses and of the CTFs."""
    return tuple(name for name in _MANDATORY if name == "rlnImageName" or (poses if name in _POSES else ctf))


# All columns that are read of a file; only these may be asked for. Zernikes are lists, "[0,0]", and so text.
NOT_MODELLED = {"rlnIsFlip": 0.0}  # what would make a wrong map, and the value that means "none": mirrored images
_TEXTS = (
    *("rlnImageName", "rlnImageOriginalName", "rlnOpticsGroupName", "rlnGroupName", "rlnTomoParticleName"),
    *(*ABERRATION_COLUMNS, *NOT_MODELLED),
)
_NUMBERS = (
    *_MANDATORY[1:],
    *("rlnDefocusAngle", "rlnPhaseShift", "rlnCtfBfactor", "rlnCtfScalefactor"),
    *("rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped"),
    *("rlnOriginX", "rlnOriginY", "rlnOriginXAngst", "rlnOriginYAngst", "rlnMicrographPreExposure"),
    *("rlnImageSize", "rlnImagePixelSize", "rlnPixelSize", "rlnDetectorPixelSize", "rlnMagnification"),
    *("rlnOpticsGroup", "rlnRandomSubset"),
)
KEPT: dict[str, type[str] | type[float]] = {**dict.fromkeys(_TEXTS, str), **dict.fromkeys(_NUMBERS, float)}


@dataclass(frozen=True)
class Rows:
    """The particle table joined to its optics table: a column is looked up in the first, then in the second."""

    path: Path
    particles: Table
    optics: Table | None
    optics_row: NDArray[np.int64]  # (N,) row of the optics table
    kept: Mapping[str, type[str] | type[float]]  # the columns that were asked for

    def __len__(self) -> int:
        return len(self.particles)

    def __contains__(self, name: str) -> bool:
        if name not in self.kept:
            raise KeyError(f"{name} is not among the columns that are kept")
        return name in self.particles or (self.optics is not None and name in self.optics)

    def must_have(self, names: Sequence[str]) -> None:
        """InputError where a column is missing."""
        missing = [name for name in names if name not in self]
        if missing:
            raise InputError(
                f"{self.path}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
                "poses and CTF are needed: export the particles from a refinement"
            )

    def texts(self, name: str) -> list[str]:
        if name in self.particles or self.optics is None:
            return self.particles.column(name)
        values = self.optics.column(name)
        return [values[row] for row in self.optics_row]

    def in_both(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """(N,) the numbers of the optics table and of the particles' own column, where both have it."""
        if self.optics is None or name not in self.particles or name not in self.optics:
            return None
        return self.optics.floats(name)[self.optics_row], self.particles.floats(name)

    def text(self, name: str, row: int) -> str:
        if name in self.particles or self.optics is None:
            return self.particles.column(name)[row]
        return self.optics.column(name)[self.optics_row[row]]

    def numbers(self, name: str, default: float | None = None) -> NDArray[np.float64]:
        """(N,) finite numbers; all are the default if the column is absent."""
        if name not in self and default is not None:
            return np.full(len(self), default)
        if name in self.particles or self.optics is None:
            values = self.particles.floats(name)
        else:
            values = self.optics.floats(name)[self.optics_row]
        self.require(np.isfinite(values), name, values, "must be finite")
        return values

    def require(self, holds: NDArray[np.bool_], name: str, values: Sequence | NDArray, rule: str) -> None:
        """InputError naming the first row where the rule does not hold."""
        if not holds.all():
            row = int(np.argmin(holds))
            image = self.particles.columns["rlnImageName"][row]
            raise InputError(
                f"{self.path}, row {row + 1} ({image}): {name} is {values[row]}; it {rule}: "
                "mend the value or remove the row"
            )


def read_rows(
    path: Path, kept: Mapping[str, type[str] | type[float]] = KEPT, mandatory: Sequence[str] = _MANDATORY
) -> Rows:
    """The block with the images, each row with its row of the optics block; InputError where a column is missing."""
    blocks = read_star(path, kept)
    particles = next((t for name, t in blocks.items() if name != "optics" and "rlnImageName" in t), None)
    if particles is None:
        raise InputError(f"{path}: no particle table (no block has a column rlnImageName); check the path")
    optics = blocks.get("optics")
    rows = Rows(path, particles, optics, np.zeros(len(particles), dtype=np.int64), kept)
    rows.must_have(mandatory)
    if len(particles) == 0:
        raise InputError(f"{path}: no particles in it (0 rows); check the path or the selection that wrote it")
    return rows if optics is None else replace(rows, optics_row=_optics_rows(rows, optics))


def _optics_rows(rows: Rows, optics: Table) -> NDArray[np.int64]:
    if len(optics) == 1 and not ("rlnOpticsGroup" in rows.particles and "rlnOpticsGroup" in optics):
        return np.zeros(len(rows), dtype=np.int64)
    if len(optics) == 0 or "rlnOpticsGroup" not in rows.particles:
        raise InputError(
            f"{rows.path}: {len(optics)} optics groups and no column rlnOpticsGroup that says which image has which; "
            "add it to the particles"
        )
    row_of: dict[int, int] = {}
    for row, group in enumerate(optics.integers("rlnOpticsGroup").tolist()):
        if row_of.setdefault(group, row) != row:
            _refuse_different_rows(rows.path, optics, group, row_of[group], row)
    groups = rows.particles.integers("rlnOpticsGroup")
    found = np.array([row_of.get(int(group), -1) for group in groups], dtype=np.int64)
    rows.require(found >= 0, "rlnOpticsGroup", groups, f"must be one of data_optics, {sorted(row_of)}")
    return found


def _refuse_different_rows(path: Path, optics: Table, group: int, first: int, second: int) -> None:
    """InputError where two rows of one optics group say different things."""
    said = {name: [optics.column(name)[row] for row in (first, second)] for name in optics.columns}
    different = [f"{name} {a} and {b}" for name, (a, b) in said.items() if a != b and name != "rlnOpticsGroupName"]
    if different:
        raise InputError(
            f"{path}: optics group {group} is there twice in data_optics (rows {first + 1} and {second + 1}), with "
            f"{', '.join(different)}; remove the row that is wrong, or number the groups anew"
        )
