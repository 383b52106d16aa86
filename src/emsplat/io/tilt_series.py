"""The tilt series of RELION tomography: the view, the defocus and the dose of each tilt.

RELION 4 and WarpTools write the projection matrices in blocks of the tomograms' own file, RELION 5 the angles they are
made of in one file a tomogram.

Source: RELION 5, ``TomogramSet::loadTomogram`` and ``Tomogram::setProjectionMatrix``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.conventions import are_rotations, tilt_rotations
from emsplat.errors import InputError
from emsplat.io.contradictions import Said, all_agree
from emsplat.io.stacks import find_file
from emsplat.io.star import Table, read_star

_MATRIX = ("rlnTomoProjX", "rlnTomoProjY", "rlnTomoProjZ")
_ANGLES = ("rlnTomoYTilt", "rlnTomoZRot")  # and rlnTomoXTilt, which may be missing
_LARGEST_ROTATION_ERROR = 0.01  # files give four digits and more


@dataclass(frozen=True)
class TiltSeries:
    """The F tilts of one tomogram, in its file's order."""

    rotations: NDArray[np.float64]  # (F, 3, 3); x_image = R x_tomogram
    defocus_u_in_angstroms: NDArray[np.float64]  # (F,) this and the next two at the tomogram's centre
    defocus_v_in_angstroms: NDArray[np.float64]  # (F,)
    defocus_angle_in_degrees: NDArray[np.float64]  # (F,)
    phase_shift_in_degrees: NDArray[np.float64]  # (F,)
    ctf_scale: NDArray[np.float64]  # (F,)
    b_factor_in_square_angstroms: NDArray[np.float64]  # (F,)
    pre_exposure: NDArray[np.float64]  # (F,) e/Å²; 0 where the B-factor stands for it
    centre_in_angstroms: NDArray[
        np.float64
    ]  # (3,) of the tomogram, from its first voxel; NaN where its size is not given
    pixel_size_in_angstroms: float  # of the tilt images, and so of RELION 4's coordinates
    defocus_per_depth: float  # rlnTomoHand × rlnTomoDefocusSlope
    is_dummy: bool  # the tilt images are a placeholder: written by WarpTools
    voltage_in_kilovolts: float  # this and the next two: NaN where the tomograms' file does not say
    spherical_aberration_in_millimetres: float
    amplitude_contrast: float
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rotations)


def read_tilt_series(
    path: Path, names: Iterable[str], datadir: Path | None, strip_prefix: str | None
) -> dict[str, TiltSeries]:
    """The named tomograms of a tomograms star; InputError where one is missing or does not make sense."""
    blocks = read_star(path)
    overview = blocks.get("global")
    if overview is None or "rlnTomoName" not in overview:
        raise InputError(f"{path}: no block data_global with rlnTomoName, so not a tomograms star; check the path")
    row_of = {name: row for row, name in enumerate(overview.column("rlnTomoName"))}
    series = {}
    for name in names:
        if name not in row_of:
            raise InputError(f"{path}: no tomogram {name}, which particles are from; give the file that has it")
        tilts = _tilts(path, blocks, name, row_of[name], datadir, strip_prefix)
        series[name] = _series(tilts, overview, row_of[name])
    return series


def _tilts(
    path: Path, blocks: dict[str, Table], name: str, row: int, datadir: Path | None, strip_prefix: str | None
) -> Table:
    """The table of one tomogram's tilts, from whichever file holds it."""
    overview = blocks["global"]
    if "rlnTomoTiltSeriesStarFile" not in overview:
        if name not in blocks:
            raise InputError(f"{path}: no block data_{name} with the tilts of that tomogram; export the file again")
        return blocks[name]
    file = overview.column("rlnTomoTiltSeriesStarFile")[row]
    tables = read_star(find_file(file, path, datadir, strip_prefix, what="tilt series"))
    return tables[name] if name in tables else next(iter(tables.values()))


def _series(tilts: Table, overview: Table, row: int) -> TiltSeries:
    def of_tomogram(column: str, default: float | None = None) -> float:
        return float(_finite(overview, column, default)[row])

    if len(tilts) == 0:
        raise InputError(f"{tilts.label}: no tilts in it (0 rows); export the file again")
    u, v = (_finite(tilts, f"rlnDefocus{axis}") for axis in "UV")
    pixel_size = of_tomogram("rlnTomoTiltSeriesPixelSize")
    if not pixel_size > 0:
        raise InputError(
            f"{overview.label}, row {row + 1}: rlnTomoTiltSeriesPixelSize is {pixel_size}; it must be positive"
        )
    size = np.array([of_tomogram(f"rlnTomoSize{axis}", math.nan) for axis in "XYZ"])
    dose = _finite(tilts, "rlnMicrographPreExposure")
    b_factor = max(of_tomogram("rlnCtfBfactorPerElectronDose", 0), 0.0) * dose
    stack = overview.column("rlnTomoTiltSeriesName")[row] if "rlnTomoTiltSeriesName" in overview else ""
    rotations, warnings = _rotations(tilts)
    return TiltSeries(
        rotations=rotations,
        defocus_u_in_angstroms=u,
        defocus_v_in_angstroms=v,
        defocus_angle_in_degrees=_finite(tilts, "rlnDefocusAngle", None if (u != v).any() else 0),
        phase_shift_in_degrees=_finite(tilts, "rlnPhaseShift", 0),
        ctf_scale=_finite(tilts, "rlnCtfScalefactor", 1),
        b_factor_in_square_angstroms=b_factor,
        pre_exposure=np.where(b_factor > 0, 0.0, dose),
        centre_in_angstroms=0.5 * size * pixel_size,
        pixel_size_in_angstroms=pixel_size,
        defocus_per_depth=of_tomogram("rlnTomoHand") * of_tomogram("rlnTomoDefocusSlope", 1),
        is_dummy=Path(stack).name.startswith("dummy"),
        voltage_in_kilovolts=of_tomogram("rlnVoltage", math.nan),
        spherical_aberration_in_millimetres=of_tomogram("rlnSphericalAberration", math.nan),
        amplitude_contrast=of_tomogram("rlnAmplitudeContrast", math.nan),
        warnings=tuple(warnings),
    )


def _finite(table: Table, column: str, default: float | None = None) -> NDArray[np.float64]:
    """(F,) a column of finite numbers; all are the default if it is absent."""
    if column not in table and default is not None:
        return np.full(len(table), float(default))
    values = table.floats(column)
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise InputError(f"{table.label}, row {row + 1}: {column} is {values[row]}; it must be finite: mend the value")
    return values


def _rotations(tilts: Table) -> tuple[NDArray[np.float64], list[str]]:
    """(F, 3, 3) rotations from the projection matrices, or else from the angles; a warning where the two differ."""
    if not all(column in tilts for column in _MATRIX):
        return _from_angles(tilts), []
    matrices = _matrices(tilts)
    if not all(column in tilts for column in _ANGLES):
        return matrices, []
    angles = _from_angles(tilts)
    # Rounded matrices are no rotations; the distance between them grows linearly with the angle, unlike their trace.
    apart = np.rad2deg(2 * np.arcsin(np.minimum(np.linalg.norm(matrices - angles, axis=(1, 2)) / np.sqrt(8), 1)))
    said = [Said(", ".join(_MATRIX), np.zeros(len(tilts))), Said(f"from it by {', '.join(_ANGLES)}", apart)]
    return matrices, all_agree(Path(tilts.label), "view", said, "remove the columns that are wrong")


def _from_angles(tilts: Table) -> NDArray[np.float64]:
    """(F, 3, 3) rotations."""
    return tilt_rotations(_finite(tilts, "rlnTomoXTilt", 0), *(_finite(tilts, column) for column in _ANGLES))


def _matrices(tilts: Table) -> NDArray[np.float64]:
    rows = [[parse_list(text, tilts.label, column)[:3] for text in tilts.column(column)] for column in _MATRIX]
    if any(len(values) != 3 for row in rows for values in row):
        raise InputError(f"{tilts.label}: a row of a projection matrix holds fewer than 3 numbers; export it again")
    rotations = np.array(rows, dtype=np.float64).reshape(3, -1, 3).transpose(1, 0, 2)
    wrong = ~are_rotations(rotations, _LARGEST_ROTATION_ERROR)
    if wrong.any():
        raise InputError(
            f"{tilts.label}, row {int(np.argmax(wrong)) + 1}: rlnTomoProjX, Y, Z are no rotation; "
            "they must turn the tomogram without scaling or mirroring it: export the file again"
        )
    return rotations


def parse_list(text: str, label: str, column: str) -> list[float]:
    """The numbers of RELION's "[1,2,3]"; InputError where the text is something else."""
    try:
        values = [float(value) for value in text.strip("[]").split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise InputError(f"{label}: {column} is {text[:60]!r}, not numbers like [1,0,1]; mend or export it again")
    return values
