"""cisTEM's particle tables (star files and .cistem) as `Particles`.

Angles phi, theta, psi are RELION's rot, tilt, psi. A shift, in Å, is where the particle lies in the image, and so the
negative of RELION's origin. Defocus, its angle and the additional phase shift are RELION's.

Source: cisTEM, ``AnglesAndShifts::GenerateEulerMatrices``, ``project3d``, and its export to RELION
(``ExportRefinementPackageWizard``); docs/formats.md.
"""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.conventions import electron_wavelength_in_angstroms
from emsplat.errors import InputError
from emsplat.io.cistem_columns import POSITION, PREFIX, STACK, Columns, read_columns
from emsplat.io.compressed import without_ending
from emsplat.io.relion import particles_of, unread_stacks
from emsplat.io.relion_rows import KEPT, Rows
from emsplat.io.stacks import ImageNames, check_stacks, find_stacks
from emsplat.io.star import Table
from emsplat.particles.table import Particles

_POSES = ("AnglePsi", "AngleTheta", "AnglePhi", "XShift", "YShift")
_CTF = ("Defocus1", "Defocus2", "MicroscopeVoltagekV", "MicroscopeCsMM", "AmplitudeContrast")
_LEAST_OCCUPANCY = 50.0  # per cent; images below it belong to another class
_ENDINGS = (".mrc", ".mrcs")


def read_cistem(
    path: str | Path,
    datadir: str | Path | None = None,
    pixel_size_in_angstroms: float | None = None,
    *,
    strip_prefix: str | None = None,
    need_stacks: bool = True,
    need_poses: bool = True,
    need_ctf: bool = True,
) -> Particles:
    """Reads a table and the headers of its stacks.

    Images that are not active, and those that belong to another class, are left out; a warning says how many.

    Args:
        datadir, pixel_size_in_angstroms, strip_prefix, need_stacks, need_poses, need_ctf: as in `read_relion`.
    Raises:
        InputError: anything missing, out of range or contradictory; the message names it and the remedy.
    """
    path, folder = Path(path), None if datadir is None else Path(datadir)
    columns = read_columns(path)
    missing = [name for name in _POSES[:3] * need_poses + _CTF * need_ctf if name not in columns]
    if missing:
        raise columns.missing(missing)
    columns, warnings = _used(columns)
    _check_ranges(columns)
    _check_astigmatism(columns)
    names = _image_names(columns, folder, need_stacks)
    rows = _rows(columns, names)
    if need_stacks:
        stacks = find_stacks(names, folder, strip_prefix)
        facts = check_stacks(names, stacks)
    else:
        stacks, facts = unread_stacks(rows, names)
    found = particles_of(rows, names, stacks, facts, pixel_size_in_angstroms)
    warnings += _not_honoured(columns)
    return replace(found, modelled_to_in_angstroms=_modelled_to(columns), warnings=(*found.warnings, *warnings))


def _used(columns: Columns) -> tuple[Columns, list[str]]:
    """The rows that cisTEM would put into the map of this class, and a line on those that it would not."""
    active = columns.get("ImageActivity", 1) >= 0
    of_class = columns.get("Occupancy", 100) >= _LEAST_OCCUPANCY
    used = active & of_class
    if used.all():
        return columns, []
    reasons = [f"{int((~active).sum())} are not active"] if not active.all() else []
    other = int((active & ~of_class).sum())
    reasons += [f"{other} have an occupancy below {_LEAST_OCCUPANCY:g} %, so belong to another class"] * (other > 0)
    text = f"{int((~used).sum())} of {len(columns)} images are left out: {', '.join(reasons)}"
    if not used.any():
        raise InputError(f"{columns.path}: {text}; give the table of a class that has images")
    return columns.select(used), [text]


def _check_ranges(columns: Columns) -> None:
    """InputError in cisTEM's own names, before the columns become RELION's."""
    for name in columns.numbers:
        columns.get(name)
    position = columns.get(POSITION)
    whole = (position >= 1) & (position < 2**31) & (position == np.round(position))
    columns.require(whole, POSITION, position, "must be the number of an image, from 1")
    rules = (
        ("PixelSize", 0, np.inf, "must be a positive number of Å"),
        ("MicroscopeVoltagekV", 0, 5000, "must be a positive number of kV"),
        ("AmplitudeContrast", -1e-9, 1 + 1e-9, "must be within 0 and 1"),
    )
    for name, low, high, rule in rules:
        values = columns.get(name, 0.5)
        columns.require((values > low) & (values < high), name, values, rule)


def _check_astigmatism(columns: Columns) -> None:
    """InputError where two defoci differ and nothing says along which directions."""
    if "DefocusAngle" not in columns and not np.array_equal(columns.get("Defocus1", 0), columns.get("Defocus2", 0)):
        raise InputError(
            f"{columns.path}: missing column {PREFIX}DefocusAngle, and {PREFIX}Defocus1 differs from "
            f"{PREFIX}Defocus2; astigmatism needs its angle: add the column"
        )


def _image_names(columns: Columns, datadir: Path | None, need_stacks: bool) -> ImageNames:
    """The places of the images. cisTEM's own tables of a refinement name no stack: that beside the table is meant."""
    section = columns.get(POSITION).astype(np.int64) - 1
    if columns.stacks and all(columns.stacks[number] for number in np.unique(columns.stack)):
        return ImageNames(columns.path, columns.stacks, columns.stack, section)
    if columns.stacks:
        row = int(np.argmax(np.array([name == "" for name in columns.stacks])[columns.stack]))
        raise InputError(f"{columns.path}, row {columns.row[row]}: {PREFIX}{STACK} is empty; mend or remove the row")
    stem = without_ending(columns.path).stem
    folders = [folder for folder in (datadir, columns.path.parent) if folder is not None]
    beside = next((f"{stem}{e}" for folder in folders for e in _ENDINGS if (folder / f"{stem}{e}").is_file()), None)
    if beside is None and need_stacks:
        raise InputError(
            f"{columns.path}: names no stack (no column {PREFIX}{STACK}), and {stem}.mrc is not beside it; make a link "
            "of that name to the particle stack of the refinement package"
        )
    return ImageNames(columns.path, (beside or f"{stem}.mrc",), np.zeros(len(columns), dtype=np.int32), section)


def _rows(columns: Columns, names: ImageNames) -> Rows:
    """The same table with RELION's columns."""
    numbers = {
        "rlnAngleRot": columns.get("AnglePhi", 0),
        "rlnAngleTilt": columns.get("AngleTheta", 0),
        "rlnAnglePsi": columns.get("AnglePsi", 0),
        "rlnOriginXAngst": 0.0 - columns.get("XShift", 0),
        "rlnOriginYAngst": 0.0 - columns.get("YShift", 0),
        "rlnDefocusU": columns.get("Defocus1", 0),
        "rlnDefocusV": columns.get("Defocus2", 0),
        "rlnPhaseShift": columns.get("PhaseShift", 0),
        "rlnVoltage": columns.get("MicroscopeVoltagekV", 300),
        "rlnSphericalAberration": columns.get("MicroscopeCsMM", 2.7),
        "rlnAmplitudeContrast": columns.get("AmplitudeContrast", 0.1),
    }
    for ours, theirs in (
        ("rlnDefocusAngle", "DefocusAngle"),
        ("rlnImagePixelSize", "PixelSize"),
        ("rlnMicrographPreExposure", "PreExposure"),
    ):
        if theirs in columns:
            numbers[ours] = columns.get(theirs)
    table: dict[str, list[str] | array[float]] = {
        "rlnImageName": [f"{s + 1:06d}@{names.stacks[k]}" for s, k in zip(names.section, names.stack, strict=True)],
        **{name: array("d", values.tobytes()) for name, values in numbers.items()},
    }
    if "ParticleGroup" in columns:  # the exposures of one particle
        table["rlnGroupName"] = [f"{group:g}" for group in columns.get("ParticleGroup").tolist()]
    return Rows(columns.path, Table(table, label=str(columns.path)), None, np.zeros(len(columns), np.int64), KEPT)


def _not_honoured(columns: Columns) -> list[str]:
    """Warnings of what is read but not honoured; one line each."""
    lines = []
    optics = [name for name in ("BeamTiltX", "BeamTiltY", "ImageShiftX", "ImageShiftY") if columns.get(name, 0).any()]
    if optics:
        named = ", ".join(f"{PREFIX}{name}" for name in optics)
        lines.append(f"optics not modelled, their effect stays in the images: {named}")
    if np.ptp(columns.get("AssignedSubset", 0)) > 0:
        lines.append(
            f"{PREFIX}AssignedSubset is not taken for half sets: cisTEM aligns all images to one reference, so that "
            "such halves are not independent"
        )
    return lines


def _modelled_to(columns: Columns) -> float | None:
    """Resolution in Å up to which neither beam tilt nor image shift turns a phase by more than 45°; None if none does.

    Their signs are not known: 2π Cs λ² |t| s³ for a tilt, and 2π |d| s for a shift.
    """
    tilt = np.hypot(columns.get("BeamTiltX", 0), columns.get("BeamTiltY", 0)) * 1e-3
    shift = np.hypot(columns.get("ImageShiftX", 0), columns.get("ImageShiftY", 0))
    if not (tilt.any() or shift.any()):
        return None
    wavelength = electron_wavelength_in_angstroms(columns.get("MicroscopeVoltagekV", 300))
    aberration = columns.get("MicroscopeCsMM", 2.7) * 1e7
    s = np.geomspace(1e-3, 2, 400)
    phase = 2 * np.pi * (float((aberration * wavelength**2 * tilt).max()) * s**3 + float(shift.max()) * s)
    beyond: NDArray[np.intp] = np.flatnonzero(phase > np.pi / 4)
    return float(1 / s[beyond[0]]) if len(beyond) else None
